//! All failures of a run.

use crate::{
    cli::client::{connection::Session, problem::Problem},
    proto::rewrap as pb,
};

/// The largest page that a server sends.
const PAGE: u32 = 1000;

/// Reads every page of the failures of a run.
pub(crate) async fn all_failures(
    session: &Session,
    run: &pb::Run,
) -> Result<Vec<pb::Failure>, Problem> {
    let mut failures = Vec::new();
    if run.failure_groups.is_empty() {
        return Ok(failures);
    }
    let mut token = String::new();
    loop {
        let request = pb::ListFailuresRequest {
            run_id: run.id.clone(),
            page_size: PAGE,
            page_token: token,
        };
        let page = session.ask(session.rewrap().list_failures(request)).await?;
        failures.extend(page.failures);
        token = page.next_page_token;
        if token.is_empty() {
            return Ok(failures);
        }
    }
}
