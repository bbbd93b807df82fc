//! Starts a run on the server.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    cli::client::{Client, connection::Session, problem::Problem},
    proto::rewrap as pb,
};

/// How often to try, if the connection breaks.
const ATTEMPTS: u32 = 3;

/// A run to start.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(super) kind: pb::RunKind,
    /// The whole site if `None`. A blank text is sent as it is, and the server refuses it.
    pub(super) organization: Option<String>,
    pub(crate) expect_target: String,
    pub(crate) max_rows_per_second: u32,
    pub(crate) stop_after_failures: u32,
}

impl Request {
    pub(crate) fn new(kind: pb::RunKind, organization: Option<String>) -> Self {
        Self {
            kind,
            organization,
            expect_target: String::new(),
            max_rows_per_second: 0,
            stop_after_failures: 0,
        }
    }

    fn message(&self) -> pb::StartRunRequest {
        use pb::start_run_request::Scope;
        pb::StartRunRequest {
            // With this id, a second attempt cannot start a second run.
            request_id: uuid::Uuid::new_v4().to_string(),
            kind: self.kind.into(),
            scope: Some(match &self.organization {
                None => Scope::Site(pb::Site {}),
                Some(id) => Scope::OrganizationId(id.clone()),
            }),
            expect_target_key_id: self.expect_target.clone(),
            max_rows_per_second: self.max_rows_per_second,
            stop_after_failures: self.stop_after_failures,
        }
    }
}

/// Starts the run. If the connection breaks, it tries again: the request has an id.
pub(crate) async fn start(
    client: &Client,
    session: &Session,
    request: &Request,
) -> Result<pb::Run, Problem> {
    let message = request.message();
    let mut session = session.clone();
    let mut attempt = 1;
    loop {
        let problem = match session
            .call(session.rewrap().start_run(message.clone()))
            .await
        {
            Ok(run) => return Ok(run.into_inner()),
            Err(problem) => problem,
        };
        if !problem.is_broken || attempt == ATTEMPTS {
            return Err(problem);
        }
        sleep(Duration::from_millis(500) * attempt).await;
        attempt += 1;
        if let Ok(other) = client.connect().await {
            session = other;
        }
    }
}
