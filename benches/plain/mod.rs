//! The plain way to read and write an envelope: `base64`, `serde_json` on arrays
//! of numbers, a fresh key schedule each time. What the codec is measured against,
//! and what the rivals of the end-to-end benchmark do.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should end")]

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Key},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope {
    scheme_version: u8,
    pub(crate) key_id: String,
    nonce: [u8; 12],
    ciphertext: Vec<u8>,
}

pub(crate) fn parse(text: &str) -> Envelope {
    serde_json::from_slice(&STANDARD.decode(text).unwrap()).unwrap()
}

pub(crate) fn open(key: &[u8; 32], envelope: &Envelope) -> Vec<u8> {
    let cipher = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key));
    cipher
        .decrypt(&Nonce::from(envelope.nonce), &*envelope.ciphertext)
        .unwrap()
}

pub(crate) fn seal(key: &[u8; 32], id: &str, secret: &[u8]) -> String {
    let cipher = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key));
    let mut nonce = [0; 12];
    getrandom::fill(&mut nonce).unwrap();
    let ciphertext = cipher.encrypt(&Nonce::from(nonce), secret).unwrap();
    let envelope = Envelope {
        scheme_version: 1,
        key_id: id.to_owned(),
        nonce,
        ciphertext,
    };
    STANDARD.encode(serde_json::to_vec(&envelope).unwrap())
}
