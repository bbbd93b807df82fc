//! Converts the types of the program into the messages of `nico.rewrap.v1`.

use std::time::{Duration, SystemTime};

use prost::Message;
use prost_types::{Any, Timestamp};
use tonic_types::pb::{ErrorInfo, Status as RpcStatus};

use crate::{
    api::{error::DOMAIN, remedy::remedy},
    auth::{
        authorize::Denied,
        identity::{Caller, Identity},
    },
    domain::{
        census::KeyUse,
        keyring::{Kek, KeySource},
        verdict::{Verdict, VerdictState},
    },
    proto::rewrap as pb,
    run::{
        Census, FailureGroup, Scope,
        record::{Counts, Kind, Progress, RunProblem, RunRecord, RunState},
    },
    store::{DatabaseStatus, state::StoredFailure},
};

/// The type of the details of an error.
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

fn timestamp(time: SystemTime) -> Timestamp {
    time.into()
}

/// A duration that is too long for the message becomes its maximum.
fn duration(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration {
        seconds: 315_576_000_000,
        nanos: 0,
    })
}

impl From<RunRecord> for pb::Run {
    fn from(record: RunRecord) -> Self {
        Self {
            id: record.id,
            kind: kind(record.kind).into(),
            scope: Some(match record.scope {
                Scope::Site => pb::run::Scope::Site(pb::Site {}),
                Scope::Organization(id) => pb::run::Scope::OrganizationId(id.as_str().to_owned()),
            }),
            state: state(record.state).into(),
            target_key_id: record.target_key_id,
            start_time: Some(timestamp(record.start_time)),
            end_time: record.end_time.map(timestamp),
            caller: record.caller,
            instance: record.instance,
            progress: Some(record.progress.into()),
            report: record.counts.map(pb::Report::from),
            failure_groups: record.failure_groups.into_iter().map(Into::into).collect(),
            error: record.problem.map(RpcStatus::from),
            durable: record.durable,
        }
    }
}

fn kind(kind: Kind) -> pb::RunKind {
    match kind {
        Kind::DryRun => pb::RunKind::DryRun,
        Kind::Apply => pb::RunKind::Apply,
        Kind::Verify => pb::RunKind::Verify,
        Kind::Census => pb::RunKind::Census,
    }
}

fn state(state: RunState) -> pb::RunState {
    match state {
        RunState::Running => pb::RunState::Running,
        RunState::Finished => pb::RunState::Finished,
        RunState::Stopped => pb::RunState::Stopped,
        RunState::Failed => pb::RunState::Failed,
    }
}

impl From<Progress> for pb::Progress {
    fn from(progress: Progress) -> Self {
        Self {
            rows_done: progress.rows_done,
            rows_total: progress.rows_total,
            rows_per_second: progress.rows_per_second,
            rate_limit_rows_per_second: progress.rate_limit,
            remaining: progress.remaining.map(duration),
        }
    }
}

impl From<Counts> for pb::Report {
    fn from(counts: Counts) -> Self {
        Self {
            rows_examined: counts.rows_examined(),
            rows_updated: counts.rows_updated,
            rows_on_target: counts.rows_on_target,
            rows_failed: counts.rows_failed,
            rows_in_doubt: counts.rows_in_doubt,
            secrets_rewrapped: counts.secrets_rewrapped,
            secrets_on_target: counts.secrets_on_target,
            secrets_verified: counts.secrets_verified,
        }
    }
}

impl From<FailureGroup> for pb::FailureGroup {
    fn from(group: FailureGroup) -> Self {
        Self {
            remedy: remedy(&group.reason).to_owned(),
            reason: group.reason,
            key_id: group.key_id,
            secrets: group.secrets,
            organizations: group.organizations,
            sample_organization_ids: group.sample_organization_ids,
        }
    }
}

impl From<RunProblem> for RpcStatus {
    fn from(problem: RunProblem) -> Self {
        let info = ErrorInfo {
            reason: problem.reason,
            domain: DOMAIN.to_owned(),
            metadata: problem.metadata.into_iter().collect(),
        };
        Self {
            code: problem.code,
            message: problem.message,
            details: vec![Any {
                type_url: ERROR_INFO.to_owned(),
                value: info.encode_to_vec(),
            }],
        }
    }
}

impl From<StoredFailure> for pb::Failure {
    fn from(failure: StoredFailure) -> Self {
        Self {
            organization_id: failure.organization_id,
            field: failure.field,
            reason: failure.reason,
            key_id: failure.key_id,
            message: failure.message,
        }
    }
}

impl From<&Census> for pb::Census {
    fn from(census: &Census) -> Self {
        Self {
            run_id: census.run_id.clone(),
            time: Some(timestamp(census.time)),
            duration: Some(duration(census.duration)),
            rows: census.tally.rows,
            secrets: census.tally.secrets,
            unreadable: census.tally.unreadable,
            unreadable_organization_ids: census.tally.unreadable_organization_ids.clone(),
        }
    }
}

/// A key id with its use in the last census.
pub(super) fn key(
    key_id: &str,
    loaded: Option<&Kek>,
    is_target: bool,
    key_use: Option<&KeyUse>,
    verdict: Verdict,
) -> pb::Key {
    let key_use = key_use.cloned().unwrap_or_default();
    pb::Key {
        key_id: key_id.to_owned(),
        in_secrets: loaded.is_some(),
        check_value: loaded.map_or_else(String::new, |kek| kek.check_value().to_string()),
        target: is_target,
        secrets: key_use.secrets,
        organizations: key_use.organizations,
        secrets_by_column: key_use
            .by_column()
            .map(|(column, secrets)| (column.to_owned(), secrets))
            .collect(),
        sample_organization_ids: key_use.sample_organization_ids,
        verdict: Some(verdict.into()),
    }
}

impl From<Verdict> for pb::Verdict {
    fn from(verdict: Verdict) -> Self {
        let state = match verdict.state {
            VerdictState::Target => pb::VerdictState::Target,
            VerdictState::InUse => pb::VerdictState::InUse,
            VerdictState::Soaking => pb::VerdictState::Soaking,
            VerdictState::Removable => pb::VerdictState::Removable,
            VerdictState::CannotSay => pb::VerdictState::CannotSay,
        };
        Self {
            state: state.into(),
            explanation: verdict.explanation,
            clean_since: verdict.clean_since.map(timestamp),
            removable_at: verdict.removable_at.map(timestamp),
            stragglers: verdict.stragglers,
            last_straggler: verdict.last_straggler.map(timestamp),
        }
    }
}

/// A key that this instance holds.
pub(super) fn loaded_key(kek: &Kek, is_target: bool) -> pb::LoadedKey {
    pb::LoadedKey {
        key_id: kek.id().to_string(),
        check_value: kek.check_value().to_string(),
        target: is_target,
        source: match kek.source() {
            KeySource::Environment(_) => "environment",
            KeySource::Vault(_) => "vault",
            _ => "file",
        }
        .to_owned(),
    }
}

/// The current state of the database. `None` means that it does not answer.
pub(super) fn database(status: Option<DatabaseStatus>, tls: &str) -> pb::Database {
    let tls = tls.to_owned();
    match status {
        None => pb::Database {
            tls,
            ..pb::Database::default()
        },
        Some(status) => pb::Database {
            reachable: true,
            server_version: status.server_version,
            in_recovery: status.in_recovery,
            tls,
            replica_lag: status.replica_lag.map(duration),
        },
    }
}

/// A caller, and why it may not call or not start an apply, if so.
pub(super) fn caller(
    caller: &Caller,
    denied: Option<Denied>,
    denied_apply: Option<Denied>,
) -> pb::Caller {
    let identity = caller.identity.as_ref();
    let text = |part: fn(&Identity) -> Option<&str>| {
        identity.and_then(part).unwrap_or_default().to_owned()
    };
    pb::Caller {
        kind: caller.kind().to_owned(),
        name: text(|identity| Some(identity.name())),
        organization: text(Identity::organization),
        group: text(Identity::group),
        rule: caller.rule.to_owned(),
        allowed: denied.is_none(),
        reason: denied
            .or(denied_apply)
            .map_or_else(String::new, |denied| denied.denial.to_string()),
    }
}
