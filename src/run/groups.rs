//! Groups the failures of a run by reason and key id, so that an operator sees a few causes
//! instead of many rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Failure;

/// Maximum number of groups. Failures of further key ids are counted without a key id.
const MAX_GROUPS: usize = 1000;

/// Maximum size of the key ids and of the organization ids in all groups, in bytes: an answer with a
/// few runs must stay below what a gRPC client accepts by default (4 MiB).
const MAX_BYTES: usize = 256 << 10;

/// Maximum number of organizations that a group names.
const SAMPLES: usize = 10;

/// Failures with one reason and one key id.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureGroup {
    /// The stable reason.
    pub reason: String,
    /// The key id; empty if the failures name no key id.
    pub key_id: String,
    /// Secrets. A row that failed as a whole counts as one.
    pub secrets: u64,
    /// Organizations.
    pub organizations: u64,
    /// Up to ten of the organizations.
    pub sample_organization_ids: Vec<String>,
}

/// The groups of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FailureGroups {
    groups: BTreeMap<(&'static str, String), FailureGroup>,
    /// The size of the key ids and of the organization ids.
    bytes: usize,
}

impl FailureGroups {
    /// Adds the failures of one row.
    pub(super) fn add(&mut self, failures: &[Failure]) {
        let keys: Vec<_> = failures.iter().map(|failure| self.key(failure)).collect();
        for (i, (failure, key)) in failures.iter().zip(&keys).enumerate() {
            let is_first = !keys[..i].contains(key);
            if !self.groups.contains_key(key) {
                self.bytes += key.1.len();
            }
            let group = self
                .groups
                .entry(key.clone())
                .or_insert_with(|| FailureGroup {
                    reason: key.0.to_owned(),
                    key_id: key.1.clone(),
                    ..FailureGroup::default()
                });
            group.secrets += 1;
            if is_first {
                group.organizations += 1;
                let id = &failure.organization_id;
                if group.sample_organization_ids.len() < SAMPLES && self.bytes < MAX_BYTES {
                    self.bytes += id.len();
                    group.sample_organization_ids.push(id.clone());
                }
            }
        }
    }

    /// The key of a failure's group. If there are too many groups, the key id is left out.
    fn key(&self, failure: &Failure) -> (&'static str, String) {
        let key = (failure.reason, failure.key_id.clone());
        let is_full = self.groups.len() >= MAX_GROUPS || self.bytes >= MAX_BYTES;
        if is_full && !self.groups.contains_key(&key) {
            return (failure.reason, String::new());
        }
        key
    }

    /// The groups, the largest first.
    pub(super) fn to_vec(&self) -> Vec<FailureGroup> {
        let mut groups: Vec<_> = self.groups.values().cloned().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.secrets));
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(organization_id: &str, reason: &'static str, key_id: &str) -> Failure {
        Failure {
            organization_id: organization_id.to_owned(),
            field: "",
            reason,
            key_id: key_id.to_owned(),
            error: String::new(),
        }
    }

    #[test]
    fn an_organization_counts_once_in_each_group() {
        let mut groups = FailureGroups::default();
        groups.add(&[
            failure("a", "NOT_AUTHENTIC", "kv1"),
            failure("a", "NOT_AUTHENTIC", "kv1"),
            failure("a", "NOT_AUTHENTIC", "kv2"),
        ]);
        groups.add(&[failure("b", "NOT_AUTHENTIC", "kv1")]);
        let groups = groups.to_vec();
        let counts = |i: usize| {
            let group = &groups[i];
            (group.key_id.as_str(), group.secrets, group.organizations)
        };
        assert_eq!((counts(0), counts(1)), (("kv1", 3, 2), ("kv2", 1, 1)));
        assert_eq!(groups[0].sample_organization_ids, ["a", "b"]);
    }

    #[test]
    fn the_number_of_groups_is_limited() {
        let mut groups = FailureGroups::default();
        for i in 0..2 * MAX_GROUPS {
            groups.add(&[failure("a", "KEY_NOT_IN_SECRETS", &format!("key{i}"))]);
        }
        let groups = groups.to_vec();
        assert!(groups.len() <= MAX_GROUPS + 1);
        let sum: u64 = groups.iter().map(|group| group.secrets).sum();
        assert_eq!(sum, 2 * MAX_GROUPS as u64);
        assert_eq!(groups[0].key_id, "");
    }

    #[test]
    fn the_size_of_the_groups_is_limited() {
        let mut groups = FailureGroups::default();
        let (organization_id, key_id) = ("o".repeat(2000), "k".repeat(250));
        for i in 0..MAX_GROUPS {
            groups.add(&[failure(
                &organization_id,
                "NOT_AUTHENTIC",
                &format!("{key_id}{i}"),
            )]);
        }
        let groups = groups.to_vec();
        let size = |group: &FailureGroup| {
            let samples = group.sample_organization_ids.iter().map(String::len);
            group.key_id.len() + samples.sum::<usize>()
        };
        let bytes: usize = groups.iter().map(size).sum();
        assert!((MAX_BYTES / 2..2 * MAX_BYTES).contains(&bytes), "{bytes}");
        let sum: u64 = groups.iter().map(|group| group.secrets).sum();
        assert_eq!(sum, MAX_GROUPS as u64);
    }

    #[test]
    fn an_organization_counts_once_in_the_group_of_many_keys() {
        let mut groups = FailureGroups::default();
        for i in 0..MAX_GROUPS {
            groups.add(&[failure("a", "NOT_AUTHENTIC", &format!("key{i}"))]);
        }
        let further = ["x", "y"].map(|key_id| failure("b", "NOT_AUTHENTIC", key_id));
        groups.add(&further);
        let groups = groups.to_vec();
        let rest = groups.iter().find(|group| group.key_id.is_empty()).unwrap();
        assert_eq!((rest.secrets, rest.organizations), (2, 1));
    }
}
