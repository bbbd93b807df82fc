//! Refuses a reload whose revocation list is older than the loaded one. An old list lacks the
//! newest revocations, so a revoked certificate would be accepted again.

use std::{collections::BTreeMap, fmt};

use super::{TlsError, format_time};

/// The age of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Age {
    /// thisUpdate, in seconds since the epoch.
    pub(super) this_update: i64,
    /// The cRLNumber (RFC 5280, 5.2.3), big endian without leading zeros. Empty if the list
    /// has no number.
    pub(super) number: Vec<u8>,
    /// The cRLNumber in decimal, for messages.
    pub(super) number_text: Option<String>,
}

impl Age {
    /// Whether the number or the time goes back. A CA increases both with every list. For a
    /// list without a number, only the time counts.
    fn is_before(&self, other: &Self) -> bool {
        let both_numbered = !self.number.is_empty() && !other.number.is_empty();
        let order = |age: &Self| (age.number.len(), age.number.clone());
        self.this_update < other.this_update || (both_numbered && order(self) < order(other))
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number_text.as_deref().unwrap_or("none");
        let time = format_time(self.this_update);
        write!(f, "cRLNumber {number}, thisUpdate {time}")
    }
}

/// The issuer and the key of a list.
pub(super) type Issuer = (Vec<u8>, Option<Vec<u8>>);

/// The ages of the lists that count: the newest one of each key.
#[derive(Default)]
pub(super) struct Ages(BTreeMap<Issuer, (Age, String)>);

impl Ages {
    /// The ages of lists, with the names of their issuers. The lists are sorted, the newest
    /// first.
    pub(super) fn of(lists: impl Iterator<Item = (Issuer, Age, String)>) -> Self {
        let mut ages = BTreeMap::new();
        for (issuer, age, name) in lists {
            ages.entry(issuer).or_insert((age, name));
        }
        Self(ages)
    }

    /// Checks that no list is older than the loaded one of the same key.
    pub(super) fn check_not_before(&self, loaded: &Self) -> Result<(), TlsError> {
        for (issuer, (age, name)) in &self.0 {
            if let Some((loaded, _)) = loaded.0.get(issuer)
                && age.is_before(loaded)
            {
                return Err(TlsError::OlderCrl {
                    issuer: name.clone(),
                    found: age.to_string(),
                    loaded: loaded.to_string(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(this_update: i64, number: &[u8]) -> Age {
        Age {
            this_update,
            number: number.to_vec(),
            number_text: None,
        }
    }

    #[test]
    fn a_list_is_older_if_its_number_or_its_time_goes_back() {
        let loaded = age(100, &[5]);
        for older in [age(99, &[5]), age(101, &[4]), age(99, &[6]), age(99, &[])] {
            assert!(older.is_before(&loaded), "{older:?}");
        }
        for as_new in [age(100, &[5]), age(101, &[5]), age(100, &[1, 0])] {
            assert!(!as_new.is_before(&loaded), "{as_new:?}");
        }
        assert!(!age(100, &[]).is_before(&loaded));
        assert!(!age(101, &[1]).is_before(&age(100, &[])));
    }
}
