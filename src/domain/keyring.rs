//! Keys: [`KeyId`], [`Kek`], and the [`Keyring`] that a run uses.
//!
//! A [`Keyring`] is always valid: every id is well-formed and has one key, every key has 32
//! bytes, and exactly one key is the target. Keys are looked up by id and never tried in
//! turn. So "no such key" and "authentication failed" are different errors. The module
//! [`crate::keys::file`] reads the keys.

use std::{borrow::Borrow, collections::BTreeMap, fmt, path::PathBuf};

use aes_gcm::{Aes256Gcm, KeyInit};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// Length of a key in bytes: AES-256.
pub const KEY_BYTES: usize = 32;

/// The check value is a hash of this label and the key. The label makes the hash different from a
/// plain SHA-256 of the key that another program may publish.
const CHECK_VALUE_LABEL: &[u8] = b"nico-rewrap key check value v1\0";

/// The id of a KEK in envelopes and in the site config: 1 to 255 bytes of UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

/// A key id that is empty or longer than 255 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a key id has 1 to 255 bytes")]
pub struct InvalidKeyId;

impl KeyId {
    /// Makes a key id and checks its length.
    ///
    /// # Errors
    ///
    /// [`InvalidKeyId`] for fewer than 1 or more than 255 bytes.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidKeyId> {
        let id = id.into();
        Self::check(&id)?;
        Ok(Self(id))
    }

    /// Checks whether `id` can be a key id.
    pub(crate) fn check(id: &str) -> Result<(), InvalidKeyId> {
        match id.len() {
            1..=255 => Ok(()),
            _ => Err(InvalidKeyId),
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The order and the hash equal those of the text, so a key can be looked up by text.
impl Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first four bytes of a labelled SHA-256 of a key. People use it to compare keys on two
/// machines. It does not reveal the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyCheckValue([u8; 4]);

impl fmt::Display for KeyCheckValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyCheckValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a key was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// This program made the key.
    Program,
    /// An environment variable, by its name.
    Environment(String),
    /// A secrets file.
    File(PathBuf),
    /// A secret in Vault, by its path.
    Vault(String),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => f.write_str("this program"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Vault(path) => write!(f, "Vault {path}"),
        }
    }
}

/// A site master key with its expanded AES key schedule. It is wiped on drop.
///
/// The bytes of the key cannot be read back. Only its id and its check value are ever
/// printed.
pub struct Kek {
    id: KeyId,
    check_value: KeyCheckValue,
    source: KeySource,
    cipher: Box<Aes256Gcm>,
}

impl Kek {
    /// Expands `bytes`. The caller's copy is wiped when it is dropped.
    #[must_use]
    pub fn new(id: KeyId, bytes: &Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let kek = Self::expand(id, bytes);
        wipe_stack();
        kek
    }

    #[inline(never)]
    fn expand(id: KeyId, bytes: &Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let digest = Sha256::new()
            .chain_update(CHECK_VALUE_LABEL)
            .chain_update(bytes.as_slice())
            .finalize();
        Self {
            id,
            check_value: KeyCheckValue([digest[0], digest[1], digest[2], digest[3]]),
            source: KeySource::Program,
            cipher: Box::new(Aes256Gcm::new((&**bytes).into())),
        }
    }

    /// The same key, with `source` as the place where it was found.
    #[must_use]
    pub fn found_in(self, source: KeySource) -> Self {
        Self { source, ..self }
    }

    /// The place where the key was found.
    #[must_use]
    pub fn source(&self) -> &KeySource {
        &self.source
    }

    /// The id that envelopes use.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// The value by which two machines compare their keys.
    #[must_use]
    pub fn check_value(&self) -> KeyCheckValue {
        self.check_value
    }

    pub(crate) fn cipher(&self) -> &Aes256Gcm {
        &self.cipher
    }
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({} {})", self.id, self.check_value)
    }
}

/// Overwrites the part of the stack that earlier calls have used. AES leaves its round keys
/// there, and the first two of them are the key itself.
#[inline(never)]
pub(crate) fn wipe_stack() {
    /// More than the stack frames of the cipher need. A debug build has larger frames.
    const BYTES: usize = if cfg!(debug_assertions) {
        64 << 10
    } else {
        8 << 10
    };
    // A variable: a constant would not be on the stack.
    let mut zeros = [0_u8; BYTES];
    std::hint::black_box(&mut zeros);
}

/// All KEKs of the site. One of them is the target of re-wrapping.
#[derive(Debug)]
pub struct Keyring {
    keks: BTreeMap<KeyId, Kek>,
    target: KeyId,
}

/// The target key id is not among the keys.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("key id {:?} is not among the keys", .0.as_str())]
pub struct NoTargetKey(pub KeyId);

impl Keyring {
    /// Makes a keyring of `keks` with the target key `target`. If two keys have the same
    /// id, the later one is used. The source of the keys must refuse such ids, because it
    /// can name the line.
    ///
    /// # Errors
    ///
    /// [`NoTargetKey`] when none of the keys has the id `target`.
    pub fn new(keks: impl IntoIterator<Item = Kek>, target: KeyId) -> Result<Self, NoTargetKey> {
        let keks: BTreeMap<_, _> = keks.into_iter().map(|kek| (kek.id.clone(), kek)).collect();
        if keks.contains_key(&target) {
            Ok(Self { keks, target })
        } else {
            Err(NoTargetKey(target))
        }
    }

    /// The target key.
    #[must_use]
    pub fn target(&self) -> &Kek {
        &self.keks[&self.target]
    }

    /// The key with this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Kek> {
        self.keks.get(id)
    }

    /// All keys, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Kek> {
        self.keks.values()
    }

    /// Pairs of ids with the same key bytes: a copy-and-paste mistake that makes a rotation
    /// useless.
    #[must_use]
    pub fn duplicate_keys(&self) -> Vec<(&KeyId, &KeyId)> {
        let keks: Vec<_> = self.keks.values().collect();
        let mut pairs = Vec::new();
        for (i, a) in keks.iter().enumerate() {
            for b in &keks[i + 1..] {
                if a.check_value == b.check_value {
                    pairs.push((&a.id, &b.id));
                }
            }
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kek(id: &str, byte: u8) -> Kek {
        Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new([byte; KEY_BYTES]))
    }

    #[test]
    fn key_ids_have_1_to_255_bytes() {
        assert_eq!(KeyId::new(""), Err(InvalidKeyId));
        assert_eq!(KeyId::new("k".repeat(256)), Err(InvalidKeyId));
        assert!(KeyId::new("k".repeat(255)).is_ok());
        assert!(KeyId::new("é".repeat(127)).is_ok());
        assert_eq!(KeyId::new("é".repeat(128)), Err(InvalidKeyId));
    }

    #[test]
    fn check_value_is_the_documented_hash() {
        // printf 'nico-rewrap key check value v1\0' followed by 32 bytes of 0x11, sha256sum
        assert_eq!(kek("kv1", 0x11).check_value().to_string(), "8c5c4580");
    }

    #[test]
    fn debug_shows_only_id_and_check_value() {
        let ring = Keyring::new([kek("kv1", 0x11)], KeyId::new("kv1").unwrap()).unwrap();
        let debug = format!("{ring:?}");
        assert!(debug.contains("kv1 8c5c4580"), "{debug}");
        // The bytes of the key in hexadecimal and in decimal.
        for bytes in ["1111", "17, 17"] {
            assert!(!debug.contains(bytes), "{debug}");
        }
    }

    #[test]
    fn a_keyring_contains_its_target() {
        let target = KeyId::new("kv2").unwrap();
        let missing = Keyring::new([kek("kv1", 1)], target.clone()).unwrap_err();
        assert_eq!(missing, NoTargetKey(target.clone()));
        let ring = Keyring::new([kek("kv1", 1), kek("kv2", 2)], target.clone()).unwrap();
        assert_eq!(ring.target().id(), &target);
    }

    #[test]
    fn duplicate_keys_are_found() {
        let ring = Keyring::new(
            [kek("a", 1), kek("b", 2), kek("c", 1)],
            KeyId::new("a").unwrap(),
        )
        .unwrap();
        let pairs: Vec<_> = ring
            .duplicate_keys()
            .into_iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(pairs, [("a", "c")]);
    }
}
