//! Decides about one row: no change, new texts, or failures. The decision is a pure function of the
//! keyring and the row's texts.
//!
//! This module has no clock, no SQL and no metrics. Its only I/O is the operating system's
//! randomness for nonces. So a decision can be tested alone and repeated when a row
//! changes.
//!
//! Every secret is decrypted, even if its envelope already names the target key, because a key id
//! proves nothing about the ciphertext. Every new text is decrypted again and compared before it is
//! returned.

use thiserror::Error;

use crate::domain::{
    envelope::{Buffers, Envelope, MAX_TEXT_BYTES, ParseError, Plaintext, SealError, seal},
    keyring::{Kek, Keyring, wipe_stack},
};

/// Number of secrets in a row.
pub const COLUMN_COUNT: usize = 3;

/// The columns of `tenant_identity_config` that hold envelopes, in the order of
/// [`Envelopes`].
pub const COLUMNS: [&str; COLUMN_COUNT] = [
    "encrypted_signing_key_1",
    "encrypted_signing_key_2",
    "encrypted_auth_method_config",
];

/// The three secrets of a row as the database stores them, in the order of [`COLUMNS`].
/// `None` is NULL.
pub type Envelopes = [Option<String>; COLUMN_COUNT];

/// Stands for a text of more than 1 MiB, which the program does not read. It is not a valid
/// envelope.
pub const OVERSIZED: &str = "<more than 1 MiB>";

/// The decision about a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Every secret decrypts under the target key. Nothing is written.
    OnTarget {
        /// The number of fields that were verified.
        fields: u32,
    },
    /// These texts replace the texts of the row.
    Replace {
        /// All three texts. Unchanged fields keep their old text.
        texts: Envelopes,
        /// The number of fields with a new text.
        reencrypted: u32,
        /// The number of fields that were already on target.
        on_target: u32,
    },
    /// The row is not changed. There is one entry for each bad field.
    Failed(Vec<FieldFailure>),
}

/// A field that cannot be re-wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFailure {
    /// The column.
    pub column: &'static str,
    /// What is wrong with it.
    pub error: FieldError,
}

/// Why a field cannot be re-wrapped. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FieldError {
    /// The text is not an envelope.
    #[error("unreadable envelope: {0}")]
    Unreadable(ParseError),
    /// The envelope has a scheme version that this program does not support.
    #[error("unsupported scheme version: only version 1 is supported")]
    SchemeVersion,
    /// The envelope names a key that is not in the secrets.
    #[error("key id {:?} is not in the secrets: add that key and run again", .0)]
    UnknownKey(String),
    /// The secrets have the key of the envelope, but it does not decrypt the text.
    #[error(
        "authentication failed under key id {:?}, which is in the secrets: \
         the text was altered, or that id has other key bytes here",
        .0
    )]
    NotAuthentic(String),
    /// The operating system gave no randomness for a nonce.
    #[error("{0}")]
    Seal(#[from] SealError),
    /// The id of the target key makes the new text too long to be read again.
    #[error("the re-wrapped text would be longer than 1 MiB; nothing was written")]
    TooLong,
    /// The new text does not decrypt to the same secret.
    #[error("the re-wrapped text does not decrypt to the same secret; nothing was written")]
    ReadBack,
}

impl FieldError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(ParseError::TooLong) | Self::TooLong => "TOO_LONG",
            Self::Unreadable(_) => "UNREADABLE_ENVELOPE",
            Self::SchemeVersion => "UNSUPPORTED_SCHEME",
            Self::UnknownKey(_) => "KEY_NOT_IN_SECRETS",
            Self::NotAuthentic(_) => "NOT_AUTHENTIC",
            Self::Seal(_) => "NO_RANDOMNESS",
            Self::ReadBack => "READ_BACK",
        }
    }

    /// The key id that the envelope names, if it is known.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Self::UnknownKey(id) | Self::NotAuthentic(id) => Some(id),
            _ => None,
        }
    }
}

impl From<ParseError> for FieldError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::SchemeVersion => Self::SchemeVersion,
            other => Self::Unreadable(other),
        }
    }
}

/// Memory for decisions. It is reused from row to row.
#[derive(Default)]
pub struct Scratch {
    /// For the current content of a field.
    opened: Buffers,
    /// For the new content, and for reading it back.
    rewrapped: Buffers,
}

/// Decides about a row: decrypts every secret, and encrypts those under other keys again
/// under the target key.
#[must_use]
pub fn decide(keyring: &Keyring, texts: &Envelopes, scratch: &mut Scratch) -> Decision {
    let mut new_texts = Envelopes::default();
    let mut reencrypted = 0;
    let mut on_target = 0;
    let mut failures = Vec::new();

    for ((text, new_text), column) in texts.iter().zip(&mut new_texts).zip(COLUMNS) {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        match field(keyring, text, scratch) {
            Ok(None) => on_target += 1,
            Ok(rewrapped) => {
                reencrypted += 1;
                *new_text = rewrapped;
            }
            Err(error) => failures.push(FieldFailure { column, error }),
        }
    }
    wipe_stack();

    if !failures.is_empty() {
        Decision::Failed(failures)
    } else if reencrypted == 0 {
        Decision::OnTarget { fields: on_target }
    } else {
        for (new_text, text) in new_texts.iter_mut().zip(texts) {
            if new_text.is_none() {
                new_text.clone_from(text);
            }
        }
        Decision::Replace {
            texts: new_texts,
            reencrypted,
            on_target,
        }
    }
}

/// The new text of a field, or `None` if the field is on target. Not inlined, so that its
/// whole stack frame is wiped afterwards.
#[inline(never)]
fn field(
    keyring: &Keyring,
    text: &str,
    scratch: &mut Scratch,
) -> Result<Option<String>, FieldError> {
    sealed_field(keyring, text, scratch, seal)
}

/// As [`field`], with another function for the encryption.
fn sealed_field(
    keyring: &Keyring,
    text: &str,
    scratch: &mut Scratch,
    seal: impl FnOnce(&Kek, &Plaintext<'_>, &mut Buffers) -> Result<String, SealError>,
) -> Result<Option<String>, FieldError> {
    let Scratch { opened, rewrapped } = scratch;
    let target = keyring.target();
    let opened = open(keyring, text, opened)?;
    if opened.kek.id() == target.id() {
        return Ok(None);
    }
    let new_text = seal(target, &opened.plaintext, rewrapped)?;
    if new_text.len() > MAX_TEXT_BYTES {
        return Err(FieldError::TooLong);
    }
    match open(keyring, &new_text, rewrapped) {
        Ok(again) if again.kek.id() == target.id() && again.plaintext == opened.plaintext => {
            Ok(Some(new_text))
        }
        _ => Err(FieldError::ReadBack),
    }
}

/// A secret that was decrypted.
pub(crate) struct Opened<'k, 'b> {
    /// The key that the envelope names.
    pub(crate) kek: &'k Kek,
    /// The secret.
    pub(crate) plaintext: Plaintext<'b>,
}

/// Decrypts a secret under the key that its envelope names.
pub(crate) fn open<'k, 'b>(
    keyring: &'k Keyring,
    text: &str,
    buffers: &'b mut Buffers,
) -> Result<Opened<'k, 'b>, FieldError> {
    if text == OVERSIZED {
        return Err(FieldError::Unreadable(ParseError::TooLong));
    }
    let envelope = Envelope::parse(text, buffers)?;
    let Some(kek) = keyring.get(envelope.key_id()) else {
        return Err(FieldError::UnknownKey(envelope.key_id().to_owned()));
    };
    match envelope.open(kek) {
        Ok(plaintext) => Ok(Opened { kek, plaintext }),
        Err(_) => Err(FieldError::NotAuthentic(kek.id().to_string())),
    }
}

#[cfg(test)]
mod tests;
