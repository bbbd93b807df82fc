//! The version of a tenant, by which other programs detect outdated caches:
//! `V<n>-T<microseconds since the epoch>`.

use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;

/// A value of `tenants.version` that has a next version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantVersion {
    text: String,
    /// The number of the next version.
    next: u64,
}

/// Why `tenants.version` can't be bumped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VersionError {
    /// It is not of the form `V<n>-T<microseconds>`.
    #[error(
        "tenants.version is not of the form V<number>-T<microseconds>: \
         nothing was written; correct it and run again"
    )]
    Malformed,
    /// The number has reached its maximum.
    #[error("tenants.version has reached its highest number: nothing was written")]
    Exhausted,
    /// The organization has no row in `tenants`.
    #[error("the organization has no row in tenants: nothing was written")]
    Missing,
}

impl TenantVersion {
    /// Reads a version. `None` means that the organization has no row in `tenants`.
    ///
    /// # Errors
    ///
    /// [`VersionError`] if there is no next version.
    pub fn parse(text: Option<String>) -> Result<Self, VersionError> {
        let text = text.ok_or(VersionError::Missing)?;
        let next = next_number(&text)?;
        Ok(Self { text, next })
    }

    /// The version as it is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The next version: the next number and the time `now`.
    #[must_use]
    pub fn next(&self, now: SystemTime) -> String {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("V{}-T{}", self.next, since_epoch.as_micros())
    }
}

fn next_number(version: &str) -> Result<u64, VersionError> {
    let (number, micros) = version
        .strip_prefix('V')
        .and_then(|rest| rest.split_once("-T"))
        .filter(|(number, micros)| is_number(number) && is_number(micros))
        .ok_or(VersionError::Malformed)?;
    micros.parse::<i64>().map_err(|_| VersionError::Malformed)?;
    number
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
        let version = TenantVersion::parse(Some("V41-T1666644937952267".to_owned())).unwrap();
        assert_eq!(version.next(now), "V42-T1700000000000001");
        assert_eq!(version.as_str(), "V41-T1666644937952267");
    }

    #[test]
    fn versions_of_nico_api_are_accepted() {
        assert_eq!(next_number("V1-T1666644937952267"), Ok(2));
        assert_eq!(next_number("V0-T0"), Ok(1));
        assert_eq!(next_number("V18446744073709551614-T1"), Ok(u64::MAX));
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
                next_number(version),
                Err(VersionError::Malformed),
                "{version:?}"
            );
        }
        assert_eq!(
            next_number("V18446744073709551615-T1"),
            Err(VersionError::Exhausted)
        );
        assert_eq!(TenantVersion::parse(None), Err(VersionError::Missing));
    }
}
