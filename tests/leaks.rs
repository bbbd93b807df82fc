//! Searches texts for keys, passwords and plaintexts.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::certs;
use crate::pg::PASSWORD;
use crate::seal::key;
use crate::seed::{DELEGATION, signing_key_pem};

/// Panics if `text` contains a part of a secret of the usual site, its keys `kv1` to `kv3` or the
/// seeded rows, in one of the formats in which programs print such values.
pub(crate) fn assert_none(text: &str) {
    let mut secrets = vec![
        PASSWORD.to_owned(),
        DELEGATION.to_owned(),
        "the secret of a test".to_owned(),
        pem_line(signing_key_pem()),
        pem_line(&std::fs::read_to_string(&certs::server().key).unwrap()),
    ];
    secrets.extend(["kv1", "kv2", "kv3"].iter().flat_map(|id| forms(&key(id))));
    for secret in secrets {
        assert!(!text.contains(&secret), "{secret} stands in:\n{text}");
    }
}

/// The beginning of a key in base64, hexadecimal and as a list of numbers.
pub(crate) fn forms(key: &[u8]) -> Vec<String> {
    let hex: String = key[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<_> = key[..6].iter().map(u8::to_string).collect();
    vec![
        BASE64_STANDARD.encode(key)[..16].to_owned(),
        hex.to_uppercase(),
        hex,
        list.join(", "),
        list.join(","),
    ]
}

/// A line from the middle: the first lines of all such keys are equal.
fn pem_line(pem: &str) -> String {
    pem.lines().nth(2).unwrap().to_owned()
}
