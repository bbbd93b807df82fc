//! The gRPC surface: authorize, convert, run, report. The only file that sees the
//! generated messages.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{
    Request, Response, Status, metadata::MetadataMap, server::NamedService, service::Routes,
};
use tonic_reflection::server::{v1, v1alpha};
use tracing::Instrument;

use self::proto::{
    ReencryptTenantIdentityFailure, ReencryptTenantIdentitySecretsRequest,
    ReencryptTenantIdentitySecretsResponse,
    forge_server::{Forge, ForgeServer},
};
use super::reflection::Reflection;
use crate::{
    api::{
        error::ServiceError,
        guard::{Guard, decide},
    },
    audit::{AuditLog, Outcome, Record},
    auth::authorize::Policy,
    auth::peer::Peer,
    domain::organization::{InvalidOrganizationId, OrganizationId},
    run::{Ended, Mode, Report, RunError, Runner, Scope},
    telemetry::readiness::Readiness,
};

#[expect(unreachable_pub, clippy::pedantic, reason = "generated code")]
pub(super) mod proto {
    tonic::include_proto!("forge");
    pub(in crate::api::grpc) const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/forge.bin"));
}

/// A request has two small fields; whatever is bigger is none.
pub(crate) const MAX_REQUEST_BYTES: usize = 16 << 10;

/// The one method, for the audit record.
const METHOD: &str = "/forge.Forge/ReencryptTenantIdentitySecrets";

/// The header that names a run, in every answer and in every log line.
pub(crate) const RUN_ID_HEADER: &str = "x-rewrap-run-id";

/// How long a site-wide apply waits for one that was told to stop, which takes two seconds.
const STOPPING_APPLY_LIMIT: Duration = Duration::from_secs(4);

/// The header by which a caller says which target it means.
const EXPECT_TARGET_HEADER: &str = "x-expect-target-key-id";

/// The service of the package `forge`.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    runner: Option<Runner>,
    policy: Policy,
    readiness: Readiness,
    audit: AuditLog,
    runs: Arc<Semaphore>,
    site_apply: Arc<Semaphore>,
    /// What stops the last site-wide apply that was begun.
    applying: Mutex<CancellationToken>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Service {
    /// A service that starts at most `max_runs` runs at a time, as tasks of `tasks`,
    /// and stops them at `shutdown`. Without a `runner` the feature is disabled.
    #[must_use]
    pub fn new(
        runner: Option<Runner>,
        policy: Policy,
        readiness: Readiness,
        audit: AuditLog,
        max_runs: u32,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                runner,
                policy,
                readiness,
                audit,
                runs: Arc::new(Semaphore::new(max_runs as usize)),
                site_apply: Arc::new(Semaphore::new(1)),
                applying: Mutex::default(),
                tasks,
                shutdown,
            }),
        }
    }

    /// This service with health checking and reflection beside it, behind the gate,
    /// which waits at most `request_read_timeout` for a request to be complete.
    ///
    /// # Errors
    ///
    /// When the descriptors that were compiled in can't be decoded.
    pub fn into_guard(self, request_read_timeout: Duration) -> Result<Guard, prost::DecodeError> {
        let reflection = Reflection::new(&[
            proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            // So that clients can show the details of an error.
            tonic_types::pb::FILE_DESCRIPTOR_SET,
        ])?;
        let (reporter, health) = tonic_health::server::health_reporter();
        let readiness = self.inner.readiness.clone();
        // Goes on while the process drains: that is when it matters.
        tokio::spawn(async move {
            let services = ["", ForgeServer::<Self>::NAME];
            readiness.report_to(&reporter, &services).await;
        });
        let policy = self.inner.policy.clone();
        let audit = self.inner.audit.clone();
        let mut routes = Routes::builder();
        routes
            .add_service(health.max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(
                v1::ServerReflectionServer::new(reflection.clone())
                    .max_decoding_message_size(MAX_REQUEST_BYTES),
            )
            .add_service(
                v1alpha::ServerReflectionServer::new(reflection)
                    .max_decoding_message_size(MAX_REQUEST_BYTES),
            )
            .add_service(ForgeServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES));
        Ok(Guard::new(
            routes.routes(),
            policy,
            audit,
            request_read_timeout,
        ))
    }
}

/// A fresh id for a run, or for a call that never became one.
pub(crate) fn run_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[tonic::async_trait]
impl Forge for Service {
    async fn reencrypt_tenant_identity_secrets(
        &self,
        request: Request<ReencryptTenantIdentitySecretsRequest>,
    ) -> Result<Response<ReencryptTenantIdentitySecretsResponse>, Status> {
        let run_id = run_id();
        // On error level, so that no log filter takes the id off a line.
        let span = tracing::error_span!("rewrap", run_id);

        // The call is a task of its own, so that its end is audited whatever becomes of
        // the client; the guard tells the task that the client is gone.
        let gone = CancellationToken::new();
        let _guard: DropGuard = gone.clone().drop_guard();
        let inner = self.inner.clone();
        let id = run_id.clone();
        let call = async move { inner.call(&id, request, gone).await };
        let handle = self.inner.tasks.spawn(call.instrument(span)).await;
        match handle.unwrap_or(Err(ServiceError::Internal)) {
            Ok(response) => {
                let mut response = Response::new(response);
                let run_id = run_id.parse().map_err(|_| ServiceError::Internal)?;
                response.metadata_mut().insert(RUN_ID_HEADER, run_id);
                Ok(response)
            }
            Err(error) => Err(error.into_status(&run_id)),
        }
    }
}

/// What a call wants, as far as it can be understood.
struct CallRequest {
    scope: Result<Scope, InvalidOrganizationId>,
    mode: Mode,
    expected_target: Vec<String>,
    deadline: Option<Duration>,
}

impl CallRequest {
    fn new(request: &Request<ReencryptTenantIdentitySecretsRequest>) -> Self {
        let message = request.get_ref();
        Self {
            scope: match &message.organization_id {
                None => Ok(Scope::Site),
                Some(id) => OrganizationId::parse(id).map(Scope::Organization),
            },
            mode: if message.dry_run {
                Mode::DryRun
            } else {
                Mode::Apply
            },
            expected_target: expected_target(request.metadata()),
            deadline: deadline(request.metadata()),
        }
    }
}

impl Inner {
    /// Carries the call out and leaves its audit record, also if it panics.
    async fn call(
        self: Arc<Self>,
        run_id: &str,
        request: Request<ReencryptTenantIdentitySecretsRequest>,
        gone: CancellationToken,
    ) -> Result<ReencryptTenantIdentitySecretsResponse, ServiceError> {
        let started = Instant::now();
        let asked = CallRequest::new(&request);
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let mut record = Record::new(run_id, peer.clone(), METHOD);
        record.asked(asked.scope.as_ref().ok(), asked.mode);

        let (inner, begun) = (self.clone(), record.clone());
        let run = tokio::spawn(
            async move { inner.checked_run(peer, asked, &begun, &gone).await }.in_current_span(),
        );
        let (result, report, durable) = run.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a run panicked: this is a bug");
            (Err(ServiceError::Internal), Report::default(), false)
        });
        record.set_report(&report, durable);
        let outcome = match &result {
            Ok(_) => Outcome {
                name: "OK",
                error: None,
            },
            Err(error) => error.outcome(),
        };
        self.audit.ended(record, started.elapsed(), &outcome).await;
        result.map(|target| response(&report, target))
    }

    /// The target of the run or why it has none, what it counted until then, and whether
    /// that is durable.
    async fn checked_run(
        &self,
        peer: Option<Arc<Peer>>,
        asked: CallRequest,
        record: &Record,
        gone: &CancellationToken,
    ) -> (Result<String, ServiceError>, Report, bool) {
        match self.run(peer, asked, record, gone).await {
            Ok((target, ended)) => (ended.result.map(|()| target), ended.report, ended.durable),
            Err(error) => (Err(error), Report::default(), true),
        }
    }

    async fn run(
        &self,
        peer: Option<Arc<Peer>>,
        asked: CallRequest,
        record: &Record,
        gone: &CancellationToken,
    ) -> Result<(String, Ended<ServiceError>), ServiceError> {
        let peer = peer.ok_or(ServiceError::Internal)?;
        let permit = decide(&self.policy, &peer.caller)?;
        let (scope, mode) = (asked.scope?, asked.mode);
        let runner = self.runner.as_ref().ok_or(ServiceError::Disabled)?;
        let target = runner.keyring().target().id().to_string();
        if let Some(expected) = asked.expected_target.into_iter().find(|id| *id != target) {
            return Err(ServiceError::UnexpectedTarget { target, expected });
        }
        if self.shutdown.is_cancelled() {
            return Err(ServiceError::ShuttingDown);
        }
        self.readiness.check().map_err(ServiceError::NotReady)?;
        let stop = self.shutdown.child_token();
        let _permits = self.run_slots(&scope, mode, &stop).await?;
        self.audit.started(record).await?;

        tracing::info!(
            scope = %scope,
            dry_run = mode == Mode::DryRun,
            target_key_id = target,
            caller = permit.identity().name(),
            "run started"
        );
        let deadline = async {
            match asked.deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        let mut run = std::pin::pin!(runner.run(&permit, &scope, mode, &stop));
        let (ended, stopped_for) = tokio::select! {
            ended = run.as_mut() => (ended, ServiceError::ShuttingDown),
            () = gone.cancelled() => {
                stop.cancel();
                (run.await, ServiceError::Cancelled)
            }
            () = deadline => {
                stop.cancel();
                (run.await, ServiceError::DeadlineExceeded)
            }
        };
        let ended = ended.map_err(|error| match error {
            RunError::Stopped => stopped_for,
            RunError::NotFound(id) => ServiceError::UnknownOrganization(id),
            RunError::Store(error) => error.into(),
            RunError::NotReplicated => ServiceError::NotReplicated,
            RunError::Panicked => {
                tracing::error!("a task of the run panicked: this is a bug");
                ServiceError::Internal
            }
        });
        Ok((target, ended))
    }

    /// A slot among the runs, and the one slot for a site-wide apply. `stop` stops the run
    /// that the slots are for.
    ///
    /// An apply that was told to stop ends soon. The next one waits for it: a client that
    /// calls again after its deadline must not be refused for its own earlier call.
    async fn run_slots(
        &self,
        scope: &Scope,
        mode: Mode,
        stop: &CancellationToken,
    ) -> Result<Vec<OwnedSemaphorePermit>, ServiceError> {
        let one_of_many = self.runs.clone().try_acquire_owned();
        let mut permits = vec![one_of_many.map_err(|_| ServiceError::TooManyRuns)?];
        if *scope == Scope::Site && mode == Mode::Apply {
            let limit = if self.applying().is_cancelled() {
                STOPPING_APPLY_LIMIT
            } else {
                Duration::ZERO
            };
            let only_one = timeout(limit, self.site_apply.clone().acquire_owned()).await;
            permits.push(
                only_one
                    .ok()
                    .and_then(Result::ok)
                    .ok_or(ServiceError::ApplyUnderWay)?,
            );
            *self.applying() = stop.clone();
        }
        Ok(permits)
    }

    /// What stops the last site-wide apply that was begun.
    fn applying(&self) -> MutexGuard<'_, CancellationToken> {
        self.applying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller that says which target it means is not served by another one: a
/// replacement of the server with a new target may be half-way through. No key id is
/// longer than 255 bytes; what is cut off would not have fitted anyway.
fn expected_target(metadata: &MetadataMap) -> Vec<String> {
    metadata
        .get_all(EXPECT_TARGET_HEADER)
        .iter()
        .map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .chars()
                .take(256)
                .collect()
        })
        .collect()
}

/// The `grpc-timeout` header: at most eight digits and a unit (gRPC over HTTP/2,
/// "Requests"). One that is malformed says nothing, as in other servers.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let value = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

fn response(report: &Report, target: String) -> ReencryptTenantIdentitySecretsResponse {
    ReencryptTenantIdentitySecretsResponse {
        rows_examined: report.rows_examined(),
        rows_updated: report.rows_updated,
        rows_skipped_all_on_target: report.rows_on_target,
        fields_reencrypted: report.fields_reencrypted,
        fields_skipped_on_target: report.fields_on_target,
        rows_failed: report.rows_failed,
        failures: report
            .failures()
            .map(|failure| ReencryptTenantIdentityFailure {
                organization_id: failure.organization_id.clone(),
                field: failure.field.to_owned(),
                error: failure.error.clone(),
            })
            .collect(),
        current_encryption_key_id: target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_spells_them() {
        let of = |value: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", value.parse().unwrap());
            deadline(&metadata)
        };
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(of("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(
            of("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        assert_eq!(of("3M"), Some(Duration::from_secs(180)));
        for odd in ["", "S", "2", "2s", "-2S", "123456789S", "2 S", "0x2S"] {
            assert_eq!(of(odd), None, "{odd}");
        }
        assert_eq!(deadline(&MetadataMap::new()), None);
    }
}
