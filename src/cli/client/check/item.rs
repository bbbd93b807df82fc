//! One line of the pre-flight.

use serde::Serialize;

use crate::cli::client::output::text::{Mark, Style};

/// The checks. Each has a section in `docs/troubleshooting.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Reachable,
    Authorized,
    Enabled,
    ExpectedTarget,
    InstancesAgree,
    FilesUnchanged,
    Database,
    History,
    NoOtherApply,
    Census,
    DryRun,
    SameBytes,
}

impl Check {
    /// The name. The anchor of the section is `check-` and this name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Reachable => "check-reachable",
            Self::Authorized => "check-authorized",
            Self::Enabled => "check-enabled",
            Self::ExpectedTarget => "check-expected-target",
            Self::InstancesAgree => "check-instances-agree",
            Self::FilesUnchanged => "check-files-unchanged",
            Self::Database => "check-database",
            Self::History => "check-history",
            Self::NoOtherApply => "check-no-other-apply",
            Self::Census => "check-census",
            Self::DryRun => "check-dry-run",
            Self::SameBytes => "check-same-bytes",
        }
    }

    fn link(self) -> String {
        format!("docs/troubleshooting.md#{}", self.name())
    }
}

/// The result of one check.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(super) check: Check,
    pub(crate) mark: Mark,
    pub(crate) message: String,
}

impl Item {
    /// The line. A check that did not pass also has a link to its section.
    pub(super) fn text(&self, style: Style) -> String {
        let line = style.marked(self.mark, &self.message);
        match self.mark {
            Mark::Good => line,
            Mark::Warning | Mark::Bad => format!("{line}    see {}\n", self.check.link()),
        }
    }
}

/// The result of one check in JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ItemDocument {
    name: &'static str,
    result: &'static str,
    message: String,
    link: String,
}

impl From<&Item> for ItemDocument {
    fn from(item: &Item) -> Self {
        let name = item.check.name();
        Self {
            name: name.strip_prefix("check-").unwrap_or(name),
            result: match item.mark {
                Mark::Good => "OK",
                Mark::Warning => "WARNING",
                Mark::Bad => "FAILED",
            },
            message: item.message.clone(),
            link: item.check.link(),
        }
    }
}
