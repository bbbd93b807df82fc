//! The end of a call that panicked.

use super::{
    error::{Counts, ServiceError},
    request::CallRequest,
};
use crate::run::{
    Meter, Report,
    history::LiveRun,
    record::{Counts as RowCounts, Kind},
};

/// What a call needs to know about its run if it panics.
pub(super) struct Panicked {
    kind: Option<Kind>,
}

impl Panicked {
    /// For this call, before it runs.
    pub(super) fn prepare(request: &CallRequest) -> Self {
        Self {
            kind: request.kind.as_ref().ok().copied(),
        }
    }

    /// The error, and a report with the rows that were counted before the panic.
    pub(super) fn end(self, meter: &Meter) -> (ServiceError, Report) {
        let report = Report::of(meter.counts());
        let error = match self.kind {
            Some(kind) if report.counts != RowCounts::default() => ServiceError::EndedEarly {
                error: Box::new(ServiceError::Internal),
                // A panic can precede the flush.
                counts: Counts::of(&report, kind, false),
                wait: None,
            },
            _ => ServiceError::Internal,
        };
        (error, report)
    }
}

/// Gives the record of a run its last counts when this value is dropped, even after a panic.
pub(super) struct LastCounts<'a> {
    pub(super) live: &'a LiveRun,
    pub(super) meter: &'a Meter,
}

impl Drop for LastCounts<'_> {
    fn drop(&mut self) {
        let counts = self.meter.counts();
        self.live.update(|record| record.counts_so_far = counts);
    }
}
