//! What a run that reads rows cannot read: the whole table, or one row.

use super::{Failure, Mode, report::RowOutcome};
use crate::store::{Preflight, RowError, StoreError};

/// Checks whether a run may begin, or whether it could have missed rows.
pub(super) fn check_preflight(preflight: &Preflight, mode: Mode) -> Result<(), StoreError> {
    if let Some(problem) = &preflight.unfit {
        return Err(problem.clone().into());
    }
    match (&preflight.unwritable, mode) {
        (Some(problem), Mode::Apply) => Err(problem.clone().into()),
        (Some(problem), Mode::DryRun) => {
            tracing::warn!(reason = problem.reason(), %problem, "no row could be written");
            Ok(())
        }
        (None, Mode::Apply) if preflight.is_standby => Err(StoreError::Unavailable(
            "it is a standby, which is read-only until it is promoted".to_owned(),
        )),
        (None, _) => Ok(()),
    }
}

/// One failure for each unreadable column, or one for the row as a whole.
pub(super) fn unreadable(organization_id: &str, error: &RowError) -> RowOutcome {
    let failure = |field| Failure::of_row(organization_id, field, error);
    match error {
        RowError::Unreadable { columns, .. } if !columns.is_empty() => {
            RowOutcome::Failed(columns.iter().copied().map(failure).collect())
        }
        _ => RowOutcome::Failed(vec![failure("")]),
    }
}
