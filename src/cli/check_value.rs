//! `keys check-value`: the check value of a key. It needs no server.

use std::io::{self, Read, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use zeroize::Zeroizing;

use super::client::Exit;
use crate::domain::keyring::{KEY_BYTES, Kek, KeyId};

/// Options of `keys check-value`.
#[derive(Debug, Args)]
pub(super) struct CheckValue {}

impl CheckValue {
    pub(super) fn run(&self) -> Exit {
        let (exit, message) = match read() {
            Ok(kek) => {
                // An error is ignored: nobody reads the answer.
                let _ = writeln!(io::stdout(), "{}", kek.check_value());
                return Exit::Done;
            }
            Err(message) => (Exit::Usage, message),
        };
        let _ = writeln!(io::stderr(), "nico-rewrap: {message}");
        exit
    }
}

/// Reads a key in base64 from standard input. The error never quotes the input.
fn read() -> Result<Kek, String> {
    let mut text = Zeroizing::new(Vec::new());
    let limit = io::stdin().lock().take(4096).read_to_end(&mut text);
    limit.map_err(|error| format!("standard input can't be read ({error})"))?;
    let mut buffer = Zeroizing::new([0; 4096]);
    let decoded = STANDARD
        .decode_slice(text.trim_ascii(), buffer.as_mut_slice())
        .map_err(|_| "standard input is not base64".to_owned())?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    if decoded != KEY_BYTES {
        return Err(format!(
            "standard input holds {decoded} bytes in base64, and a key has {KEY_BYTES}"
        ));
    }
    bytes.copy_from_slice(&buffer[..decoded]);
    // The check value does not depend on the id.
    let id = KeyId::new("key").map_err(|error| error.to_string())?;
    Ok(Kek::new(id, &bytes))
}
