//! A simple way to read and write an envelope: `base64`, `serde_json` for the arrays of
//! numbers, and a fresh key schedule for each call. It is the baseline of the codec's
//! benchmark, and the other programs of the end-to-end benchmark use it.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should end")]

mod envelope;

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Key},
};
use base64::{Engine, engine::general_purpose::STANDARD};

use envelope::Envelope;

pub(crate) fn parse(text: &str) -> Envelope {
    Envelope::read(&STANDARD.decode(text).unwrap()).unwrap()
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
    STANDARD.encode(envelope.write())
}
