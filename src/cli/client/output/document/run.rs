//! Runs, with their reports and failures.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    cli::client::{
        output::text::{duration, rfc3339},
        problem::Problem,
    },
    proto::rewrap as pb,
};

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
        let problem = Problem::of_run(run);
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

fn seconds(time: Option<prost_types::Duration>) -> Option<f64> {
    duration(time).map(|time| time.as_secs_f64())
}
