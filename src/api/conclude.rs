//! The work after a run: its record, its metrics, the note for the verdicts, and the receipt.

use std::{sync::Arc, time::SystemTime};

use super::{context::Inner, error::ServiceError, run_span};
use crate::{
    run::{
        Census, Ended, Site,
        history::LiveRun,
        record::{Kind, RunState},
    },
    telemetry::{self, Span},
};

/// A run that has ended.
pub(super) struct Conclusion<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) site: &'a Site,
    pub(super) kind: Kind,
    /// Whether the run covered the whole site.
    pub(super) is_site: bool,
    pub(super) live: LiveRun,
    /// The span of the run, which ends here.
    pub(super) span: Span,
    /// The last census before an apply.
    pub(super) census_before: Option<Census>,
}

impl Conclusion<'_> {
    /// Records the end of the run, and starts the task for the receipt. Takes the changes out of
    /// `ended`.
    pub(super) async fn conclude(self, ended: &mut Ended<ServiceError>) {
        let kind = self.kind;
        let counts = ended.report.counts;
        let changes = std::mem::take(&mut ended.changes);
        let (groups, durable) = (ended.report.groups(), ended.durable);
        let problem = ended.result.as_ref().err().map(ServiceError::problem);
        let state = match &ended.result {
            Ok(()) => RunState::Finished,
            Err(error) if error.is_stop() => RunState::Stopped,
            Err(_) => RunState::Failed,
        };
        run_span::set_end(&self.span, state, &ended.report, durable, problem.as_ref());
        drop(self.span);
        telemetry::run_ended(kind.label(), state.name());
        let end = SystemTime::now();
        let is_clean = state == RunState::Finished && counts.rows_failed == 0 && durable;
        if kind == Kind::Apply && self.is_site && is_clean {
            telemetry::apply_succeeded(end);
        }
        if kind == Kind::Census && state == RunState::Failed {
            self.inner.record_census_failure(problem.as_ref()).await;
        }
        let mut finished_record = None;
        let finished = self.live.finish(|record| {
            record.state = state;
            record.end_time = Some(end);
            record.counts = Some(counts);
            record.failure_groups = groups;
            record.problem = problem;
            record.durable = durable;
            finished_record = Some(record.clone());
        });
        finished.await;
        if kind == Kind::Apply && counts.rows_updated + counts.rows_in_doubt > 0 {
            self.inner.context.censuses.rewrapped(self.site).await;
        }
        if kind == Kind::Apply && counts.rows_updated > 0 {
            match finished_record {
                // The task for the receipt also takes a census.
                Some(record) if self.inner.keeps_receipts() => {
                    self.inner
                        .spawn_receipt(record, changes, self.census_before);
                }
                _ => self.inner.census_due.notify_one(),
            }
        }
    }
}
