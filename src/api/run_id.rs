//! The id of a run, which every answer and every log line of the run carries.

/// The header that names the run in every answer.
pub(crate) const RUN_ID_HEADER: &str = "x-rewrap-run-id";

/// A new id for a run, or for a call that is refused before it becomes a run.
pub(crate) fn run_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
