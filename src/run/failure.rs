//! The failure of a secret or of a row.

use crate::{
    domain::{rewrap::FieldError, verify::VerifyError},
    store::RowError,
};

/// Maximum size of the tags and lengths of the message and its three fields.
const FAILURE_OVERHEAD: usize = 24;

/// The failure of one field or of a whole row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The organization of the row.
    pub organization_id: String,
    /// The column. Empty if the row as a whole failed.
    pub field: &'static str,
    /// The stable reason.
    pub reason: &'static str,
    /// The key id that the secret names; empty if it is unknown.
    pub key_id: String,
    /// What is wrong.
    pub error: String,
}

impl Failure {
    /// A secret that cannot be re-wrapped.
    pub(super) fn of_field(organization_id: &str, field: &'static str, error: &FieldError) -> Self {
        Self {
            organization_id: organization_id.to_owned(),
            field,
            reason: error.reason(),
            key_id: error.key_id().unwrap_or_default().to_owned(),
            error: error.to_string(),
        }
    }

    /// A secret that a verify finds bad.
    pub(super) fn of_secret(
        organization_id: &str,
        field: &'static str,
        error: &VerifyError,
    ) -> Self {
        Self {
            organization_id: organization_id.to_owned(),
            field,
            reason: error.reason(),
            key_id: error.key_id().unwrap_or_default().to_owned(),
            error: error.to_string(),
        }
    }

    /// A row, or one of its columns, that the database cannot read or write.
    pub(super) fn of_row(organization_id: &str, field: &'static str, error: &RowError) -> Self {
        Self {
            organization_id: organization_id.to_owned(),
            field,
            reason: error.reason(),
            key_id: String::new(),
            error: error.to_string(),
        }
    }

    /// The kind of the secret, in the words of nico-api, if the secret does not decrypt here.
    pub(super) fn undecrypted_kind(&self) -> Option<&'static str> {
        let is_closed = matches!(
            self.reason,
            "KEY_NOT_IN_SECRETS" | "NOT_AUTHENTIC" | "UNREADABLE_ENVELOPE" | "UNSUPPORTED_SCHEME"
        );
        match self.field {
            "encrypted_signing_key_1" | "encrypted_signing_key_2" if is_closed => {
                Some("signing_key")
            }
            "encrypted_auth_method_config" if is_closed => Some("token_delegation_auth"),
            _ => None,
        }
    }

    /// The size in a message, in bytes.
    pub(super) fn size(&self) -> usize {
        self.organization_id.len() + self.field.len() + self.error.len() + FAILURE_OVERHEAD
    }
}
