//! The counts and failures of a run.

use std::collections::BTreeMap;

use super::{
    Census, Failure, RunError,
    groups::{FailureGroup, FailureGroups},
    receipt::Changes,
    record::Counts,
};
use crate::{domain::rewrap::COLUMNS, store::RowError};

/// Maximum size of the kept failures, in bytes of text and message overhead: half of what a
/// gRPC client accepts by default (4 MiB).
const FAILURE_BYTES: usize = 2 << 20;

/// The outcome of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RowOutcome {
    /// The row was written. In a dry run: it would be written.
    Updated { reencrypted: u32, on_target: u32 },
    /// All fields are on target.
    OnTarget { fields: u32 },
    /// The row failed and was not changed.
    Failed(Vec<Failure>),
    /// A verify found every field good.
    Verified { on_target: u32, elsewhere: u32 },
    /// The row was deleted during the run, so there is nothing to re-wrap.
    Gone,
}

impl RowOutcome {
    /// A failure of the row as a whole.
    pub(super) fn row_failed(organization_id: &str, error: &RowError) -> Self {
        Self::Failed(vec![Failure::of_row(organization_id, "", error)])
    }

    /// The label value for metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Updated { .. } => "updated",
            Self::OnTarget { .. } | Self::Verified { .. } => "on_target",
            Self::Failed(_) => "failed",
            Self::Gone => "gone",
        }
    }
}

/// The counters of a run, and its failures.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// The counters.
    pub counts: Counts,
    /// Failures that were omitted because the report was full.
    pub failures_omitted: u64,
    /// By organization and column, in the order of the report.
    failures: BTreeMap<(String, usize), Failure>,
    failure_bytes: usize,
    groups: FailureGroups,
}

impl Report {
    /// A report that knows only the counts.
    #[must_use]
    pub(crate) fn of(counts: Counts) -> Self {
        Self {
            counts,
            ..Self::default()
        }
    }

    /// The number of rows that were evaluated.
    #[must_use]
    pub fn rows_examined(&self) -> u64 {
        self.counts.rows_examined()
    }

    /// All failures, by reason and key id.
    #[must_use]
    pub fn groups(&self) -> Vec<FailureGroup> {
        self.groups.to_vec()
    }

    /// The failures that were kept, in ascending order of the organization. They are the first
    /// failures in this order, even if the rows finished in another order.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.failures.values()
    }

    pub(super) fn add(&mut self, outcome: RowOutcome) {
        let counts = &mut self.counts;
        match outcome {
            RowOutcome::Updated {
                reencrypted,
                on_target,
            } => {
                counts.rows_updated += 1;
                counts.secrets_rewrapped += u64::from(reencrypted);
                counts.secrets_on_target += u64::from(on_target);
            }
            RowOutcome::OnTarget { fields } => {
                counts.rows_on_target += 1;
                counts.secrets_on_target += u64::from(fields);
            }
            RowOutcome::Verified {
                on_target,
                elsewhere,
            } => {
                counts.rows_on_target += 1;
                counts.secrets_on_target += u64::from(on_target);
                counts.secrets_verified += u64::from(on_target) + u64::from(elsewhere);
            }
            RowOutcome::Failed(failures) => {
                counts.rows_failed += 1;
                self.groups.add(&failures);
                for failure in failures {
                    self.add_failure(failure);
                }
            }
            RowOutcome::Gone => {}
        }
    }

    fn add_failure(&mut self, failure: Failure) {
        let column = COLUMNS.iter().position(|column| *column == failure.field);
        let key = (
            failure.organization_id.clone(),
            column.map_or(0, |column| column + 1),
        );
        self.failure_bytes += failure.size();
        self.failures.insert(key, failure);
        while self.failure_bytes > FAILURE_BYTES
            && let Some((_, last)) = self.failures.pop_last()
        {
            self.failure_bytes -= last.size();
            self.failures_omitted += 1;
        }
    }
}

/// How a run ended, and its counts until then.
#[derive(Debug)]
pub struct Ended<E = RunError> {
    /// The counts. A run that ended early has counts too.
    pub report: Report,
    /// Whether everything in the report survives a crash of Postgres.
    pub durable: bool,
    /// The result of a census.
    pub census: Option<Census>,
    /// The changes of an apply, if a receipt was requested.
    pub changes: Changes,
    /// The error if the report is not complete.
    pub result: Result<(), E>,
}

impl<E> Ended<E> {
    /// A run that ended before it read a row.
    #[must_use]
    pub fn without_rows(result: Result<(), E>) -> Self {
        Self {
            report: Report::default(),
            durable: true,
            census: None,
            changes: Changes::default(),
            result,
        }
    }
}

impl Ended {
    /// Converts the error.
    pub fn map_err<E>(self, map: impl FnOnce(RunError) -> E) -> Ended<E> {
        Ended {
            report: self.report,
            durable: self.durable,
            census: self.census,
            changes: self.changes,
            result: self.result.map_err(map),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(organization_id: &str, error_bytes: usize) -> RowOutcome {
        RowOutcome::Failed(vec![Failure {
            organization_id: organization_id.to_owned(),
            field: COLUMNS[0],
            reason: "REFUSED",
            key_id: String::new(),
            error: "x".repeat(error_bytes),
        }])
    }

    #[test]
    fn a_long_report_keeps_the_first_failures_and_every_count() {
        let mut report = Report::default();
        // The last organization finishes first.
        for i in (0..3000).rev() {
            report.add(failed(&format!("org{i:04}"), 1000));
        }
        assert_eq!(report.counts.rows_failed, 3000);
        let kept: Vec<_> = report.failures().collect();
        assert_eq!(kept.len() as u64 + report.failures_omitted, 3000);
        assert!(report.failures_omitted > 0);
        assert!(kept.iter().map(|failure| failure.size()).sum::<usize>() <= FAILURE_BYTES);
        for (i, failure) in kept.iter().enumerate() {
            assert_eq!(failure.organization_id, format!("org{i:04}"));
        }
    }

    #[test]
    fn a_row_that_is_gone_is_not_counted() {
        let mut report = Report::default();
        report.add(RowOutcome::Gone);
        assert_eq!(report, Report::default());
    }
}
