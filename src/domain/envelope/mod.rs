//! The envelope, scheme version 1, and the only AES-GCM calls of the program.
//!
//! An envelope is the text of one database column: standard, padded base64 of a
//! JSON object with the members `scheme_version`, `key_id`, `nonce` and
//! `ciphertext`, the last two spelled as arrays of numbers. AES-256-GCM (NIST
//! SP 800-38D) with a 96-bit random nonce, the 128-bit tag appended to the
//! ciphertext, no associated data.
//!
//! The way to a plaintext is [`Envelope::parse`], then [`Envelope::open`]: what
//! does not authenticate is never seen by a caller. Errors say where the text is
//! wrong and never quote it, since a column may hold a secret by mistake.
//!
//! Both work in [`Buffers`], which are kept from one field to the next: a ciphertext is
//! decrypted where it was read, and wiped there when its [`Plaintext`] is dropped.

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

/// The longest column text that is read, in bytes.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// The one scheme version there is.
pub const SCHEME_VERSION: u8 = 1;

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Memory for one envelope at a time, used again for the next one, and wiped on drop.
#[derive(Default)]
pub struct Buffers {
    /// What is inside the base64.
    json: Vec<u8>,
    /// Ciphertext with its tag, and in its place the plaintext.
    bytes: Vec<u8>,
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // A column can hold a bare secret by mistake, and then so does `json`.
        self.json.zeroize();
        self.bytes.zeroize();
    }
}

/// A well-formed envelope. It says which key it names, and nothing about whether
/// that key opens it.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'b> {
    key_id: Cow<'b, str>,
    nonce: [u8; NONCE_BYTES],
    /// With the tag at its end.
    ciphertext: &'b mut [u8],
}

impl<'b> Envelope<'b> {
    /// Reads the text of a column. White space around the base64 is ignored.
    ///
    /// # Errors
    ///
    /// [`ParseError`] for everything that is not exactly the format.
    pub fn parse(text: &str, buffers: &'b mut Buffers) -> Result<Self, ParseError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(ParseError::TooLong);
        }
        codec::read(text.trim(), buffers)
    }

    /// The id of the key that this envelope says it is sealed under: 1 to 255 bytes.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The text of a column as this program writes it: compact JSON, members in the
    /// format's order, base64.
    #[must_use]
    pub fn to_text(&self) -> String {
        codec::write(&self.key_id, &self.nonce, self.ciphertext, &mut Vec::new())
    }

    /// Decrypts and authenticates under `kek`.
    ///
    /// # Errors
    ///
    /// [`NotAuthentic`] when `kek` is not the key, or a bit was changed.
    pub fn open(self, kek: &Kek) -> Result<Plaintext<'b>, NotAuthentic> {
        decrypt(kek.cipher(), &self.nonce, b"", self.ciphertext)
    }
}

/// Encrypts `plaintext` under `kek` with a fresh nonce from the operating system, and
/// gives the text of a column: compact JSON, members in the format's order, base64.
///
/// # Errors
///
/// [`SealError`] when the operating system gives no randomness.
pub fn seal(
    kek: &Kek,
    plaintext: &Plaintext<'_>,
    buffers: &mut Buffers,
) -> Result<String, SealError> {
    // Asked for each time: nonces kept in memory would be used twice by two copies of
    // a virtual machine.
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

/// A decrypted secret. Wiped on drop; not printable, not cloneable.
#[derive(PartialEq, Eq)]
pub struct Plaintext<'b>(&'b mut [u8]);

impl<'b> Plaintext<'b> {
    /// Takes over `bytes`, to be wiped when this is dropped.
    #[must_use]
    pub fn new(bytes: &'b mut [u8]) -> Self {
        Self(bytes)
    }

    /// The secret itself.
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

/// Why a text is not an envelope. Never quotes the text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Longer than [`MAX_TEXT_BYTES`].
    #[error("text is longer than 1 MiB")]
    TooLong,
    /// Not standard, padded, canonical base64.
    #[error("not standard padded base64: {0}")]
    Base64(&'static str),
    /// Base64 of something that is not the JSON object of the format.
    #[error("not an envelope object: {reason} at byte {at} of the JSON text")]
    Json {
        /// What was found or missed there.
        reason: &'static str,
        /// Offset in the decoded text, in bytes.
        at: usize,
    },
    /// An integer other than 1 as `scheme_version`.
    #[error("unsupported scheme version")]
    SchemeVersion,
    /// A key id that is empty or longer than 255 bytes.
    #[error("key_id is not 1 to 255 bytes long")]
    KeyId,
    /// Fewer bytes of ciphertext than the tag alone has.
    #[error("ciphertext is shorter than its authentication tag")]
    NoTag,
}

/// The ciphertext does not authenticate under the key it was tried with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("authentication failed")]
pub struct NotAuthentic;

/// The operating system's random number generator failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the operating system gave no randomness for a nonce")]
pub struct SealError;

/// In place: `ciphertext` becomes the plaintext once its tag has been found right.
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

/// Into `ciphertext`, whatever was in it before.
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
