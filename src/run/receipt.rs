//! Receipts: records of applies that can be checked later.
//!
//! Each receipt is one JSON document. `previous` is the SHA-256 of the previous receipt: if a
//! receipt is changed or removed, the chain breaks. Texts appear only as hashes.

use std::{collections::BTreeMap, fmt::Write, time::SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{
    Census, Scope,
    record::{Counts, RunRecord},
};
use crate::domain::rewrap::{COLUMNS, Envelopes};

/// The value of `previous` in the first receipt.
const FIRST: &str = "";

/// A secret that was re-wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    organization_id: Box<str>,
    column: &'static str,
    old: [u8; 32],
    new: [u8; 32],
}

/// The secrets that a run has re-wrapped, about 100 bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(Vec<Change>);

impl Changes {
    /// Adds a row whose texts were replaced.
    pub(super) fn add(&mut self, organization_id: &str, old: &Envelopes, new: &Envelopes) {
        for ((column, old), new) in COLUMNS.into_iter().zip(old).zip(new) {
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                self.0.push(Change {
                    organization_id: organization_id.into(),
                    column,
                    old: Sha256::digest(old).into(),
                    new: Sha256::digest(new).into(),
                });
            }
        }
    }

    /// Adds the changes of another part of the run.
    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// The SHA-256 of the sorted lines, in hexadecimal. A line is
    /// `organization_id,column,SHA-256 of the old text,SHA-256 of the new text` and a line
    /// feed.
    pub(super) fn sha256(mut self) -> String {
        let key = |change: &Change| format!("{},{}", change.organization_id, change.column);
        self.0.sort_by_cached_key(key);
        let mut hash = Sha256::new();
        for change in &self.0 {
            let (old, new) = (hex(&change.old), hex(&change.new));
            hash.update(format!(
                "{},{},{old},{new}\n",
                change.organization_id, change.column
            ));
        }
        hex(&hash.finalize())
    }
}

/// The receipt of an apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Receipt {
    /// The type of the document: `Receipt`.
    pub kind: String,
    /// The version of this form: 1.
    pub version: u32,
    /// The id of the run.
    pub run_id: String,
    /// The caller that started the run.
    pub caller: String,
    /// The instance that executed it.
    pub instance: String,
    /// Version and source revision of the program.
    pub build: String,
    /// When the run started: RFC 3339.
    pub start_time: String,
    /// When the run ended: RFC 3339.
    pub end_time: String,
    /// The organization, or `site`.
    pub scope: String,
    /// The target key id.
    pub target_key_id: String,
    /// The check value of each key that the instance held, by key id.
    pub check_values: BTreeMap<String, String>,
    /// The counters.
    pub counts: Counts,
    /// Whether the changes of the run survive a crash of the database.
    pub durable: bool,
    /// Secrets by key id in the last census before the run. `None` without such a census.
    pub census_before: Option<BTreeMap<String, u64>>,
    /// Secrets by key id in the census after the run. `None` without such a census.
    pub census_after: Option<BTreeMap<String, u64>>,
    /// The SHA-256 over the re-wrapped secrets.
    pub changes_sha256: String,
    /// The SHA-256 of the previous receipt. Empty in the first receipt.
    pub previous: String,
}

/// Why a file is not an unbroken chain of receipts.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BrokenChain {
    /// A line is not a receipt.
    #[error("line {0} is not a receipt of version 1")]
    NotAReceipt(usize),
    /// The `previous` of a line is not the SHA-256 of the line before it.
    #[error(
        "line {line} does not follow the line before it: `previous` is {found:.64}, and the SHA-256 \
         of that line is {expected}. A receipt was changed, removed or inserted"
    )]
    NotTheNext {
        /// The line.
        line: usize,
        /// `previous` of this line.
        found: String,
        /// The SHA-256 of the line before it.
        expected: String,
    },
}

impl Receipt {
    /// The receipt of an apply that is not in the chain yet.
    #[must_use]
    pub fn new(
        record: &RunRecord,
        build: &str,
        check_values: BTreeMap<String, String>,
        census_before: Option<&Census>,
        census_after: Option<&Census>,
        changes: Changes,
    ) -> Self {
        let by_key = |census: &Census| -> BTreeMap<String, u64> {
            let keys = census.tally.keys.iter();
            keys.map(|(id, key)| (id.clone(), key.secrets)).collect()
        };
        Self {
            kind: "Receipt".to_owned(),
            version: 1,
            run_id: record.id.clone(),
            caller: record.caller.clone(),
            instance: record.instance.clone(),
            build: build.to_owned(),
            start_time: time(record.start_time),
            end_time: record.end_time.map(time).unwrap_or_default(),
            scope: record.scope.to_string(),
            target_key_id: record.target_key_id.clone(),
            check_values,
            counts: record.counts.unwrap_or_default(),
            durable: record.durable,
            census_before: census_before.map(by_key),
            census_after: census_after.map(by_key),
            changes_sha256: changes.sha256(),
            previous: FIRST.to_owned(),
        }
    }

    /// When a site-wide apply without a failed row ended, if the census after it found every
    /// secret under its target key. A receipt does not say whether the run was stopped early, but
    /// the census does.
    #[must_use]
    pub fn end_of_clean_site_apply(document: &str) -> Option<SystemTime> {
        let receipt: Self = serde_json::from_str(document).ok()?;
        let after = receipt.census_after.as_ref()?;
        let is_on_target = after
            .iter()
            .all(|(id, secrets)| *id == receipt.target_key_id || *secrets == 0);
        let is_clean = receipt.counts.rows_failed == 0 && receipt.durable && is_on_target;
        let is_site = receipt.scope == Scope::Site.to_string();
        let end = humantime::parse_rfc3339(&receipt.end_time).ok();
        end.filter(|_| is_site && is_clean)
    }

    /// The document after the receipt with the hash `previous`, and the hash of the document.
    #[must_use]
    pub fn seal(&self, previous: &str) -> (String, String) {
        let receipt = Self {
            previous: previous.to_owned(),
            ..self.clone()
        };
        // All maps in it have strings as keys, so this cannot fail.
        let document = serde_json::to_string(&receipt).unwrap_or_default();
        let sha256 = sha256(&document);
        (document, sha256)
    }
}

/// The SHA-256 of a text, in hexadecimal.
#[must_use]
pub fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// Checks that each line is a receipt that follows the one before it. The first line may
/// follow a receipt that is not in the file. Returns the number of receipts.
///
/// # Errors
///
/// [`BrokenChain`] with the first bad line.
pub fn verify_chain(lines: &str) -> Result<usize, BrokenChain> {
    let mut expected = None;
    let mut receipts = 0;
    for (line, number) in lines.lines().zip(1..) {
        let receipt: Receipt =
            serde_json::from_str(line).map_err(|_| BrokenChain::NotAReceipt(number))?;
        if receipt.kind != "Receipt" || receipt.version != 1 {
            return Err(BrokenChain::NotAReceipt(number));
        }
        if let Some(expected) = expected.filter(|expected| *expected != receipt.previous) {
            return Err(BrokenChain::NotTheNext {
                line: number,
                found: receipt.previous,
                expected,
            });
        }
        expected = Some(sha256(line));
        receipts += 1;
    }
    Ok(receipts)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Envelopes {
        [Some(text.to_owned()), None, Some("same".to_owned())]
    }

    fn receipt(run_id: &str) -> Receipt {
        Receipt {
            kind: "Receipt".to_owned(),
            version: 1,
            run_id: run_id.to_owned(),
            caller: String::new(),
            instance: String::new(),
            build: String::new(),
            start_time: String::new(),
            end_time: String::new(),
            scope: "site".to_owned(),
            target_key_id: "kv2".to_owned(),
            check_values: BTreeMap::new(),
            counts: Counts::default(),
            durable: true,
            census_before: None,
            census_after: Some([("kv2".to_owned(), 3)].into()),
            changes_sha256: String::new(),
            previous: String::new(),
        }
    }

    #[test]
    fn the_hash_of_the_changes_does_not_depend_on_their_order() {
        let mut one = Changes::default();
        one.add("a-b", &texts("old"), &texts("new"));
        one.add("a", &texts("old"), &texts("new"));
        let mut other = Changes::default();
        other.add("a", &texts("old"), &texts("new"));
        let mut rest = Changes::default();
        rest.add("a-b", &texts("old"), &texts("new"));
        other.append(rest);
        // Lines sort by their bytes: the comma is before the hyphen.
        let lines: String = ["a", "a-b"]
            .map(|id| {
                let (old, new) = (sha256("old"), sha256("new"));
                format!("{id},encrypted_signing_key_1,{old},{new}\n")
            })
            .concat();
        assert_eq!(one.sha256(), sha256(&lines));
        assert_eq!(other.sha256(), sha256(&lines));
    }

    #[test]
    fn a_chain_shows_what_was_changed() {
        let mut previous = FIRST.to_owned();
        let mut lines = Vec::new();
        for id in ["1", "2", "3"] {
            let (document, sha256) = receipt(id).seal(&previous);
            previous = sha256;
            lines.push(document);
        }
        assert_eq!(verify_chain(&lines.join("\n")), Ok(3));
        assert_eq!(verify_chain(&lines[1..].join("\n")), Ok(2));
        let changed = lines[0].replace("kv2", "kv3") + "\n" + &lines[1];
        let removed = format!("{}\n{}", lines[0], lines[2]);
        for broken in [changed, removed] {
            let error = verify_chain(&broken).unwrap_err();
            assert!(
                matches!(error, BrokenChain::NotTheNext { line: 2, .. }),
                "{error}"
            );
        }
        for other in ["{}", "x", "{\"kind\":\"Receipt\"}"] {
            assert_eq!(verify_chain(other), Err(BrokenChain::NotAReceipt(1)));
        }
    }
}
