//! The lines that a run prints with `-o jsonl`.

use serde::Serialize;

use super::run::{Failure, Progress, kind_name, state_name};
use crate::proto::rewrap as pb;

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
