//! The record of a run, which clients see and the history stores.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

pub use super::spec::Kind;
use super::{RunSpec, Scope, groups::FailureGroup};
use crate::domain::{census::Tally, verdict::CensusFacts};

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunState {
    /// In progress.
    Running,
    /// Everything in the scope was evaluated. Rows may have failed.
    Finished,
    /// A caller, a deadline, a shutdown or the limit of failed rows stopped the run.
    Stopped,
    /// The run ended with an error.
    Failed,
}

impl RunState {
    /// The name in the database.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Stopped => "STOPPED",
            Self::Failed => "FAILED",
        }
    }
}

/// The progress of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Evaluated rows.
    pub rows_done: u64,
    /// An estimate of the number of rows in the scope. Zero without an estimate.
    pub rows_total: u64,
    /// The rate of the last seconds.
    pub rows_per_second: f64,
    /// The current limit of the rate.
    pub rate_limit: Option<f64>,
    /// An estimate of the time until the end.
    pub remaining: Option<Duration>,
}

/// The counters of a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows in which at least one secret was re-wrapped, or in a dry run would be re-wrapped.
    pub rows_updated: u64,
    /// Rows with nothing to do.
    pub rows_on_target: u64,
    /// Rows that failed and were not changed.
    pub rows_failed: u64,
    /// Rows whose last write has an unknown outcome. No other counter includes them.
    pub rows_in_doubt: u64,
    /// Secrets that were re-wrapped, or in a dry run would be re-wrapped.
    pub secrets_rewrapped: u64,
    /// Secrets that decrypt under the target key.
    pub secrets_on_target: u64,
    /// Secrets that a verify decrypted and checked.
    pub secrets_verified: u64,
}

impl Counts {
    /// The number of rows that were evaluated.
    #[must_use]
    pub fn rows_examined(&self) -> u64 {
        self.rows_updated + self.rows_on_target + self.rows_failed
    }
}

/// Why a run did not finish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunProblem {
    /// The gRPC code.
    pub code: i32,
    /// The stable reason.
    pub reason: String,
    /// The text for the operator.
    pub message: String,
    /// The variable parts of the message.
    pub metadata: BTreeMap<String, String>,
}

impl RunRecord {
    /// The record of a run that starts now.
    #[must_use]
    pub fn started(spec: &RunSpec, target: &str, caller: &str, instance: &str) -> Self {
        Self {
            id: spec.id.clone(),
            kind: spec.kind,
            scope: spec.scope.clone(),
            state: RunState::Running,
            target_key_id: target.to_owned(),
            start_time: SystemTime::now(),
            end_time: None,
            caller: caller.to_owned(),
            instance: instance.to_owned(),
            progress: Progress::default(),
            counts: None,
            counts_so_far: Counts::default(),
            failure_groups: Vec::new(),
            problem: None,
            durable: false,
        }
    }

    /// Whether the server started this run by itself.
    #[must_use]
    pub fn is_automatic(&self) -> bool {
        self.kind == Kind::Census && self.caller.is_empty()
    }

    /// Whether this is a site-wide apply.
    #[must_use]
    pub fn is_site_apply(&self) -> bool {
        self.kind == Kind::Apply && self.scope == Scope::Site
    }
}

impl RunProblem {
    /// Whether the problem can end without a change of the site, because the database only did not
    /// answer.
    #[must_use]
    pub fn can_pass(&self) -> bool {
        // gRPC core, "Status codes and their use": UNAVAILABLE.
        self.code == 14
    }

    /// A bug of this program.
    #[must_use]
    pub fn internal() -> Self {
        Self {
            // gRPC core, "Status codes and their use": INTERNAL.
            code: 13,
            reason: "INTERNAL".to_owned(),
            message: "internal error: search the server's log for this run id".to_owned(),
            metadata: BTreeMap::new(),
        }
    }
}

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// A UUID.
    pub id: String,
    /// What the run does.
    pub kind: Kind,
    /// What the run covers.
    pub scope: Scope,
    /// Its state.
    pub state: RunState,
    /// The target key id when the run started.
    pub target_key_id: String,
    /// When the run started.
    pub start_time: SystemTime,
    /// When the run ended.
    pub end_time: Option<SystemTime>,
    /// The name of the caller that started the run; empty for an automatic census.
    pub caller: String,
    /// The instance that executes the run.
    pub instance: String,
    /// The progress of the run.
    pub progress: Progress,
    /// The counts of the run, after its end.
    pub counts: Option<Counts>,
    /// The latest counts of a run in progress. They become the report if the instance is killed.
    #[serde(default)]
    pub counts_so_far: Counts,
    /// Its failures, by reason and key id.
    pub failure_groups: Vec<FailureGroup>,
    /// Why the run did not finish.
    pub problem: Option<RunProblem>,
    /// Whether everything in the report survives a crash of the database.
    pub durable: bool,
}

/// A census.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// The id of the run.
    pub run_id: String,
    /// The next transaction id when the snapshot was taken.
    pub moment: i64,
    /// When the snapshot was taken, by the clock of the database.
    pub time: SystemTime,
    /// How long the census held its snapshot.
    pub duration: Duration,
    /// The counts.
    pub tally: Tally,
}

impl Census {
    /// The parts of the census on which verdicts depend.
    #[must_use]
    pub fn facts(&self) -> CensusFacts {
        let secrets = self.tally.keys.iter();
        CensusFacts {
            run_id: self.run_id.clone(),
            moment: self.moment,
            start: self.time,
            unreadable: self.tally.unreadable,
            secrets: secrets.map(|(id, key)| (id.clone(), key.secrets)).collect(),
        }
    }
}
