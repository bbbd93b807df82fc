//! Pages of lists.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::api::error::ServiceError;

/// The number of entries of a page. Zero means the default.
pub(super) fn page_size(requested: u32, default: u32, maximum: u32) -> u32 {
    match requested {
        0 => default,
        size => size.min(maximum),
    }
}

/// Where a page of failures begins: after this organization and column.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FailureToken(pub(super) String, pub(super) String);

impl FailureToken {
    /// The token of the page after this failure.
    pub(super) fn after(organization_id: &str, field: &str) -> String {
        let pair = serde_json::json!([organization_id, field]);
        URL_SAFE_NO_PAD.encode(pair.to_string())
    }

    /// Reads a token. An empty one is the first page.
    pub(super) fn parse(token: &str) -> Result<Self, ServiceError> {
        if token.is_empty() {
            return Ok(Self::default());
        }
        let json = URL_SAFE_NO_PAD.decode(token).ok();
        let pair = json.and_then(|json| serde_json::from_slice::<(String, String)>(&json).ok());
        pair.map(|(organization_id, field)| Self(organization_id, field))
            .ok_or(ServiceError::InvalidRun(
                "page_token is not one of this list: use next_page_token of the last answer",
            ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_a_failure() {
        let token = FailureToken::after("a\u{0}ü\"", "encrypted_signing_key_1");
        let expected = FailureToken("a\u{0}ü\"".to_owned(), "encrypted_signing_key_1".to_owned());
        assert_eq!(FailureToken::parse(&token).unwrap(), expected);
        assert_eq!(FailureToken::parse("").unwrap(), FailureToken::default());
        for wrong in ["x", "!", "e30"] {
            assert!(FailureToken::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_page_has_a_default_and_a_maximum() {
        assert_eq!(
            [0, 5, 500].map(|size| page_size(size, 20, 100)),
            [20, 5, 100]
        );
    }
}
