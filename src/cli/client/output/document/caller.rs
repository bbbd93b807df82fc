//! The caller, as the server sees it.

use serde::Serialize;

use crate::proto::rewrap as pb;

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
