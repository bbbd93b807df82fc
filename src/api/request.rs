//! The request of a call and its answer, for every transport.

use std::{sync::Arc, time::Duration};

use super::error::ServiceError;
use crate::{
    auth::peer::Peer,
    run::{Report, Scope, history, record::Kind},
    telemetry::Trace,
};

/// The request of a call.
pub(super) struct CallRequest {
    /// The method, for the audit record.
    pub(super) method: &'static str,
    /// The client. `None` only because of a bug of the server.
    pub(super) peer: Option<Arc<Peer>>,
    /// The organization or the site; an error if the request is invalid.
    pub(super) scope: Result<Scope, ServiceError>,
    /// What the run does; an error if the request is invalid.
    pub(super) kind: Result<Kind, ServiceError>,
    /// The target key ids that the client expects. Each must be the target of this server.
    pub(super) expected_target: Vec<String>,
    /// The time limit that the client set for the call.
    pub(super) deadline: Option<Duration>,
    /// Where the spans of the call belong.
    pub(super) trace: Trace,
    /// Other options of the client.
    pub(super) options: RunOptions,
}

/// The options of a request besides kind and scope.
#[derive(Debug, Default)]
pub(super) struct RunOptions {
    /// Maximum number of rows per second. Zero means no limit.
    pub(super) max_rows_per_second: u32,
    /// The number of failed rows after which the run stops. Zero means no limit.
    pub(super) stop_after_failures: u32,
    /// The request id and the parameters. A repeated request with this id starts no second run.
    pub(super) request: Option<history::Request>,
}

/// The result of a call.
pub(super) struct Answer<T> {
    /// The id of the run.
    pub(super) run_id: String,
    /// The result, or the error.
    pub(super) result: Result<T, ServiceError>,
}

/// The report and the target key id, or the error.
pub(super) type Ending = Result<(Report, String), ServiceError>;
