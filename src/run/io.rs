//! Where a run sends what it finds while it is in progress.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Failure, Meter};
use crate::telemetry::Trace;

/// Where a run reports its progress and its failures.
#[derive(Debug, Clone, Default)]
pub struct RunIo {
    /// The progress of the run.
    pub meter: Arc<Meter>,
    /// Receives every failure of the run. Without it, the report keeps only the first failures.
    pub failures: Option<mpsc::Sender<Vec<Failure>>>,
    /// Whether to keep the changes of an apply, for a receipt.
    pub with_receipt: bool,
    /// Where the spans of the run belong.
    pub trace: Trace,
}
