//! The gRPC surface: authorize, convert, run, report. The only file that sees the
//! generated messages.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{
    Request, Response, Status,
    metadata::{MetadataMap, MetadataValue},
    server::NamedService,
    service::Routes,
};
use tracing::Instrument;

use self::proto::{
    ReencryptTenantIdentityFailure, ReencryptTenantIdentitySecretsRequest,
    ReencryptTenantIdentitySecretsResponse,
    forge_server::{Forge, ForgeServer},
};
use crate::{
    audit,
    authorize::{Policy, authorize},
    error::ServiceError,
    listener::Peer,
    organization::OrganizationId,
    readiness::Readiness,
    run::{Mode, Report, Runner, Scope},
};

#[expect(unreachable_pub, clippy::pedantic, reason = "generated code")]
mod proto {
    tonic::include_proto!("forge");
    pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forge.bin"));
}

/// A request has two small fields; whatever is bigger is none.
const MAX_REQUEST_BYTES: usize = 16 << 10;

/// The header that names a run, in every answer and in every log line.
const RUN_ID_HEADER: &str = "x-rewrap-run-id";

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
    runs: Arc<Semaphore>,
    site_apply: Arc<Semaphore>,
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
        max_runs: u32,
        tasks: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                runner,
                policy,
                readiness,
                runs: Arc::new(Semaphore::new(max_runs as usize)),
                site_apply: Arc::new(Semaphore::new(1)),
                tasks,
                shutdown,
            }),
        }
    }

    /// This service with health checking and reflection beside it.
    ///
    /// # Errors
    ///
    /// When the descriptors that were compiled in can't be decoded.
    pub async fn routes(self) -> Result<Routes, tonic_reflection::server::Error> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that clients can show the details of an error.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        let (readiness, shutdown) = (self.inner.readiness.clone(), self.inner.shutdown.clone());
        self.inner.tasks.spawn(async move {
            let follow = readiness.report_to(&reporter, &["", ForgeServer::<Self>::NAME]);
            shutdown.run_until_cancelled(follow).await;
        });
        let mut routes = Routes::builder();
        routes
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(ForgeServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES));
        Ok(routes.routes())
    }
}

#[tonic::async_trait]
impl Forge for Service {
    async fn reencrypt_tenant_identity_secrets(
        &self,
        request: Request<ReencryptTenantIdentitySecretsRequest>,
    ) -> Result<Response<ReencryptTenantIdentitySecretsResponse>, Status> {
        let run_id = uuid::Uuid::new_v4().to_string();
        let span = tracing::info_span!("rewrap", run_id);

        // The call is a task of its own, so that its end is audited whatever becomes of
        // the client; the guard tells the task that the client is gone.
        let gone = CancellationToken::new();
        let _guard: DropGuard = gone.clone().drop_guard();
        let inner = self.inner.clone();
        let call = async move { inner.call(request, &gone).await };
        let answer = self.inner.tasks.spawn(call.instrument(span)).await;

        let run_id = MetadataValue::try_from(run_id).map_err(|_| ServiceError::Internal)?;
        let answer = answer.unwrap_or_else(|panic| {
            tracing::error!(run_id = ?run_id, error = %panic, "a call panicked: this is a bug");
            Err(ServiceError::Internal)
        });
        match answer {
            Ok(response) => {
                let mut response = Response::new(response);
                response.metadata_mut().insert(RUN_ID_HEADER, run_id);
                Ok(response)
            }
            Err(error) => {
                let mut status = Status::from(error);
                status.metadata_mut().insert(RUN_ID_HEADER, run_id);
                Err(status)
            }
        }
    }
}

impl Inner {
    /// Carries the call out and leaves its audit record.
    async fn call(
        &self,
        request: Request<ReencryptTenantIdentitySecretsRequest>,
        gone: &CancellationToken,
    ) -> Result<ReencryptTenantIdentitySecretsResponse, ServiceError> {
        let started = Instant::now();
        let mut record = audit::Record::new(request.extensions().get::<Arc<Peer>>().cloned());
        let result = self.checked_run(&request, gone, &mut record).await;
        record.write(started.elapsed(), result.as_ref().err());
        let (report, target) = result?;
        Ok(response(&report, target))
    }

    async fn checked_run(
        &self,
        request: &Request<ReencryptTenantIdentitySecretsRequest>,
        gone: &CancellationToken,
        record: &mut audit::Record,
    ) -> Result<(Report, String), ServiceError> {
        let peer = record.peer().ok_or(ServiceError::Internal)?;
        let permit = authorize(&self.policy, &peer.caller)?;

        let message = request.get_ref();
        let mode = if message.dry_run {
            Mode::DryRun
        } else {
            Mode::Apply
        };
        let scope = match &message.organization_id {
            None => Scope::Site,
            Some(id) => Scope::Organization(OrganizationId::parse(id)?),
        };
        record.asked(&scope, mode);

        let runner = self.runner.as_ref().ok_or(ServiceError::Disabled)?;
        let target = runner.keyring().target().id().to_string();
        expect_target(request.metadata(), &target)?;
        if self.shutdown.is_cancelled() {
            return Err(ServiceError::ShuttingDown);
        }
        self.readiness.check().map_err(ServiceError::NotReady)?;

        let _one_of_many = self.runs.clone().try_acquire_owned();
        let _one_of_many = _one_of_many.map_err(|_| ServiceError::TooManyRuns)?;
        let _only_one = match (&scope, mode) {
            (Scope::Site, Mode::Apply) => Some(
                self.site_apply
                    .clone()
                    .try_acquire_owned()
                    .map_err(|_| ServiceError::ApplyUnderWay)?,
            ),
            _ => None,
        };

        tracing::info!(
            scope = %scope,
            dry_run = mode == Mode::DryRun,
            target_key_id = target,
            caller = permit.identity().name(),
            "run started"
        );
        let deadline = deadline(request.metadata());
        let report = self
            .run(runner, &scope, mode, deadline, gone, record)
            .await?;
        Ok((report, target))
    }

    /// Runs until the end, the deadline, the client's leaving or the shutdown.
    async fn run(
        &self,
        runner: &Runner,
        scope: &Scope,
        mode: Mode,
        deadline: Option<Duration>,
        gone: &CancellationToken,
        record: &mut audit::Record,
    ) -> Result<Report, ServiceError> {
        let stop = self.shutdown.child_token();
        let mut run = std::pin::pin!(runner.run(scope, mode, &stop));
        let deadline = async {
            match deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        let (result, stopped_for) = tokio::select! {
            result = run.as_mut() => (result, None),
            () = gone.cancelled() => {
                stop.cancel();
                (run.await, Some(ServiceError::Cancelled))
            }
            () = deadline => {
                stop.cancel();
                (run.await, Some(ServiceError::DeadlineExceeded))
            }
        };
        match result {
            Ok(report) => {
                record.counted(&report);
                Ok(report)
            }
            Err((error, report)) => {
                record.counted(&report);
                let organization = match scope {
                    Scope::Site => None,
                    Scope::Organization(id) => Some(id.clone()),
                };
                Err(match (error, stopped_for) {
                    (crate::run::RunError::Stopped, Some(reason)) => reason,
                    (error, _) => ServiceError::from_run(error, organization),
                })
            }
        }
    }
}

/// A caller that says which target it means is not served by another one: a
/// replacement of the server with a new target may be half-way through.
fn expect_target(metadata: &MetadataMap, target: &str) -> Result<(), ServiceError> {
    for expected in metadata.get_all(EXPECT_TARGET_HEADER) {
        let expected = String::from_utf8_lossy(expected.as_bytes());
        if expected != target {
            return Err(ServiceError::UnexpectedTarget {
                target: target.to_owned(),
                expected: expected.into_owned(),
            });
        }
    }
    Ok(())
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
