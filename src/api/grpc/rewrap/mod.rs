//! The service `nico.rewrap.v1.Rewrap`: runs, keys and verdicts.

mod convert;
mod keys;
mod page;
mod watch;

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use tonic::{Code, Request, Response, Status};

use self::{
    convert::loaded_key,
    page::{FailureToken, fitting, page_size, parse_run_token, run_token},
};
use crate::{
    api::{
        audited::Audited,
        call::Calls,
        error::{ServiceError, set_status},
        request::{Answer, CallRequest, RunOptions},
        run_id::{RUN_ID_HEADER, run_id},
    },
    auth::{
        authorize::{Access, Permit},
        peer::Peer,
    },
    domain::organization::OrganizationId,
    proto::rewrap::{self as pb, rewrap_server::Rewrap},
    run::{Scope, history, record::Kind},
    telemetry::Trace,
};

/// Maximum length of a request id, in bytes.
const REQUEST_ID_BYTES: usize = 255;

/// The path of StartRun, for the audit record.
const START_RUN: &str = "/nico.rewrap.v1.Rewrap/StartRun";

/// The implementation of the service.
pub(super) struct RewrapService(pub(super) Calls);

impl RewrapService {
    /// Checks that the caller may use the service.
    fn permit<T>(&self, request: &Request<T>) -> Result<Permit, Status> {
        let peer = request.extensions().get::<Arc<Peer>>();
        let peer = peer.ok_or(ServiceError::Internal);
        peer.and_then(|peer| self.0.authorize(peer)).map_err(status)
    }
}

/// Refuses a text with a NUL: Postgres cannot store it, so no run can have it as its id.
fn check_run_id(id: &str) -> Result<(), Status> {
    if id.contains('\0') {
        return Err(status(ServiceError::InvalidRun("run_id contains a NUL")));
    }
    Ok(())
}

/// The status of an error that belongs to no run.
fn status(error: ServiceError) -> Status {
    error.into_status(&run_id())
}

#[tonic::async_trait]
impl Rewrap for RewrapService {
    async fn start_run(
        &self,
        request: Request<pb::StartRunRequest>,
    ) -> Result<Response<pb::Run>, Status> {
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let span = Trace::of_caller(request.metadata()).call(START_RUN);
        let call = call_request(peer, request.into_inner(), span.trace());
        let Answer { run_id, result } = self.0.start(call).await;
        // The record of the call is written at the end of the run.
        let result = result.map_err(|error| error.into_traced_status(&run_id, &span));
        let run = result.map_err(Audited::mark_error)?;
        set_status(&span, Code::Ok);
        let mut response = Response::new(run.into());
        Audited::mark(&mut response);
        if let Ok(run_id) = run_id.parse() {
            response.metadata_mut().insert(RUN_ID_HEADER, run_id);
        }
        Ok(response)
    }

    type WatchRunStream = Pin<Box<dyn Stream<Item = Result<pb::Run, Status>> + Send>>;

    async fn watch_run(
        &self,
        request: Request<pb::WatchRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        self.permit(&request)?;
        let id = request.into_inner().run_id;
        check_run_id(&id)?;
        let history = self.0.history().clone();
        // An unknown run is an error of the call, not of the stream.
        let first = history
            .get(&id)
            .await
            .map_err(|error| status(error.into()))?;
        let stop = self.0.shutdown().clone();
        Ok(Response::new(Box::pin(watch::watch(history, first, stop))))
    }

    async fn get_run(
        &self,
        request: Request<pb::GetRunRequest>,
    ) -> Result<Response<pb::Run>, Status> {
        self.permit(&request)?;
        check_run_id(&request.get_ref().run_id)?;
        let run = self.0.history().get(&request.get_ref().run_id).await;
        run.map(|run| Response::new(run.into()))
            .map_err(|error| status(error.into()))
    }

    async fn list_runs(
        &self,
        request: Request<pb::ListRunsRequest>,
    ) -> Result<Response<pb::ListRunsResponse>, Status> {
        self.permit(&request)?;
        let message = request.into_inner();
        let size = page_size(message.page_size, 20, 100);
        let after = parse_run_token(&message.page_token).map_err(status)?;
        let page = self.0.history().list(after.as_ref(), size).await;
        let page = page.map_err(|error| status(error.into()))?;
        let (positions, mut runs): (Vec<_>, Vec<pb::Run>) = page
            .runs
            .into_iter()
            .map(|(position, run)| (position, run.into()))
            .unzip();
        let count = fitting(&runs);
        let next = if count < runs.len() {
            positions.get(count - 1).map(run_token)
        } else {
            page.next.as_ref().map(run_token)
        };
        runs.truncate(count);
        Ok(Response::new(pb::ListRunsResponse {
            runs,
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn stop_run(
        &self,
        request: Request<pb::StopRunRequest>,
    ) -> Result<Response<pb::Run>, Status> {
        self.permit(&request)?;
        check_run_id(&request.get_ref().run_id)?;
        let run = self.0.history().stop(&request.get_ref().run_id).await;
        run.map(|run| Response::new(run.into()))
            .map_err(|error| status(error.into()))
    }

    async fn list_failures(
        &self,
        request: Request<pb::ListFailuresRequest>,
    ) -> Result<Response<pb::ListFailuresResponse>, Status> {
        self.permit(&request)?;
        let message = request.into_inner();
        check_run_id(&message.run_id)?;
        let size = page_size(message.page_size, 100, 1000);
        let after = FailureToken::parse(&message.page_token).map_err(status)?;
        let failures = self
            .0
            .history()
            .failures(&message.run_id, (&after.0, &after.1), size + 1)
            .await;
        let failures = failures.map_err(|error| status(error.into()))?;
        let mut failures: Vec<pb::Failure> = failures.into_iter().map(Into::into).collect();
        let count = fitting(&failures).min(size as usize);
        let has_more = failures.len() > count;
        failures.truncate(count);
        let next = failures.last().filter(|_| has_more);
        let next = next.map(|last| FailureToken::after(&last.organization_id, &last.field));
        Ok(Response::new(pb::ListFailuresResponse {
            failures,
            next_page_token: next.unwrap_or_default(),
        }))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        self.permit(&request)?;
        let site = self.0.site().map_err(status)?;
        let known = self.0.censuses().key_use(site).await;
        Ok(Response::new(pb::ListKeysResponse {
            keys: keys::list(site, &known),
            census: known.last.as_ref().map(pb::Census::from),
        }))
    }

    async fn get_receipt(
        &self,
        request: Request<pb::GetReceiptRequest>,
    ) -> Result<Response<pb::Receipt>, Status> {
        self.permit(&request)?;
        let receipt = self.0.history().receipt(&request.get_ref().run_id).await;
        let receipt = receipt.map_err(|error| status(error.into()))?;
        // A run without a receipt gives an empty message.
        let (document, sha256) = receipt
            .map(|receipt| (receipt.document, receipt.sha256))
            .unwrap_or_default();
        Ok(Response::new(pb::Receipt { document, sha256 }))
    }

    async fn get_status(
        &self,
        request: Request<pb::GetStatusRequest>,
    ) -> Result<Response<pb::Status>, Status> {
        self.permit(&request)?;
        let info = self.0.info();
        let site = self.0.site().ok();
        let target = site.as_ref().map(|site| site.keyring.target().id());
        let keys = site.as_ref().map(|site| {
            let loaded = |kek| loaded_key(kek, Some(kek.id()) == target);
            site.keyring.iter().map(loaded).collect()
        });
        let database = match &site {
            Some(site) => Some(convert::database(
                site.store.status().await.ok(),
                &info.database_tls,
            )),
            None => None,
        };
        // If the database does not answer, show only the runs of this instance.
        let active_runs = self.0.history().active().await.unwrap_or_default();
        Ok(Response::new(pb::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: env!("NICO_REWRAP_REVISION").to_owned(),
            instance: info.name.clone(),
            start_time: Some(info.start_time.into()),
            enabled: site.is_some(),
            target_key_id: target.map(ToString::to_string).unwrap_or_default(),
            keys: keys.unwrap_or_default(),
            database,
            active_runs: active_runs.into_iter().map(Into::into).collect(),
            history_persistent: self.0.history().is_persistent(),
            changed_on_disk: self.0.readiness().changed_on_disk(),
        }))
    }

    async fn who_am_i(
        &self,
        request: Request<pb::WhoAmIRequest>,
    ) -> Result<Response<pb::Caller>, Status> {
        let peer = request.extensions().get::<Arc<Peer>>();
        let peer = peer.ok_or(ServiceError::Internal).map_err(status)?;
        Ok(Response::new(convert::caller(
            &peer.caller,
            self.0.denial(peer, Access::Read),
            self.0.denial(peer, Access::Apply),
        )))
    }
}

fn call_request(
    peer: Option<Arc<Peer>>,
    message: pb::StartRunRequest,
    trace: Trace,
) -> CallRequest {
    let parameters = format!("{message:?}");
    let kind = match message.kind() {
        pb::RunKind::Unspecified => None,
        pb::RunKind::DryRun => Some(Kind::DryRun),
        pb::RunKind::Apply => Some(Kind::Apply),
        pb::RunKind::Verify => Some(Kind::Verify),
        pb::RunKind::Census => Some(Kind::Census),
    };
    let expected = Some(message.expect_target_key_id).filter(|id| !id.is_empty());
    let scope = match message.scope {
        None => Err(ServiceError::InvalidRun(
            "set scope: site or organization_id",
        )),
        Some(pb::start_run_request::Scope::Site(_)) => Ok(Scope::Site),
        Some(pb::start_run_request::Scope::OrganizationId(id)) => OrganizationId::parse(&id)
            .map(Scope::Organization)
            .map_err(Into::into),
    };
    let kind = match (kind, &scope) {
        (None, _) => Err(ServiceError::InvalidRun("set kind to a kind of run")),
        (Some(Kind::Census), Ok(Scope::Organization(_))) => Err(ServiceError::InvalidRun(
            "a census covers the site: set scope to site",
        )),
        (Some(Kind::Apply), _) if expected.is_none() => Err(ServiceError::InvalidRun(
            "an apply needs expect_target_key_id: the id of the target key that you expect",
        )),
        _ if message.request_id.len() > REQUEST_ID_BYTES => Err(ServiceError::InvalidRun(
            "request_id is longer than 255 bytes",
        )),
        _ if message.request_id.contains('\0') => {
            Err(ServiceError::InvalidRun("request_id contains a NUL"))
        }
        (Some(kind), _) => Ok(kind),
    };
    CallRequest {
        method: START_RUN,
        peer,
        scope,
        kind,
        expected_target: expected.into_iter().collect(),
        deadline: None,
        trace,
        options: RunOptions {
            max_rows_per_second: message.max_rows_per_second,
            stop_after_failures: message.stop_after_failures,
            request: Some(message.request_id)
                .filter(|id| !id.is_empty())
                .map(|id| history::Request { id, parameters }),
        },
    }
}
