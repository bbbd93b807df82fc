//! The JSON documents. Scripts rely on them: members are only added, at the end.

mod caller;
mod forge;
mod keys;
mod line;
mod run;

use serde::Serialize;

pub(crate) use self::{
    caller::Caller,
    forge::{ForgeFailure, ForgeReport},
    keys::{Census, Key, Keys, verdict_name},
    line::{FailureLine, ProgressLine},
    run::{Run, kind_name, state_name},
};

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
