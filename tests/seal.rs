//! A second implementation of the envelope of scheme version 1, with `ring` and `serde_json`. Tests
//! seal and open with it, so that they do not check the codec against itself.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

/// A KEK.
pub(crate) type Key = [u8; 32];
/// KEKs by id.
pub(crate) type Keys = BTreeMap<String, Key>;

/// The KEK of this id, the same in all tests.
pub(crate) fn key(id: &str) -> Key {
    digest(&SHA256, format!("a key for tests: {id}").as_bytes())
        .as_ref()
        .try_into()
        .unwrap()
}

/// The usual KEKs of these ids.
pub(crate) fn keys(ids: &[&str]) -> Keys {
    ids.iter().map(|id| ((*id).to_owned(), key(id))).collect()
}

/// The column text of `plaintext` under the usual key of this id.
pub(crate) fn seal(plaintext: impl AsRef<[u8]>, key_id: &str) -> String {
    seal_with(plaintext, key_id, &key(key_id))
}

/// The column text of `plaintext` under any key, with any `key_id`.
pub(crate) fn seal_with(plaintext: impl AsRef<[u8]>, key_id: &str, key: &Key) -> String {
    encode(&compact(&seal_object(plaintext, key_id, key)))
}

/// The envelope as a JSON object, for tests that modify it before they [`encode`] it.
pub(crate) fn seal_object(plaintext: impl AsRef<[u8]>, key_id: &str, key: &Key) -> Value {
    let mut nonce = [0; 12];
    SystemRandom::new().fill(&mut nonce).unwrap();
    let mut ciphertext = plaintext.as_ref().to_vec();
    let nonce_value = Nonce::assume_unique_for_key(nonce);
    aead(key)
        .seal_in_place_append_tag(nonce_value, Aad::empty(), &mut ciphertext)
        .unwrap();
    json!({"scheme_version": 1, "key_id": key_id, "nonce": nonce, "ciphertext": ciphertext})
}

/// Base64 of any text.
pub(crate) fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// Key id and plaintext of a column text. An error if the text is malformed, its key is absent, or
/// authentication fails.
pub(crate) fn open(text: &str, keys: &Keys) -> Result<(String, Vec<u8>), String> {
    let object = decode(text)?;
    let bytes = |member: &str| -> Result<Vec<u8>, String> {
        serde_json::from_value(object[member].clone()).map_err(|e| format!("{member}: {e}"))
    };
    if object["scheme_version"] != 1 || object.as_object().is_none_or(|members| members.len() != 4)
    {
        return Err(format!("not an envelope of version 1: {object}"));
    }
    let key_id = object["key_id"].as_str().ok_or("key_id is no string")?;
    let key = keys.get(key_id).ok_or_else(|| format!("no key {key_id}"))?;
    let nonce = Nonce::try_assume_unique_for_key(&bytes("nonce")?)
        .map_err(|_| "nonce of another length")?;
    let mut ciphertext = bytes("ciphertext")?;
    let plaintext = aead(key)
        .open_in_place(nonce, Aad::empty(), &mut ciphertext)
        .map_err(|_| "not authentic")?;
    Ok((key_id.to_owned(), plaintext.to_vec()))
}

/// Whether a column text is in the canonical form: compact, members in order, no surrounding white
/// space.
pub(crate) fn is_canonical(text: &str) -> bool {
    decode(text).is_ok_and(|object| encode(&compact(&object)) == text)
}

/// The `key_id` of a column text.
pub(crate) fn key_id(text: &str) -> String {
    decode(text).unwrap()["key_id"].as_str().unwrap().to_owned()
}

/// Writes compact JSON in the order of the contract. `serde_json` would sort the members.
fn compact(object: &Value) -> String {
    let [key_id, nonce, ciphertext] =
        ["key_id", "nonce", "ciphertext"].map(|member| &object[member]);
    format!(r#"{{"scheme_version":1,"key_id":{key_id},"nonce":{nonce},"ciphertext":{ciphertext}}}"#)
}

fn decode(text: &str) -> Result<Value, String> {
    let json = BASE64_STANDARD
        .decode(text.trim())
        .map_err(|e| e.to_string())?;
    serde_json::from_slice(&json).map_err(|e| e.to_string())
}

fn aead(key: &Key) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap())
}
