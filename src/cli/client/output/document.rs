//! The JSON documents. Scripts rely on them: members are only added, at the end.

use std::collections::BTreeMap;

use serde::Serialize;

use super::text::{duration, rfc3339};
use crate::proto::rewrap as pb;

/// The first members of every document.
#[derive(Debug, Serialize)]
pub(crate) struct Document<T> {
    kind: &'static str,
    version: u32,
    #[serde(flatten)]
    content: T,
}

/// A document of this kind.
pub(crate) fn document<T>(kind: &'static str, content: T) -> Document<T> {
    Document {
        kind,
        version: 1,
        content,
    }
}

fn seconds(time: Option<prost_types::Duration>) -> Option<f64> {
    duration(time).map(|time| time.as_secs_f64())
}

/// The last census and every key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Keys {
    census: Option<Census>,
    keys: Vec<Key>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Census {
    time: Option<String>,
    rows: u64,
    secrets: u64,
    unreadable: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Key {
    key_id: String,
    in_secrets: bool,
    check_value: String,
    target: bool,
    secrets: u64,
    organizations: u64,
    verdict: Verdict,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    state: &'static str,
    explanation: String,
    clean_since: Option<String>,
    removable_at: Option<String>,
    stragglers: u64,
}

impl From<&pb::ListKeysResponse> for Keys {
    fn from(list: &pb::ListKeysResponse) -> Self {
        Self {
            census: list.census.as_ref().map(Census::from),
            keys: list.keys.iter().map(Key::from).collect(),
        }
    }
}

impl From<&pb::Census> for Census {
    fn from(census: &pb::Census) -> Self {
        Self {
            time: rfc3339(census.time),
            rows: census.rows,
            secrets: census.secrets,
            unreadable: census.unreadable,
        }
    }
}

impl From<&pb::Key> for Key {
    fn from(key: &pb::Key) -> Self {
        Self {
            key_id: key.key_id.clone(),
            in_secrets: key.in_secrets,
            check_value: key.check_value.clone(),
            target: key.target,
            secrets: key.secrets,
            organizations: key.organizations,
            verdict: Verdict::from(&key.verdict.clone().unwrap_or_default()),
        }
    }
}

impl From<&pb::Verdict> for Verdict {
    fn from(verdict: &pb::Verdict) -> Self {
        Self {
            state: verdict_name(verdict.state()),
            explanation: verdict.explanation.clone(),
            clean_since: rfc3339(verdict.clean_since),
            removable_at: rfc3339(verdict.removable_at),
            stragglers: verdict.stragglers,
        }
    }
}

/// The name of a verdict's state.
pub(crate) const fn verdict_name(state: pb::VerdictState) -> &'static str {
    match state {
        pb::VerdictState::Target => "TARGET",
        pb::VerdictState::InUse => "IN_USE",
        pb::VerdictState::Soaking => "SOAKING",
        pb::VerdictState::Removable => "REMOVABLE",
        pb::VerdictState::CannotSay | pb::VerdictState::Unspecified => "CANNOT_SAY",
    }
}

/// The name of a run's kind.
pub(crate) const fn kind_name(kind: pb::RunKind) -> &'static str {
    match kind {
        pb::RunKind::DryRun => "DRY_RUN",
        pb::RunKind::Apply => "APPLY",
        pb::RunKind::Verify => "VERIFY",
        pb::RunKind::Census => "CENSUS",
        pb::RunKind::Unspecified => "UNSPECIFIED",
    }
}

/// The name of a run's state.
pub(crate) const fn state_name(state: pb::RunState) -> &'static str {
    match state {
        pb::RunState::Running => "RUNNING",
        pb::RunState::Finished => "FINISHED",
        pb::RunState::Stopped => "STOPPED",
        pb::RunState::Failed => "FAILED",
        pb::RunState::Unspecified => "UNSPECIFIED",
    }
}

/// A run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Run {
    id: String,
    run_kind: &'static str,
    scope: Scope,
    state: &'static str,
    target_key_id: String,
    start_time: Option<String>,
    end_time: Option<String>,
    caller: String,
    instance: String,
    durable: bool,
    progress: Progress,
    report: Option<Report>,
    failure_groups: Vec<FailureGroup>,
    error: Option<RunError>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failures: Option<Vec<Failure>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Scope {
    Site(bool),
    OrganizationId(String),
}

/// The progress of a run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Progress {
    rows_done: u64,
    rows_total: u64,
    rows_per_second: f64,
    rate_limit_rows_per_second: Option<f64>,
    remaining: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    rows_examined: u64,
    rows_updated: u64,
    rows_on_target: u64,
    rows_failed: u64,
    rows_in_doubt: u64,
    secrets_rewrapped: u64,
    secrets_on_target: u64,
    secrets_verified: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FailureGroup {
    reason: String,
    key_id: String,
    secrets: u64,
    organizations: u64,
    remedy: String,
    sample_organization_ids: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RunError {
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
}

/// One failure.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Failure {
    organization_id: String,
    field: String,
    reason: String,
    key_id: String,
    message: String,
}

impl From<&pb::Run> for Run {
    fn from(run: &pb::Run) -> Self {
        let problem = super::super::problem::Problem::of_run(run);
        Self {
            id: run.id.clone(),
            run_kind: kind_name(run.kind()),
            scope: match &run.scope {
                Some(pb::run::Scope::OrganizationId(id)) => Scope::OrganizationId(id.clone()),
                _ => Scope::Site(true),
            },
            state: state_name(run.state()),
            target_key_id: run.target_key_id.clone(),
            start_time: rfc3339(run.start_time),
            end_time: rfc3339(run.end_time),
            caller: run.caller.clone(),
            instance: run.instance.clone(),
            durable: run.durable,
            progress: Progress::from(&run.progress.unwrap_or_default()),
            report: run.report.as_ref().map(Report::from),
            failure_groups: run.failure_groups.iter().map(FailureGroup::from).collect(),
            error: problem.map(|problem| RunError {
                reason: problem.reason,
                message: problem.message,
                metadata: problem.metadata,
            }),
            failures: None,
        }
    }
}

impl Run {
    /// The run with all of its failures.
    pub(crate) fn with_failures(run: &pb::Run, failures: &[pb::Failure]) -> Self {
        Self {
            failures: Some(failures.iter().map(Failure::from).collect()),
            ..Self::from(run)
        }
    }
}

impl From<&pb::Progress> for Progress {
    fn from(progress: &pb::Progress) -> Self {
        Self {
            rows_done: progress.rows_done,
            rows_total: progress.rows_total,
            rows_per_second: progress.rows_per_second,
            rate_limit_rows_per_second: progress.rate_limit_rows_per_second,
            remaining: seconds(progress.remaining),
        }
    }
}

impl From<&pb::Report> for Report {
    fn from(report: &pb::Report) -> Self {
        Self {
            rows_examined: report.rows_examined,
            rows_updated: report.rows_updated,
            rows_on_target: report.rows_on_target,
            rows_failed: report.rows_failed,
            rows_in_doubt: report.rows_in_doubt,
            secrets_rewrapped: report.secrets_rewrapped,
            secrets_on_target: report.secrets_on_target,
            secrets_verified: report.secrets_verified,
        }
    }
}

impl From<&pb::FailureGroup> for FailureGroup {
    fn from(group: &pb::FailureGroup) -> Self {
        Self {
            reason: group.reason.clone(),
            key_id: group.key_id.clone(),
            secrets: group.secrets,
            organizations: group.organizations,
            remedy: group.remedy.clone(),
            sample_organization_ids: group.sample_organization_ids.clone(),
        }
    }
}

impl From<&pb::Failure> for Failure {
    fn from(failure: &pb::Failure) -> Self {
        Self {
            organization_id: failure.organization_id.clone(),
            field: failure.field.clone(),
            reason: failure.reason.clone(),
            key_id: failure.key_id.clone(),
            message: failure.message.clone(),
        }
    }
}

/// A line of progress.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProgressLine<'a> {
    #[serde(rename = "type")]
    line_type: &'static str,
    run_id: &'a str,
    run_kind: &'static str,
    state: &'static str,
    #[serde(flatten)]
    progress: Progress,
}

impl<'a> ProgressLine<'a> {
    pub(crate) fn new(run: &'a pb::Run) -> Self {
        Self {
            line_type: "progress",
            run_id: &run.id,
            run_kind: kind_name(run.kind()),
            state: state_name(run.state()),
            progress: Progress::from(&run.progress.unwrap_or_default()),
        }
    }
}

/// A line about one failure.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FailureLine {
    #[serde(rename = "type")]
    line_type: &'static str,
    #[serde(flatten)]
    failure: Failure,
}

impl From<&pb::Failure> for FailureLine {
    fn from(failure: &pb::Failure) -> Self {
        Self {
            line_type: "failure",
            failure: Failure::from(failure),
        }
    }
}

/// Who calls.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Caller {
    #[serde(rename = "callerKind")]
    kind: String,
    name: String,
    organization: String,
    group: String,
    rule: String,
    allowed: bool,
    reason: String,
}

impl From<&pb::Caller> for Caller {
    fn from(caller: &pb::Caller) -> Self {
        Self {
            kind: caller.kind.clone(),
            name: caller.name.clone(),
            organization: caller.organization.clone(),
            group: caller.group.clone(),
            rule: caller.rule.clone(),
            allowed: caller.allowed,
            reason: caller.reason.clone(),
        }
    }
}

/// The report of `forge.Forge`, for servers without `nico.rewrap.v1`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForgeReport {
    pub(crate) run_id: String,
    pub(crate) dry_run: bool,
    pub(crate) target_key_id: String,
    pub(crate) rows_examined: u32,
    pub(crate) rows_updated: u32,
    pub(crate) rows_on_target: u32,
    pub(crate) rows_failed: u32,
    pub(crate) secrets_rewrapped: u32,
    pub(crate) secrets_on_target: u32,
    pub(crate) failures: Vec<ForgeFailure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ForgeFailure {
    pub(crate) organization_id: String,
    pub(crate) field: String,
    pub(crate) message: String,
}
