//! A census counts the secrets of a site by the key id that they name. It needs no key and
//! decrypts nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::rewrap::{COLUMN_COUNT, COLUMNS};

/// Maximum number of different key ids in a census. Secrets under further ids count as
/// unreadable, so that no key is called unused.
const MAX_KEY_IDS: usize = 10_000;

/// Maximum number of organizations that a census names for a key id.
const SAMPLES: usize = 10;

/// What a census finds in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CountedSecret {
    /// NULL, or an empty text.
    Absent,
    /// A text that names this key id.
    Under(String),
    /// A text from which no key id can be read.
    Unreadable,
}

/// The secrets of one organization, in the order of [`COLUMNS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CensusRow {
    /// The organization. Bytes that are not UTF-8 are replaced.
    pub organization_id: String,
    /// Its secrets.
    pub secrets: [CountedSecret; COLUMN_COUNT],
}

/// Where one key id is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyUse {
    /// Secrets under the key.
    pub secrets: u64,
    /// Organizations with a secret under the key.
    pub organizations: u64,
    /// Secrets under the key by column, in the order of [`COLUMNS`].
    pub by_column: [u64; COLUMN_COUNT],
    /// The first organizations that were read.
    pub sample_organization_ids: Vec<String>,
}

/// The counts of a census.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    /// Rows.
    pub rows: u64,
    /// Secrets that are not empty: the sum over all keys plus `unreadable`.
    pub secrets: u64,
    /// Secrets from whose text no key id can be read.
    pub unreadable: u64,
    /// The first organizations with an unreadable secret.
    pub unreadable_organization_ids: Vec<String>,
    /// By key id.
    pub keys: BTreeMap<String, KeyUse>,
}

impl Tally {
    /// Counts the secrets of one organization.
    pub fn add(&mut self, row: &CensusRow) {
        self.rows += 1;
        let mut unreadable = 0;
        for (column, secret) in row.secrets.iter().enumerate() {
            let id = match secret {
                CountedSecret::Absent => continue,
                CountedSecret::Unreadable => {
                    unreadable += 1;
                    continue;
                }
                CountedSecret::Under(id) => id,
            };
            // The organization counts once for each key id.
            let is_first = !row.secrets[..column].contains(secret);
            match self.key(id) {
                None => unreadable += 1,
                Some(key) => {
                    key.secrets += 1;
                    key.by_column[column] += 1;
                    if is_first {
                        key.organizations += 1;
                        sample(&mut key.sample_organization_ids, &row.organization_id);
                    }
                    self.secrets += 1;
                }
            }
        }
        if unreadable > 0 {
            self.secrets += unreadable;
            self.unreadable += unreadable;
            sample(&mut self.unreadable_organization_ids, &row.organization_id);
        }
    }

    fn key(&mut self, id: &str) -> Option<&mut KeyUse> {
        // Look up first: nearly every id is known, and an entry needs a copy.
        if !self.keys.contains_key(id) {
            if self.keys.len() >= MAX_KEY_IDS {
                return None;
            }
            self.keys.insert(id.to_owned(), KeyUse::default());
        }
        self.keys.get_mut(id)
    }
}

impl KeyUse {
    /// The numbers of secrets by the names of the columns.
    pub fn by_column(&self) -> impl Iterator<Item = (&'static str, u64)> {
        COLUMNS.into_iter().zip(self.by_column)
    }
}

fn sample(samples: &mut Vec<String>, organization_id: &str) {
    if samples.len() < SAMPLES {
        samples.push(organization_id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CountedSecret::{Absent, Unreadable};

    fn under(id: &str) -> CountedSecret {
        CountedSecret::Under(id.to_owned())
    }

    fn tally(rows: &[(&str, [CountedSecret; COLUMN_COUNT])]) -> Tally {
        let mut tally = Tally::default();
        for (organization_id, secrets) in rows {
            tally.add(&CensusRow {
                organization_id: (*organization_id).to_owned(),
                secrets: secrets.clone(),
            });
        }
        tally
    }

    #[test]
    fn every_secret_is_counted_once() {
        let tally = tally(&[
            ("a", [under("kv1"), under("kv1"), under("kv2")]),
            ("b", [under("kv2"), Absent, Unreadable]),
            ("c", [Absent, Absent, Absent]),
            ("d", [Unreadable, Unreadable, under("kv1")]),
        ]);
        let counts = |id: &str| {
            let key = &tally.keys[id];
            (key.secrets, key.organizations, key.by_column)
        };
        assert_eq!(counts("kv1"), (3, 2, [1, 1, 1]));
        assert_eq!(counts("kv2"), (2, 2, [1, 0, 1]));
        assert_eq!((tally.rows, tally.secrets, tally.unreadable), (4, 8, 3));
        assert_eq!(tally.keys["kv1"].sample_organization_ids, ["a", "d"]);
        assert_eq!(tally.unreadable_organization_ids, ["b", "d"]);
    }

    #[test]
    fn too_many_key_ids_count_as_unreadable() {
        let mut tally = Tally::default();
        for i in 0..=MAX_KEY_IDS {
            tally.add(&CensusRow {
                organization_id: format!("org{i}"),
                secrets: [under(&format!("key{i}")), under("key0"), Absent],
            });
        }
        let rows = MAX_KEY_IDS as u64 + 1;
        assert_eq!((tally.keys.len(), tally.unreadable), (MAX_KEY_IDS, 1));
        assert_eq!(tally.secrets, 2 * rows);
        let sum: u64 = tally.keys.values().map(|key| key.secrets).sum();
        assert_eq!(sum + tally.unreadable, tally.secrets);
        assert_eq!(tally.keys["key0"].sample_organization_ids.len(), SAMPLES);
    }
}
