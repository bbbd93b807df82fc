//! Groups the failures of a run by reason and key id, so that an operator sees a few causes
//! instead of many rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Failure;

/// Maximum number of groups. Failures of further key ids are counted without a key id.
const MAX_GROUPS: usize = 1000;

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
    /// Some of the organizations.
    pub sample_organization_ids: Vec<String>,
}

/// The groups of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FailureGroups(BTreeMap<(&'static str, String), FailureGroup>);

impl FailureGroups {
    /// Adds the failures of one row.
    pub(super) fn add(&mut self, failures: &[Failure]) {
        for (i, failure) in failures.iter().enumerate() {
            let same = |other: &Failure| {
                (other.reason, &other.key_id) == (failure.reason, &failure.key_id)
            };
            let is_first = !failures[..i].iter().any(same);
            let group = self.group(failure.reason, &failure.key_id);
            group.secrets += 1;
            if is_first {
                group.organizations += 1;
                if group.sample_organization_ids.len() < SAMPLES {
                    let id = failure.organization_id.clone();
                    group.sample_organization_ids.push(id);
                }
            }
        }
    }

    fn group(&mut self, reason: &'static str, key_id: &str) -> &mut FailureGroup {
        let mut key = (reason, key_id.to_owned());
        if self.0.len() >= MAX_GROUPS && !self.0.contains_key(&key) {
            key.1.clear();
        }
        let group = FailureGroup {
            reason: reason.to_owned(),
            key_id: key.1.clone(),
            ..FailureGroup::default()
        };
        self.0.entry(key).or_insert(group)
    }

    /// The groups, the largest first.
    pub(super) fn to_vec(&self) -> Vec<FailureGroup> {
        let mut groups: Vec<_> = self.0.values().cloned().collect();
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
}
