//! Verifies a row: decrypts its secrets and checks their content.
//!
//! An envelope that was copied from another organization decrypts like any other. A verify
//! therefore compares each signing key with the public key that nico-api stored next to it,
//! and checks whether a delegation secret has the form that nico-api writes.

mod signing_key;

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use self::signing_key::{SigningKeyError, check_signing_key};
use crate::domain::{
    envelope::Buffers,
    keyring::{Keyring, wipe_stack},
    rewrap::{COLUMNS, Envelopes, FieldError, open},
};

/// The parts of a row that a verify reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyRow {
    /// The secrets.
    pub texts: Envelopes,
    /// `signing_key_public_1` and `signing_key_public_2`, as JSON text.
    pub public_keys: [Option<String>; 2],
    /// `auth_method`.
    pub auth_method: Option<String>,
}

/// The result of verifying a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// Every secret decrypts, and has the content that belongs in its column.
    Good {
        /// The number of secrets under the target key.
        on_target: u32,
        /// The number of secrets under other keys.
        elsewhere: u32,
    },
    /// One entry for each bad secret.
    Bad(Vec<(&'static str, VerifyError)>),
}

/// Why a secret is not good. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VerifyError {
    /// It cannot be decrypted.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// It is not a P-256 private key in PKCS#8 PEM.
    #[error(
        "the secret under key id {:?} is not a P-256 private key in PKCS#8 PEM: create the signing \
         key again with nico-api",
        .0
    )]
    NotASigningKey(String),
    /// The row has no public key for this private key.
    #[error(
        "{0} has no P-256 public key, so the signing key cannot be compared: create the signing \
         key again with nico-api"
    )]
    PublicKeyMissing(&'static str),
    /// The private key belongs to another public key.
    #[error(
        "the private key does not belong to {0}: the secret was copied from another row or slot; \
         restore the row from a backup, or create the signing key again with nico-api"
    )]
    WrongKeyPair(&'static str),
    /// It is not the JSON of a token delegation.
    #[error(
        "the secret under key id {:?} is not the JSON of a token delegation: set the token \
         delegation again with nico-api",
        .0
    )]
    NotADelegation(String),
}

impl VerifyError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Field(error) => error.reason(),
            Self::NotASigningKey(_) => "NOT_A_SIGNING_KEY",
            Self::PublicKeyMissing(_) => "PUBLIC_KEY_MISSING",
            Self::WrongKeyPair(_) => "WRONG_KEY_PAIR",
            Self::NotADelegation(_) => "NOT_A_DELEGATION",
        }
    }

    /// The key id that the envelope names, if it is known.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Self::Field(error) => error.key_id(),
            Self::NotASigningKey(id) | Self::NotADelegation(id) => Some(id),
            Self::PublicKeyMissing(_) | Self::WrongKeyPair(_) => None,
        }
    }
}

/// The columns with the public keys, in the order of [`VerifyRow::public_keys`].
const PUBLIC_COLUMNS: [&str; 2] = ["signing_key_public_1", "signing_key_public_2"];

/// Decrypts every secret of a row and checks its content.
#[must_use]
pub fn verify(keyring: &Keyring, row: &VerifyRow, buffers: &mut Buffers) -> Verified {
    let (mut on_target, mut elsewhere) = (0, 0);
    let mut bad = Vec::new();
    for (column, (name, text)) in COLUMNS.into_iter().zip(&row.texts).enumerate() {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        match verify_secret(keyring, row, column, text, buffers) {
            Ok(true) => on_target += 1,
            Ok(false) => elsewhere += 1,
            Err(error) => bad.push((name, error)),
        }
    }
    wipe_stack();
    if bad.is_empty() {
        Verified::Good {
            on_target,
            elsewhere,
        }
    } else {
        Verified::Bad(bad)
    }
}

/// Whether the secret is under the target key. Not inlined, so that its whole stack frame is
/// wiped afterwards.
#[inline(never)]
fn verify_secret(
    keyring: &Keyring,
    row: &VerifyRow,
    column: usize,
    text: &str,
    buffers: &mut Buffers,
) -> Result<bool, VerifyError> {
    let opened = open(keyring, text, buffers)?;
    let (key_id, plaintext) = (opened.kek.id(), opened.plaintext.expose());
    if let Some(public_column) = PUBLIC_COLUMNS.get(column) {
        let public_key = row.public_keys[column].as_deref();
        check_signing_key(plaintext, public_key).map_err(|error| match error {
            SigningKeyError::Private => VerifyError::NotASigningKey(key_id.to_string()),
            SigningKeyError::Public => VerifyError::PublicKeyMissing(public_column),
            SigningKeyError::Pair => VerifyError::WrongKeyPair(public_column),
        })?;
    } else if !is_delegation(plaintext, row.auth_method.as_deref()) {
        return Err(VerifyError::NotADelegation(key_id.to_string()));
    }
    Ok(key_id == keyring.target().id())
}

/// Whether this is what nico-api stores for a token delegation: client id and client secret,
/// or an empty object if the method is `none`.
fn is_delegation(plaintext: &[u8], auth_method: Option<&str>) -> bool {
    // Raw values are not copied.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ClientSecret<'a> {
        #[serde(borrow)]
        client_id: &'a RawValue,
        #[serde(borrow)]
        client_secret: &'a RawValue,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    // serde accepts an array in place of an object.
    if plaintext.trim_ascii_start().first() != Some(&b'{') {
        return false;
    }
    if auth_method == Some("none") {
        return serde_json::from_slice::<Nothing>(plaintext).is_ok();
    }
    let is_string = |value: &RawValue| value.get().starts_with('"');
    serde_json::from_slice::<ClientSecret<'_>>(plaintext)
        .is_ok_and(|secret| is_string(secret.client_id) && is_string(secret.client_secret))
}

#[cfg(test)]
mod tests;
