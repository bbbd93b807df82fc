//! What a run found and did.

use std::collections::BTreeMap;

use super::RunError;
use crate::domain::rewrap::COLUMNS;

/// Failures are kept up to this many bytes of text and message overhead: half of
/// what a gRPC client takes by default (4 MiB).
const FAILURE_BYTES: usize = 2 << 20;

/// Tag and length of the message and of its three fields, at most.
const FAILURE_OVERHEAD: usize = 24;

/// One field that could not be re-wrapped, or a whole row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The organization of the row.
    pub organization_id: String,
    /// The column; empty for the row as a whole.
    pub field: &'static str,
    /// What is wrong.
    pub error: String,
}

impl Failure {
    fn size(&self) -> usize {
        self.organization_id.len() + self.field.len() + self.error.len() + FAILURE_OVERHEAD
    }
}

/// What became of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RowOutcome {
    /// Written, or in a dry run would be.
    Updated { reencrypted: u32, on_target: u32 },
    /// Nothing to do.
    OnTarget { fields: u32 },
    /// Left as it was.
    Failed(Vec<Failure>),
    /// Deleted meanwhile: nothing is left to re-wrap.
    Gone,
}

impl RowOutcome {
    /// The row as a whole failed.
    pub(super) fn row_failed(organization_id: &str, error: String) -> Self {
        Self::Failed(vec![Failure {
            organization_id: organization_id.to_owned(),
            field: "",
            error,
        }])
    }

    /// For metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Updated { .. } => "updated",
            Self::OnTarget { .. } => "on_target",
            Self::Failed(_) => "failed",
            Self::Gone => "gone",
        }
    }
}

/// The counters of the contract, and the failures. Counters stop at the highest
/// number instead of starting over.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Rows in which at least one field was re-wrapped, or would be.
    pub rows_updated: u32,
    /// Rows with nothing to do.
    pub rows_on_target: u32,
    /// Rows that stayed as they were for a failure.
    pub rows_failed: u32,
    /// Fields that were re-wrapped, or would be.
    pub fields_reencrypted: u32,
    /// Fields that opened under the target key.
    pub fields_on_target: u32,
    /// Rows whose last write has an unknown outcome. They are in no other counter.
    pub rows_in_doubt: u64,
    /// Failures that did not fit.
    pub failures_omitted: u64,
    /// By organization and column, which is also the order of the report.
    failures: BTreeMap<(String, usize), Failure>,
    failure_bytes: usize,
}

impl Report {
    /// Rows evaluated.
    #[must_use]
    pub fn rows_examined(&self) -> u32 {
        self.rows_updated
            .saturating_add(self.rows_on_target)
            .saturating_add(self.rows_failed)
    }

    /// The failures that fit, in ascending order of the organization: the first
    /// ones, whatever order the rows were finished in.
    pub fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.failures.values()
    }

    pub(super) fn add(&mut self, outcome: RowOutcome) {
        let count = |counter: &mut u32, by: u32| *counter = counter.saturating_add(by);
        match outcome {
            RowOutcome::Updated {
                reencrypted,
                on_target,
            } => {
                count(&mut self.rows_updated, 1);
                count(&mut self.fields_reencrypted, reencrypted);
                count(&mut self.fields_on_target, on_target);
            }
            RowOutcome::OnTarget { fields } => {
                count(&mut self.rows_on_target, 1);
                count(&mut self.fields_on_target, fields);
            }
            RowOutcome::Failed(failures) => {
                count(&mut self.rows_failed, 1);
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

/// How a run ended, and what it counted until then.
#[derive(Debug)]
pub struct Ended<E = RunError> {
    /// What was counted; also of a run that did not reach its end.
    pub report: Report,
    /// Whether no crash of Postgres can undo what the report tells.
    pub durable: bool,
    /// Why the report is not complete.
    pub result: Result<(), E>,
}

impl Ended {
    /// A run that ended before it looked at a row.
    pub(super) fn without_rows(error: RunError) -> Self {
        Self {
            report: Report::default(),
            durable: true,
            result: Err(error),
        }
    }

    /// The same with another error.
    pub fn map_err<E>(self, map: impl FnOnce(RunError) -> E) -> Ended<E> {
        Ended {
            report: self.report,
            durable: self.durable,
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
            error: "x".repeat(error_bytes),
        }])
    }

    #[test]
    fn a_long_report_keeps_the_first_failures_and_every_count() {
        let mut report = Report::default();
        // Finished from back to front.
        for i in (0..3000).rev() {
            report.add(failed(&format!("org{i:04}"), 1000));
        }
        assert_eq!(report.rows_failed, 3000);
        let kept: Vec<_> = report.failures().collect();
        assert_eq!(kept.len() as u64 + report.failures_omitted, 3000);
        assert!(report.failures_omitted > 0);
        assert!(kept.iter().map(|failure| failure.size()).sum::<usize>() <= FAILURE_BYTES);
        for (i, failure) in kept.iter().enumerate() {
            assert_eq!(failure.organization_id, format!("org{i:04}"));
        }
    }

    #[test]
    fn counters_saturate() {
        let mut report = Report {
            rows_updated: u32::MAX,
            fields_reencrypted: u32::MAX - 1,
            ..Report::default()
        };
        report.add(RowOutcome::Updated {
            reencrypted: 3,
            on_target: 0,
        });
        assert_eq!(report.rows_updated, u32::MAX);
        assert_eq!(report.fields_reencrypted, u32::MAX);
        assert_eq!(report.rows_examined(), u32::MAX);
    }

    #[test]
    fn a_row_that_is_gone_is_not_counted() {
        let mut report = Report::default();
        report.add(RowOutcome::Gone);
        assert_eq!(report, Report::default());
    }
}
