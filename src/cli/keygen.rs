//! `keygen`: a fresh KEK.

use std::{process::ExitCode, time::SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use zeroize::Zeroizing;

use super::fail;
use crate::domain::keyring::{KEY_BYTES, Kek, KeyId};

#[derive(Debug, Args)]
pub(super) struct Keygen {
    /// The id to print with the key; by default made of today's date.
    #[arg(long)]
    id: Option<String>,
}

impl Keygen {
    pub(super) fn run(self) -> ExitCode {
        let id = match KeyId::new(self.id.unwrap_or_else(suggested_id)) {
            Ok(id) => id,
            Err(error) => return fail(&format!("--id: {error}"), 64),
        };
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        if getrandom::fill(bytes.as_mut_slice()).is_err() {
            return fail(&"the operating system gave no randomness", 71);
        }
        let kek = Kek::new(id, &bytes);
        print(&kek, &Zeroizing::new(STANDARD.encode(*bytes)));
        ExitCode::SUCCESS
    }
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is what the command is for"
)]
fn print(kek: &Kek, text: &str) {
    let id = serde_json::Value::from(kek.id().as_str());
    println!("{id}: \"{text}\"");
    eprintln!(
        "Add this line to machine_identity.encryption_keys in the secrets file, beside the keys \
         that are there,\nand keep it as secret as they are. Its key check value is {}.",
        kek.check_value()
    );
}

/// `kv` and the date: sorts by age, and has only characters that every source of
/// keys can spell (environment variables, Vault paths).
fn suggested_id() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let date = now.split('T').next().unwrap_or_default();
    format!("kv{}", date.replace('-', ""))
}
