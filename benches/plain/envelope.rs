//! A simple implementation of the envelope format: `serde_json`, and the rules that a type
//! cannot express. The unit tests and the fuzz target compare the codec with it, and the
//! benchmarks use it as the baseline.

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
    /// Accepts only an object. A derived reader would also accept an array of the values.
    pub(crate) fn read(json: &[u8]) -> Option<Self> {
        let is_object = json.trim_ascii_start().first() == Some(&b'{');
        serde_json::from_slice(json).ok().filter(|read: &Self| {
            is_object
                && read.scheme_version == 1
                && (1..=255).contains(&read.key_id.len())
                && read.ciphertext.len() >= 16
        })
    }

    /// Compact, with the members in the order of the format.
    pub(crate) fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and a string")
    }
}
