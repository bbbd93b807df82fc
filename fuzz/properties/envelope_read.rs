//! `Envelope::parse` accepts the same texts as a simple reader, and both read the same
//! values.
//!
//! Every input is checked twice: as the text of a column, and as the JSON in such a text.
//! Otherwise, the fuzzer would first have to find valid base64.

#[path = "../../benches/plain/envelope.rs"]
mod oracle;

use base64::{Engine, engine::general_purpose::STANDARD};
use nico_rewrap::domain::envelope::{Buffers, Envelope};

/// Checks the properties. Returns `accepted` if `input` is an envelope as text or as JSON, and
/// `refused` otherwise.
pub(crate) fn check(input: &[u8]) -> &'static str {
    let text = std::str::from_utf8(input);
    let as_text = text.is_ok_and(|text| {
        let json = STANDARD.decode(text.trim()).ok();
        agree(text, json.as_deref())
    });
    let as_json = agree(&STANDARD.encode(input), Some(input));
    if as_text || as_json {
        "accepted"
    } else {
        "refused"
    }
}

fn agree(text: &str, json: Option<&[u8]>) -> bool {
    let oracle = json.and_then(oracle::Envelope::read);
    let mut buffers = Buffers::default();
    match (Envelope::parse(text, &mut buffers), oracle) {
        (Err(_), None) => false,
        (Ok(ours), Some(oracle)) => {
            assert_eq!(ours.key_id(), oracle.key_id, "in {text:?}");
            let written = ours.to_text();
            assert_eq!(written, STANDARD.encode(oracle.write()), "of {text:?}");
            let mut buffers = Buffers::default();
            let again = Envelope::parse(&written, &mut buffers);
            assert_eq!(again, Ok(ours), "{text:?}, written");
            true
        }
        (ours, oracle) => panic!("{ours:?} against {oracle:?} in {text:?}"),
    }
}
