//! The decision about one row, taken as a pure function of the keyring and the
//! row's texts: nothing to do, these new texts, or these failures.
//!
//! No I/O but the operating system's randomness for nonces, no clock, no SQL, no
//! metrics: what is decided here can be tested on its own, and can be decided
//! again as often as a row changes under our hands.
//!
//! Every secret is opened, also one that already names the target (a label is no
//! proof), and every new text is read back and compared before it is handed out.

use thiserror::Error;

use crate::{
    envelope::{Envelope, ParseError, Plaintext, SealError},
    keyring::{KeyId, Keyring},
};

/// How many secrets a row has room for.
pub const FIELDS: usize = 3;

/// The columns of `tenant_identity_config` that hold envelopes, in the order of
/// [`Texts`].
pub const COLUMNS: [&str; FIELDS] = [
    "encrypted_signing_key_1",
    "encrypted_signing_key_2",
    "encrypted_auth_method_config",
];

/// The three secrets of a row as they stand in the database, in the order of
/// [`COLUMNS`]. `None` is NULL.
pub type Texts = [Option<String>; FIELDS];

/// What is to be done with a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Every secret opens under the target key; nothing is written.
    OnTarget {
        /// Fields that were verified.
        fields: u32,
    },
    /// The row's texts are to be replaced by these.
    Replace {
        /// All three texts: new ones, and the old ones where nothing changes.
        texts: Texts,
        /// Fields with a new text.
        reencrypted: u32,
        /// Fields that were on target already.
        on_target: u32,
    },
    /// The row stays as it is; one entry for each field that is wrong.
    Failed(Vec<FieldFailure>),
}

/// A field that can't be re-wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFailure {
    /// The column.
    pub column: &'static str,
    /// What is wrong with it.
    pub error: FieldError,
}

/// Why a field can't be re-wrapped, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FieldError {
    /// The text is not an envelope at all.
    #[error("unreadable envelope: {0}")]
    Unreadable(ParseError),
    /// An envelope of a version that this program does not know.
    #[error("unsupported scheme version: only version 1 is known")]
    SchemeVersion,
    /// The envelope names a key that is not in the secrets.
    #[error("key id {0:?} is not in the secrets: add that key and run again")]
    UnknownKey(KeyId),
    /// The envelope's key is there, and does not open it.
    #[error(
        "authentication failed under key id {0:?}, which the secrets have: \
         the text was altered, or that id has other key bytes here"
    )]
    NotAuthentic(KeyId),
    /// No randomness for a nonce.
    #[error("{0}")]
    Seal(#[from] SealError),
    /// The new text did not read back as what was sealed.
    #[error("the re-wrapped text did not read back as the same secret; nothing was written")]
    ReadBack,
}

impl From<ParseError> for FieldError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::SchemeVersion => Self::SchemeVersion,
            other => Self::Unreadable(other),
        }
    }
}

/// Decides about a row: opens every secret, and seals those that are not yet
/// under the target key anew.
#[must_use]
pub fn decide(keyring: &Keyring, texts: &Texts) -> Decision {
    let mut new_texts = Texts::default();
    let mut reencrypted = 0;
    let mut on_target = 0;
    let mut failures = Vec::new();

    for ((text, new_text), column) in texts.iter().zip(&mut new_texts).zip(COLUMNS) {
        new_text.clone_from(text);
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        match field(keyring, text) {
            Ok(None) => on_target += 1,
            Ok(rewrapped) => {
                reencrypted += 1;
                *new_text = rewrapped;
            }
            Err(error) => failures.push(FieldFailure { column, error }),
        }
    }

    if !failures.is_empty() {
        Decision::Failed(failures)
    } else if reencrypted == 0 {
        Decision::OnTarget { fields: on_target }
    } else {
        Decision::Replace {
            texts: new_texts,
            reencrypted,
            on_target,
        }
    }
}

/// The new text of a field, or `None` when it is on target.
fn field(keyring: &Keyring, text: &str) -> Result<Option<String>, FieldError> {
    let plaintext = open(keyring, text)?;
    let target = keyring.target();
    if plaintext.under == *target.id() {
        return Ok(None);
    }
    let rewrapped = Envelope::seal(target, &plaintext.bytes)?.to_text();
    match open(keyring, &rewrapped) {
        Ok(again) if again.under == *target.id() && again.bytes == plaintext.bytes => {
            Ok(Some(rewrapped))
        }
        _ => Err(FieldError::ReadBack),
    }
}

struct Opened {
    under: KeyId,
    bytes: Plaintext,
}

fn open(keyring: &Keyring, text: &str) -> Result<Opened, FieldError> {
    let envelope = Envelope::parse(text)?;
    let under = envelope.key_id().clone();
    let Some(kek) = keyring.get(&under) else {
        return Err(FieldError::UnknownKey(under));
    };
    match envelope.open(kek) {
        Ok(bytes) => Ok(Opened { under, bytes }),
        Err(_) => Err(FieldError::NotAuthentic(under)),
    }
}
