//! Compares a private key with the public key that is stored next to it.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde::Deserialize;
use zeroize::Zeroizing;

/// Why a key pair is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SigningKeyError {
    /// The plaintext is not a P-256 private key.
    Private,
    /// There is no P-256 public key.
    Public,
    /// The keys do not belong together.
    Pair,
}

/// The algorithm of a P-256 key in PKCS#8 and in SubjectPublicKeyInfo: id-ecPublicKey with
/// prime256v1 (RFC 5480), as DER.
const P256: [u8; 21] = [
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const BIT_STRING: u8 = 0x03;

/// Length of a P-256 private key, in bytes.
const SCALAR_BYTES: usize = 32;

/// Length of an uncompressed point of P-256, in bytes.
const POINT_BYTES: usize = 65;

/// Checks that `private` is the PEM of the private key of `public`, which is the JSON that
/// nico-api stores about a public key.
pub(super) fn check_signing_key(
    private: &[u8],
    public: Option<&str>,
) -> Result<(), SigningKeyError> {
    let der = pem(private, "PRIVATE KEY").ok_or(SigningKeyError::Private)?;
    let scalar = scalar(&der).ok_or(SigningKeyError::Private)?;
    let point = public.and_then(point).ok_or(SigningKeyError::Public)?;
    // ring computes the public key from the private one and compares it with `point`.
    EcdsaKeyPair::from_private_key_and_public_key(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        scalar,
        &point,
        &SystemRandom::new(),
    )
    .map(drop)
    .map_err(|_| SigningKeyError::Pair)
}

/// The contents of a PEM block. `text` must contain nothing else (RFC 7468).
fn pem(text: &[u8], label: &str) -> Option<Zeroizing<Vec<u8>>> {
    let text = str::from_utf8(text).ok()?.trim();
    let rest = text.strip_prefix("-----BEGIN ")?.strip_prefix(label)?;
    let rest = rest.strip_prefix("-----")?.strip_suffix("-----")?;
    let rest = rest.strip_suffix(label)?.strip_suffix("-----END ")?;
    let mut base64 = Zeroizing::new(Vec::with_capacity(rest.len()));
    base64.extend(rest.bytes().filter(|byte| !byte.is_ascii_whitespace()));
    let mut der = Zeroizing::new(vec![0; rest.len()]);
    let length = STANDARD.decode_slice(&*base64, &mut der).ok()?;
    der.truncate(length);
    Some(der)
}

/// The private key in a PKCS#8 document (RFC 5958, RFC 5915).
fn scalar(pkcs8: &[u8]) -> Option<&[u8]> {
    let (document, []) = element(pkcs8, SEQUENCE)? else {
        return None;
    };
    let (_version, rest) = element(document, INTEGER)?;
    let rest = rest.strip_prefix(&P256)?;
    let (key, _attributes) = element(rest, OCTET_STRING)?;
    let (key, []) = element(key, SEQUENCE)? else {
        return None;
    };
    let (_version, rest) = element(key, INTEGER)?;
    let (scalar, _public) = element(rest, OCTET_STRING)?;
    (scalar.len() == SCALAR_BYTES).then_some(scalar)
}

/// The point of a public key in the JSON of nico-api.
fn point(json: &str) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct PublicKey {
        public_pem: String,
    }
    let key: PublicKey = serde_json::from_str(json).ok()?;
    let der = pem(key.public_pem.as_bytes(), "PUBLIC KEY")?;
    let (document, []) = element(&der, SEQUENCE)? else {
        return None;
    };
    let (bits, []) = element(document.strip_prefix(&P256)?, BIT_STRING)? else {
        return None;
    };
    // The first byte is the number of unused bits.
    let point = bits.strip_prefix(&[0])?;
    (point.len() == POINT_BYTES).then(|| point.to_vec())
}

/// The contents of the first DER element of `bytes`, which must have this tag, and the bytes
/// after it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = bytes.strip_prefix(&[tag])?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => {
            let (length, rest) = rest.split_first()?;
            (usize::from(*length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        // A P-256 key is much shorter than 64 KiB.
        _ => return None,
    };
    rest.split_at_checked(length)
}
