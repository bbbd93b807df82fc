//! Runs whose instance is silent: it has ended, is frozen, or has lost the database.

use std::time::SystemTime;

use super::record::{Counts, Kind, Progress, RunProblem, RunRecord, RunState};

/// The reason of a run whose instance was silent for too long.
const INSTANCE_GONE: &str = "INSTANCE_GONE";

impl RunRecord {
    /// Ends a run whose instance has been silent since `heartbeat`. Its report has the counts
    /// that the instance wrote last.
    pub(super) fn settle(&mut self, heartbeat: SystemTime) {
        self.state = RunState::Failed;
        self.end_time = Some(heartbeat.max(self.start_time));
        self.counts = Some(self.last_counts());
        self.durable = false;
        self.progress = Progress {
            rows_done: self.progress.rows_done,
            rows_total: self.progress.rows_total,
            ..Progress::default()
        };
        self.problem = Some(RunProblem {
            // gRPC core, "Status codes and their use": UNAVAILABLE.
            code: 14,
            reason: INSTANCE_GONE.to_owned(),
            message: format!(
                "instance {} has been silent for 30 s, so it has ended or lost the database. \
                 Committed rows stay committed; run again",
                self.instance
            ),
            metadata: [("instance".to_owned(), self.instance.clone())].into(),
        });
    }

    /// The counts of a run that has no report.
    pub(super) fn last_counts(&self) -> Counts {
        let mut counts = self.counts_so_far;
        if self.kind == Kind::Census {
            counts.rows_on_target = self.progress.rows_done;
        }
        counts
    }

    /// Whether the run ended only because its instance was silent. The instance may still execute
    /// the run.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let problem = self.problem.as_ref();
        problem.is_some_and(|problem| problem.reason == INSTANCE_GONE)
    }
}
