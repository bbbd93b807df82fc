//! Looks for what must never be written anywhere: keys, passwords, plaintexts.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::certs;
use crate::pg::PASSWORD;
use crate::seal::key;
use crate::seed::{DELEGATION, signing_key_pem};

/// Panics if `text` has a piece of anything secret in it that the usual site, its keys `kv1` to `kv3` and seeded rows
/// know, in any of the forms in which programs give such things away.
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

/// The beginning of a key as base64, hexadecimal and a list of numbers.
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

/// A line out of the middle; the first ones of all such keys are the same.
fn pem_line(pem: &str) -> String {
    pem.lines().nth(2).unwrap().to_owned()
}
