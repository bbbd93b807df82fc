//! Runs: dry run, apply, verify and census. A run returns a [`Report`].
//!
//! A dry run and an apply read pages of rows. A limited number of tasks processes the rows of a
//! page while the run reads the next page. Each task uses one database connection while it
//! writes. If a row changes during the run, the run reads it and decides again. After several
//! changes, it does so under a row lock. A failed row is an entry in the report. A lost
//! database ends the run.
//!
//! A stopped run ends within two seconds, even if the database does not answer. It waits briefly
//! for statements in flight, closes their connections, and reads the rows to find out whether the
//! writes are committed. Rows with an unknown outcome are counted as in doubt.
//!
//! This module uses the store and the domain. It contains no gRPC and no SQL.

mod adaptive_rate;
mod batch;
mod batch_set;
mod census;
pub mod censuses;
mod context;
mod failure;
mod failure_limit;
mod groups;
pub mod guard;
pub mod history;
mod io;
pub mod key_check;
mod own_texts;
mod pacer;
mod pending;
mod progress;
mod readable;
pub mod receipt;
pub mod receipt_log;
pub mod record;
mod report;
mod runner;
mod scope;
mod silent;
mod spans;
mod spec;
mod stall;
mod verify;
mod visited;

use tokio_util::sync::CancellationToken;

use self::context::Context;
pub use self::{
    failure::Failure,
    groups::FailureGroup,
    io::RunIo,
    progress::{Meter, Sampler},
    record::Census,
    report::{Ended, Report},
    runner::Runner,
    spec::{Mode, RateOptions, RunError, RunSpec, Scope, Site},
};
use crate::store::StoreError;

/// Waits for `reading`, but not after `stop`.
async fn until_stopped<T>(
    stop: &CancellationToken,
    reading: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, RunError> {
    match stop.run_until_cancelled(reading).await {
        Some(result) => result.map_err(RunError::from),
        None => Err(RunError::Stopped),
    }
}
