//! Validation of organization ids from callers.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The id of an organization: one or more ASCII letters, digits, `_` or `-`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OrganizationId(String);

/// A text that is not an organization id. The message does not quote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidOrganizationId {
    /// Empty or only white space. The usual cause is an unset shell variable.
    #[error(
        "organization_id is blank: name one organization, or leave the field out for the \
         whole site"
    )]
    Blank,
    /// The text contains other characters.
    #[error("organization_id has characters other than ASCII letters, digits, '_' and '-'")]
    Characters,
}

impl OrganizationId {
    /// Trims white space and checks the rest.
    ///
    /// # Errors
    ///
    /// [`InvalidOrganizationId`] if the text is not an id.
    pub fn parse(text: &str) -> Result<Self, InvalidOrganizationId> {
        let id = text.trim();
        if id.is_empty() {
            return Err(InvalidOrganizationId::Blank);
        }
        if id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        {
            Ok(Self(id.to_owned()))
        } else {
            Err(InvalidOrganizationId::Characters)
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for OrganizationId {
    type Error = InvalidOrganizationId;

    fn try_from(text: String) -> Result<Self, InvalidOrganizationId> {
        Self::parse(&text)
    }
}

impl From<OrganizationId> for String {
    fn from(id: OrganizationId) -> Self {
        id.0
    }
}

/// A format precision truncates the id, for messages whose length is limited.
impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_trimmed_and_checked() {
        for (text, id) in [("acme", "acme"), (" \t acme-1_B\n", "acme-1_B"), ("-", "-")] {
            assert_eq!(OrganizationId::parse(text).unwrap().as_str(), id);
        }
        for blank in ["", " ", "\t\n", "\u{a0}"] {
            assert_eq!(
                OrganizationId::parse(blank),
                Err(InvalidOrganizationId::Blank)
            );
        }
        for text in ["a b", "a.b", "é", "a/b", "a%", "*", "a\0"] {
            assert_eq!(
                OrganizationId::parse(text),
                Err(InvalidOrganizationId::Characters)
            );
        }
    }
}
