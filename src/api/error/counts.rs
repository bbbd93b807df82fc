//! The counts of a run that ended with an error.

use std::fmt;

use crate::run::{Report, record::Kind};

/// The counts of a run that ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    kind: Kind,
    durable: bool,
    rows_examined: u64,
    rows_updated: u64,
    rows_failed: u64,
    rows_in_doubt: u64,
}

impl Counts {
    /// The counts of a report. `durable` is false if a crash of Postgres could undo its writes.
    pub(in crate::api) fn of(report: &Report, kind: Kind, durable: bool) -> Self {
        Self {
            kind,
            durable,
            rows_examined: report.rows_examined(),
            rows_updated: report.counts.rows_updated,
            rows_failed: report.counts.rows_failed,
            rows_in_doubt: report.counts.rows_in_doubt,
        }
    }

    /// The counts, for the metadata of the error.
    pub(super) fn metadata(&self) -> [(&'static str, String); 6] {
        [
            ("dry_run", (self.kind == Kind::DryRun).to_string()),
            ("durable", self.durable.to_string()),
            ("rows_examined", self.rows_examined.to_string()),
            ("rows_updated", self.rows_updated.to_string()),
            ("rows_failed", self.rows_failed.to_string()),
            ("rows_in_doubt", self.rows_in_doubt.to_string()),
        ]
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let updated = match self.kind {
            Kind::DryRun => "to update",
            Kind::Apply | Kind::Verify | Kind::Census => "updated",
        };
        write!(
            f,
            "The run examined {} rows: {} {updated}, {} failed; {} in doubt",
            self.rows_examined, self.rows_updated, self.rows_failed, self.rows_in_doubt
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_one_sentence() {
        let mut report = Report::default();
        report.counts.rows_updated = 3;
        report.counts.rows_failed = 1;
        report.counts.rows_on_target = 2;
        report.counts.rows_in_doubt = 4;
        assert_eq!(
            Counts::of(&report, Kind::Apply, false).to_string(),
            "The run examined 6 rows: 3 updated, 1 failed; 4 in doubt"
        );
        assert_eq!(
            Counts::of(&report, Kind::DryRun, true).to_string(),
            "The run examined 6 rows: 3 to update, 1 failed; 4 in doubt"
        );
    }
}
