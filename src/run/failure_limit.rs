//! Stops a run after a number of failed rows.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{RunError, report::RowOutcome};

/// The number of failed rows of a run. All its tasks add to it as soon as a row fails.
#[derive(Debug)]
pub(super) struct FailureLimit {
    /// Zero means no limit.
    limit: u64,
    failed: AtomicU64,
}

impl FailureLimit {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit: limit.into(),
            failed: AtomicU64::new(0),
        }
    }

    /// Adds the row to the number of failed rows, if it failed.
    pub(super) fn count(&self, outcome: &RowOutcome) {
        if let RowOutcome::Failed(_) = outcome {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn is_reached(&self) -> bool {
        self.limit > 0 && self.failed.load(Ordering::Relaxed) >= self.limit
    }

    /// Call this before each further row. A run whose last row reaches the limit is complete.
    pub(super) fn check(&self) -> Result<(), RunError> {
        if self.is_reached() {
            return Err(RunError::FailureLimit(self.failed.load(Ordering::Relaxed)));
        }
        Ok(())
    }
}
