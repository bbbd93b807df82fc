//! The service `forge.Forge`, compatible with nico-api.

use std::{sync::Arc, time::Duration};

use tonic::{Code, Request, Response, Status, metadata::MetadataMap};

use crate::{
    api::{
        audited::Audited,
        call::Calls,
        error::{ServiceError, set_status},
        request::{Answer, CallRequest, RunOptions},
        run_id::RUN_ID_HEADER,
    },
    auth::peer::Peer,
    domain::organization::OrganizationId,
    proto::forge::{
        ReencryptTenantIdentityFailure, ReencryptTenantIdentitySecretsRequest,
        ReencryptTenantIdentitySecretsResponse, forge_server::Forge,
    },
    run::{Report, Scope, record::Kind},
    telemetry::Trace,
};

/// The path of the method, for the audit record.
const METHOD: &str = "/forge.Forge/ReencryptTenantIdentitySecrets";

/// The header with the target key id that the client expects.
const EXPECT_TARGET_HEADER: &str = "x-expect-target-key-id";

/// The implementation of the service.
pub(super) struct ForgeService(pub(super) Calls);

#[tonic::async_trait]
impl Forge for ForgeService {
    async fn reencrypt_tenant_identity_secrets(
        &self,
        request: Request<ReencryptTenantIdentitySecretsRequest>,
    ) -> Result<Response<ReencryptTenantIdentitySecretsResponse>, Status> {
        let span = Trace::of_caller(request.metadata()).call(METHOD);
        let call = call_request(&request, span.trace());
        let Answer { run_id, result } = self.0.carry_out(call).await;
        let result = result.map_err(|error| error.into_traced_status(&run_id, &span));
        let (report, target) = result.map_err(Audited::mark_error)?;
        set_status(&span, Code::Ok);
        let mut response = Response::new(response(&report, target));
        Audited::mark(&mut response);
        if let Ok(run_id) = run_id.parse() {
            response.metadata_mut().insert(RUN_ID_HEADER, run_id);
        }
        Ok(response)
    }
}

fn call_request(
    request: &Request<ReencryptTenantIdentitySecretsRequest>,
    trace: Trace,
) -> CallRequest {
    let message = request.get_ref();
    CallRequest {
        method: METHOD,
        peer: request.extensions().get::<Arc<Peer>>().cloned(),
        scope: match &message.organization_id {
            None => Ok(Scope::Site),
            Some(id) => OrganizationId::parse(id)
                .map(Scope::Organization)
                .map_err(ServiceError::from),
        },
        kind: Ok(if message.dry_run {
            Kind::DryRun
        } else {
            Kind::Apply
        }),
        expected_target: expected_target(request.metadata()),
        deadline: deadline(request.metadata()),
        trace,
        options: RunOptions::default(),
    }
}

/// The target key ids that the client expects. During a rollout with a new target key, the
/// server of the old target refuses such a call.
///
/// A value is cut after 256 characters. A key id has at most 255 bytes, so a longer value
/// cannot match.
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

/// The deadline in the `grpc-timeout` header: at most eight digits and a unit (gRPC over
/// HTTP/2, "Requests"). A malformed header is ignored, as in other servers.
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
    // The counters of this message have 32 bits. They stop at their maximum.
    let counter = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let counts = &report.counts;
    ReencryptTenantIdentitySecretsResponse {
        rows_examined: counter(counts.rows_examined()),
        rows_updated: counter(counts.rows_updated),
        rows_skipped_all_on_target: counter(counts.rows_on_target),
        fields_reencrypted: counter(counts.secrets_rewrapped),
        fields_skipped_on_target: counter(counts.secrets_on_target),
        rows_failed: counter(counts.rows_failed),
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
    fn counters_stop_at_their_maximum() {
        let mut report = Report::default();
        report.counts.rows_updated = u64::from(u32::MAX);
        report.counts.rows_failed = 1;
        let response = response(&report, "kv2".to_owned());
        assert_eq!(response.rows_examined, u32::MAX);
        assert_eq!((response.rows_updated, response.rows_failed), (u32::MAX, 1));
    }

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
