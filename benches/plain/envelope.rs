//! The format read and written the straightforward way: `serde_json`, and the
//! rules that a type can't express. What the codec has to agree with, in its unit
//! tests and in the fuzz target, and what it is measured against.

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope {
    pub(crate) scheme_version: u8,
    pub(crate) key_id: String,
    pub(crate) nonce: [u8; 12],
    pub(crate) ciphertext: Vec<u8>,
}

impl Envelope {
    /// An object, not the array of values that a derived reader takes as well.
    pub(crate) fn read(json: &[u8]) -> Option<Self> {
        let is_object = json.trim_ascii_start().first() == Some(&b'{');
        serde_json::from_slice(json).ok().filter(|read: &Self| {
            is_object
                && read.scheme_version == 1
                && (1..=255).contains(&read.key_id.len())
                && read.ciphertext.len() >= 16
        })
    }

    /// Compact, in the format's order.
    pub(crate) fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and a string")
    }
}
