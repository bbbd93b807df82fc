//! The envelope, scheme version 1, and the only AES-GCM calls of the program.
//!
//! An envelope is the text of one database column: standard, padded base64 of a JSON object
//! with the members `scheme_version`, `key_id`, `nonce` and `ciphertext`. The last two are
//! arrays of numbers. The cipher is AES-256-GCM (NIST SP 800-38D) with a random 96-bit
//! nonce and no associated data. The 128-bit tag is appended to the ciphertext.
//!
//! A caller gets a plaintext only through [`Envelope::parse`] and then [`Envelope::open`], so it
//! never sees data that does not authenticate. Errors say where the text is wrong but never quote
//! it, because a column may contain an unencrypted secret by mistake.
//!
//! Both functions work in [`Buffers`], which are reused from field to field. A ciphertext
//! is decrypted in place, and wiped when its [`Plaintext`] is dropped.

mod codec;
pub mod hardware;

use std::{borrow::Cow, fmt};

use aes_gcm::{
    Aes256Gcm, Nonce, Tag,
    aead::{AeadInOut, inout::InOutBuf},
};
use thiserror::Error;
use zeroize::Zeroize;

use crate::domain::keyring::Kek;

/// Maximum length of a column text, in bytes.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// The only scheme version.
pub const SCHEME_VERSION: u8 = 1;

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Memory for one envelope at a time. It is reused, and wiped on drop.
#[derive(Default)]
pub struct Buffers {
    /// The decoded base64.
    json: Vec<u8>,
    /// The ciphertext with its tag. It is decrypted in place.
    bytes: Vec<u8>,
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // A column can contain an unencrypted secret by mistake. Then `json` contains it, too.
        self.json.zeroize();
        self.bytes.zeroize();
    }
}

/// A well-formed envelope. It names a key, but that key may not be able to open it.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'b> {
    key_id: Cow<'b, str>,
    nonce: [u8; NONCE_BYTES],
    /// The ciphertext, with the tag at its end.
    ciphertext: &'b mut [u8],
}

impl<'b> Envelope<'b> {
    /// Parses the text of a column. White space around the base64 is ignored.
    ///
    /// # Errors
    ///
    /// [`ParseError`] if the text does not have exactly this format.
    pub fn parse(text: &str, buffers: &'b mut Buffers) -> Result<Self, ParseError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(ParseError::TooLong);
        }
        codec::read(text.trim(), buffers)
    }

    /// The id of the key that this envelope names: 1 to 255 bytes.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The text of a column as this program writes it: base64 of compact JSON, with the
    /// members in the order of the format.
    #[must_use]
    pub fn to_text(&self) -> String {
        codec::write(&self.key_id, &self.nonce, self.ciphertext, &mut Vec::new())
    }

    /// Decrypts the ciphertext under `kek` and checks its tag.
    ///
    /// # Errors
    ///
    /// [`NotAuthentic`] when `kek` is the wrong key, or a bit was changed.
    pub fn open(self, kek: &Kek) -> Result<Plaintext<'b>, NotAuthentic> {
        decrypt(kek.cipher(), &self.nonce, b"", self.ciphertext)
    }
}

/// The key id that a text names, from its first characters only. The rest of the text is not
/// checked. `None` if these characters do not contain it. The caller must then use
/// [`Envelope::parse`] with the whole text.
#[must_use]
pub fn key_id_of_prefix<'b>(prefix: &str, buffers: &'b mut Buffers) -> Option<Cow<'b, str>> {
    codec::read_key_id(prefix.trim_start(), buffers)
}

/// The number of characters from which [`key_id_of_prefix`] can read `key_id`.
#[must_use]
pub fn prefix_length(key_id: &str) -> usize {
    const BEFORE: usize = br#"{"scheme_version":1,"key_id":"#.len();
    let quoted = serde_json::Value::from(key_id).to_string().len();
    (BEFORE + quoted).div_ceil(3) * 4
}

/// Encrypts `plaintext` under `kek` with a fresh nonce from the operating system. Returns
/// the text of a column: base64 of compact JSON, with the members in the order of the
/// format.
///
/// # Errors
///
/// [`SealError`] when the operating system gives no randomness.
pub fn seal(
    kek: &Kek,
    plaintext: &Plaintext<'_>,
    buffers: &mut Buffers,
) -> Result<String, SealError> {
    // Get each nonce only when it is needed: two copies of a virtual machine would use a stored
    // nonce twice.
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| SealError)?;
    encrypt(
        kek.cipher(),
        &nonce,
        b"",
        plaintext.expose(),
        &mut buffers.bytes,
    )?;
    Ok(codec::write(
        kek.id().as_str(),
        &nonce,
        &buffers.bytes,
        &mut buffers.json,
    ))
}

/// A decrypted secret. It is wiped on drop, and cannot be printed or cloned.
#[derive(PartialEq, Eq)]
pub struct Plaintext<'b>(&'b mut [u8]);

impl<'b> Plaintext<'b> {
    /// Takes `bytes`. They are wiped when this value is dropped.
    #[must_use]
    pub fn new(bytes: &'b mut [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes of the secret.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.0
    }
}

impl Drop for Plaintext<'_> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Plaintext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plaintext(redacted)")
    }
}

/// Why a text is not an envelope. The message never quotes the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The text is longer than [`MAX_TEXT_BYTES`].
    #[error("text is longer than 1 MiB")]
    TooLong,
    /// The text is not standard, padded, canonical base64.
    #[error("not standard padded base64: {0}")]
    Base64(&'static str),
    /// The decoded text is not the JSON object of the format.
    #[error("not an envelope object: {reason} at byte {at} of the JSON text")]
    Json {
        /// What is wrong at this place.
        reason: &'static str,
        /// The offset in the decoded text, in bytes.
        at: usize,
    },
    /// `scheme_version` is an integer other than 1.
    #[error("unsupported scheme version")]
    SchemeVersion,
    /// The key id is empty or longer than 255 bytes.
    #[error("key_id is not 1 to 255 bytes long")]
    KeyId,
    /// The ciphertext has fewer bytes than the tag alone.
    #[error("ciphertext is shorter than its authentication tag")]
    NoTag,
}

/// The ciphertext does not authenticate under this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("authentication failed")]
pub struct NotAuthentic;

/// The operating system's random number generator failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the operating system gave no randomness for a nonce")]
pub struct SealError;

/// Decrypts `ciphertext` in place. It becomes the plaintext only if its tag is correct.
fn decrypt<'b>(
    cipher: &Aes256Gcm,
    nonce: &[u8; NONCE_BYTES],
    associated_data: &[u8],
    ciphertext: &'b mut [u8],
) -> Result<Plaintext<'b>, NotAuthentic> {
    let (body, tag) = ciphertext
        .split_last_chunk_mut::<TAG_BYTES>()
        .ok_or(NotAuthentic)?;
    cipher
        .decrypt_inout_detached(
            &Nonce::from(*nonce),
            associated_data,
            InOutBuf::from(&mut *body),
            &Tag::from(*tag),
        )
        .map_err(|_| NotAuthentic)?;
    Ok(Plaintext(body))
}

/// Encrypts into `ciphertext` and discards its old content.
fn encrypt(
    cipher: &Aes256Gcm,
    nonce: &[u8; NONCE_BYTES],
    associated_data: &[u8],
    plaintext: &[u8],
    ciphertext: &mut Vec<u8>,
) -> Result<(), SealError> {
    ciphertext.resize(plaintext.len() + TAG_BYTES, 0);
    let (body, tag) = ciphertext.split_at_mut(plaintext.len());
    let buffer = InOutBuf::new(plaintext, body).map_err(|_| SealError)?;
    let computed = cipher
        .encrypt_inout_detached(&Nonce::from(*nonce), associated_data, buffer)
        .map_err(|_| SealError)?;
    tag.copy_from_slice(&computed);
    Ok(())
}

#[cfg(test)]
mod tests;
