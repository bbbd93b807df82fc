//! The kinds of runs.

use serde::{Deserialize, Serialize};

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

/// Whether a run writes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Evaluate the rows, but write nothing.
    DryRun,
    /// Write the rows.
    Apply,
}
