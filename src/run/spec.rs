//! The parameters of a run, and why a run can end early.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    domain::{keyring::Keyring, organization::OrganizationId},
    store::{Store, StoreError},
};

/// What a run covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Every organization.
    Site,
    /// One organization.
    Organization(OrganizationId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site => f.write_str("site"),
            Self::Organization(id) => write!(f, "organization {id}"),
        }
    }
}

/// Whether a run writes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Evaluate the rows, but write nothing.
    DryRun,
    /// Write the rows.
    Apply,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Kind {
    /// Evaluate the rows, but write nothing.
    DryRun,
    /// Re-wrap.
    Apply,
    /// Decrypt every secret and check its content.
    Verify,
    /// Count the secrets by key id.
    Census,
}

impl Kind {
    /// Whether the run writes rows.
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Apply => Mode::Apply,
            Self::DryRun | Self::Verify | Self::Census => Mode::DryRun,
        }
    }

    /// The label value for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::DryRun => "dry_run",
            Self::Apply => "apply",
            Self::Verify => "verify",
            Self::Census => "census",
        }
    }
}

/// The parameters of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSpec {
    /// The id of the run.
    pub id: String,
    /// What it does.
    pub kind: Kind,
    /// What it covers. A census always covers the site.
    pub scope: Scope,
    /// Maximum number of rows per second of this run. Zero means no limit of its own.
    pub max_rows_per_second: u32,
    /// The number of failed rows after which the run stops. Zero means no limit.
    pub stop_after_failures: u32,
}

/// The keys and the database of a site.
#[derive(Debug)]
pub struct Site {
    /// The keys.
    pub keyring: Keyring,
    /// The database.
    pub store: Arc<Store>,
}

/// How much load a run may put on the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateOptions {
    /// Maximum number of rows per second that all runs together write. Zero means no limit.
    pub max_rows_per_second: u32,
    /// Whether a site-wide apply slows down while others use the database and their commits
    /// take longer.
    pub adaptive_rate: bool,
}

/// Why a run ended without a complete report. Committed rows stay committed.
#[derive(Debug, Error)]
pub enum RunError {
    /// The requested organization does not exist.
    #[error("no organization {0}")]
    NotFound(OrganizationId),
    /// A caller stopped the run.
    #[error("the run was stopped")]
    Stopped,
    /// The database or one of its rows could not be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody cancelled the wait of a commit for its synchronous standby.
    #[error("a commit of this run was not confirmed by its synchronous standby")]
    NotReplicated,
    /// The number of failed rows has reached the limit of the request.
    #[error("the run was stopped after {0} failed rows")]
    FailureLimit(u64),
    /// Another instance takes an automatic census now.
    #[error("another instance takes a census now")]
    CensusElsewhere,
    /// The permit does not cover the kind of the run: a bug in this program.
    #[error("the permit of the run does not cover its kind")]
    NotPermitted,
    /// A bug in this program.
    #[error("a task of the run panicked")]
    Panicked,
}
