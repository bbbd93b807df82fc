//! The run id, which is in every answer and in every log line of a run.

/// The header with the run id, in every answer.
pub(crate) const RUN_ID_HEADER: &str = "x-rewrap-run-id";

/// A new id for a run, or for a call that is refused before it becomes a run.
pub(crate) fn run_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
