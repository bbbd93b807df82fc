//! The spans of the parts of a run.

use tokio_util::sync::CancellationToken;

use super::{RunError, report::RowOutcome, until_stopped};
use crate::{
    store::StoreError,
    telemetry::{Span, Trace},
};

/// Waits for a page, but not after `stop`. The page has a span of its own. `rows` counts its rows.
pub(super) async fn read_page<T>(
    trace: &Trace,
    stop: &CancellationToken,
    reading: impl Future<Output = Result<T, StoreError>>,
    rows: impl FnOnce(&T) -> usize,
) -> Result<T, RunError> {
    let span = trace.span("page");
    let page = until_stopped(stop, reading).await;
    match &page {
        Ok(page) => span.count("nico_rewrap.rows", rows(page)),
        Err(error) => set_error(&span, error),
    }
    page
}

/// The number of rows in a page of a scan. 0 after the last page.
pub(super) fn length<T>(page: &Option<Vec<T>>) -> usize {
    page.as_ref().map_or(0, Vec::len)
}

/// Sets how a batch has ended.
pub(super) fn set_batch_end(
    span: &Span,
    outcomes: &[RowOutcome],
    in_doubt: u64,
    result: &Result<(), RunError>,
) {
    if !span.is_recording() {
        return;
    }
    let count = |name| {
        let outcomes = outcomes.iter();
        outcomes.filter(|outcome| outcome.name() == name).count()
    };
    span.count("nico_rewrap.rows", outcomes.len());
    span.count("nico_rewrap.rows_updated", count("updated"));
    span.count("nico_rewrap.rows_failed", count("failed"));
    span.count("nico_rewrap.rows_in_doubt", in_doubt);
    if let Err(error) = result {
        set_error(span, error);
    }
}

/// Marks a part of a run as failed.
pub(super) fn set_error(span: &Span, error: &RunError) {
    span.fail(match error {
        RunError::NotFound(_) => "not_found",
        RunError::Stopped => "stopped",
        RunError::Store(_) => "database",
        RunError::NotReplicated => "not_replicated",
        RunError::FailureLimit(_) => "failure_limit",
        RunError::CensusElsewhere => "census_elsewhere",
        RunError::NotPermitted | RunError::Panicked => "bug",
    });
}
