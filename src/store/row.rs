//! One row as it was read, and the version format of `tenants`.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio_postgres::Row as PgRow;

use super::{StoreError, VersionError};
use crate::domain::rewrap::{COLUMNS, Envelopes, OVERSIZED};

/// The secrets and the version of one organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The primary key of both tables.
    pub organization_id: String,
    /// The three secrets.
    pub texts: Envelopes,
    /// `tenants.version`; `None` if the organization has no row in `tenants`.
    pub version: Option<String>,
}

impl Row {
    pub(super) fn from_pg(row: &PgRow) -> Result<Self, StoreError> {
        let not_a_text = |column: &str| StoreError::not_a_text(column);
        let text = |index: usize, column: &str| {
            let text: Result<Option<String>, _> = row.try_get(index);
            text.map_err(|_| not_a_text(column))
        };
        let [first, second, third] = COLUMNS;
        Ok(Self {
            organization_id: text(0, "organization_id")?.unwrap_or_default(),
            texts: [text(1, first)?, text(2, second)?, text(3, third)?],
            version: text(4, "tenants.version")?,
        })
    }

    /// How much memory the texts use, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.texts.iter().flatten().map(String::len).sum()
    }

    /// Whether SQL replaced a text because it is too long.
    pub(super) fn is_cut(&self) -> bool {
        let mut texts = self.texts.iter().flatten();
        texts.any(|text| text == OVERSIZED)
    }
}

/// The version after `version`: the next number and the time `now`. The form is
/// `V<n>-T<microseconds>`, where `n` is an unsigned 64-bit number.
///
/// # Errors
///
/// [`VersionError`] when `version` can't be bumped.
pub(super) fn next_version(version: Option<&str>, now: SystemTime) -> Result<String, VersionError> {
    let counter = next_counter(version)?;
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("V{counter}-T{}", since_epoch.as_micros()))
}

/// The number in the version after `version`.
///
/// # Errors
///
/// [`VersionError`] when `version` can't be bumped.
pub fn next_counter(version: Option<&str>) -> Result<u64, VersionError> {
    let version = version.ok_or(VersionError::Missing)?;
    let (counter, micros) = version
        .strip_prefix('V')
        .and_then(|rest| rest.split_once("-T"))
        .filter(|(counter, micros)| is_number(counter) && is_number(micros))
        .ok_or(VersionError::Malformed)?;
    micros.parse::<i64>().map_err(|_| VersionError::Malformed)?;
    counter
        .parse::<u64>()
        .map_err(|_| VersionError::Malformed)?
        .checked_add(1)
        .ok_or(VersionError::Exhausted)
}

/// Only digits. `parse` alone would accept a leading plus sign.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bump_increments_the_number_and_sets_the_time() {
        let now = UNIX_EPOCH + std::time::Duration::from_micros(1_700_000_000_000_001);
        let bumped = next_version(Some("V41-T1666644937952267"), now);
        assert_eq!(bumped.as_deref(), Ok("V42-T1700000000000001"));
    }

    #[test]
    fn versions_of_nico_api_are_accepted() {
        assert_eq!(next_counter(Some("V1-T1666644937952267")), Ok(2));
        assert_eq!(next_counter(Some("V0-T0")), Ok(1));
        assert_eq!(next_counter(Some("V18446744073709551614-T1")), Ok(u64::MAX));
    }

    #[test]
    fn other_versions_are_refused() {
        for version in [
            "",
            "V",
            "V1",
            "V1-T",
            "V-T1",
            "1-T1",
            "v1-t1",
            "V1-T1 ",
            " V1-T1",
            "V+1-T1",
            "V-1-T1",
            "V1-T-1",
            "V1-T1-T1",
            "V1_T1",
            "V1.0-T1",
            "V18446744073709551616-T1",
            "V1-T9223372036854775808",
            "V١-T1",
        ] {
            assert_eq!(
                next_counter(Some(version)),
                Err(VersionError::Malformed),
                "{version:?}"
            );
        }
        assert_eq!(
            next_counter(Some("V18446744073709551615-T1")),
            Err(VersionError::Exhausted)
        );
        assert_eq!(next_counter(None), Err(VersionError::Missing));
    }
}
