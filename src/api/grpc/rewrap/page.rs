//! Pages of lists.

use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use prost::Message;
use uuid::Uuid;

use crate::{api::error::ServiceError, domain::rewrap::COLUMNS, run::history::RunPosition};

/// Maximum size of the entries of a page, in bytes: far below what a gRPC client accepts by default
/// (4 MiB). A page has at least one entry.
const PAGE_BYTES: usize = 1 << 20;

/// Maximum time in a token, in microseconds: the end of the year 9999.
const MAX_MICROSECONDS: u64 = 253_402_300_799_999_999;

const WRONG_TOKEN: ServiceError = ServiceError::InvalidRun(
    "page_token does not belong to this list: use next_page_token of the previous answer",
);

/// How many of the first entries fit into a page.
pub(super) fn fitting<M: Message>(entries: &[M]) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&M| {
        bytes += entry.encoded_len();
        bytes <= PAGE_BYTES
    };
    let count = entries.iter().take_while(fits).count();
    count.max(1).min(entries.len())
}

/// The token of the page of runs after this position. It contains the position itself, so it stays
/// valid if the run is deleted.
pub(super) fn run_token(position: &RunPosition) -> String {
    let since = position.started.duration_since(UNIX_EPOCH);
    let microseconds = since.unwrap_or_default().as_micros();
    let pair = serde_json::json!([microseconds.to_string(), position.id]);
    URL_SAFE_NO_PAD.encode(pair.to_string())
}

/// Reads the token of a page of runs. `None` is the first page.
pub(super) fn parse_run_token(token: &str) -> Result<Option<RunPosition>, ServiceError> {
    if token.is_empty() {
        return Ok(None);
    }
    let position = || {
        let (microseconds, id) = pair(token)?;
        let microseconds: u64 = microseconds.parse().ok()?;
        Uuid::parse_str(&id).ok()?;
        let position = RunPosition {
            started: UNIX_EPOCH + Duration::from_micros(microseconds),
            id,
        };
        let is_own = microseconds <= MAX_MICROSECONDS && run_token(&position) == token;
        is_own.then_some(position)
    };
    position().map(Some).ok_or(WRONG_TOKEN)
}

/// The two texts in a token.
fn pair(token: &str) -> Option<(String, String)> {
    let json = URL_SAFE_NO_PAD.decode(token).ok()?;
    serde_json::from_slice(&json).ok()
}

/// The number of entries of a page. Zero means the default.
pub(super) fn page_size(requested: u32, default: u32, maximum: u32) -> u32 {
    match requested {
        0 => default,
        size => size.min(maximum),
    }
}

/// The position of a page of failures: it begins after this organization and column.
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
        let pair = pair(token).filter(|(organization_id, field)| {
            // Postgres stores no NUL in a text.
            !organization_id.contains('\0')
                && (field.is_empty() || COLUMNS.contains(&field.as_str()))
        });
        let (organization_id, field) = pair.ok_or(WRONG_TOKEN)?;
        Ok(Self(organization_id, field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_a_failure() {
        let token = FailureToken::after("aü\"", "encrypted_signing_key_1");
        let expected = FailureToken("aü\"".to_owned(), "encrypted_signing_key_1".to_owned());
        assert_eq!(FailureToken::parse(&token).unwrap(), expected);
        assert_eq!(FailureToken::parse("").unwrap(), FailureToken::default());
        let nul = FailureToken::after("a\0", "");
        let other = FailureToken::after("a", "issuer");
        for wrong in ["x", "!", "e30", &nul, &other] {
            assert!(FailureToken::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_of_runs_has_a_time_and_an_id() {
        let position = RunPosition {
            started: UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
            id: Uuid::from_u128(7).to_string(),
        };
        let token = run_token(&position);
        assert_eq!(parse_run_token(&token).unwrap(), Some(position.clone()));
        assert_eq!(parse_run_token("").unwrap(), None);
        let late = run_token(&RunPosition {
            started: UNIX_EPOCH + Duration::from_micros(MAX_MICROSECONDS + 1),
            ..position.clone()
        });
        let no_run = run_token(&RunPosition {
            id: "a\0".to_owned(),
            ..position.clone()
        });
        let longer = format!("{token}A");
        let failure = FailureToken::after("a", "");
        for wrong in [&position.id, "x", &late, &no_run, &longer, &failure] {
            assert!(parse_run_token(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_page_ends_before_it_is_too_large() {
        let text = |length: usize| "x".repeat(length);
        assert_eq!(fitting::<String>(&[]), 0);
        assert_eq!(fitting(&[text(PAGE_BYTES), text(1)]), 1);
        assert_eq!(fitting(&[text(2 * PAGE_BYTES), text(1)]), 1);
        assert_eq!(
            fitting(&[
                text(PAGE_BYTES / 2 - 10),
                text(PAGE_BYTES / 2 - 10),
                text(100)
            ]),
            2
        );
    }

    #[test]
    fn a_page_has_a_default_and_a_maximum() {
        assert_eq!(
            [0, 5, 500].map(|size| page_size(size, 20, 100)),
            [20, 5, 100]
        );
    }
}
