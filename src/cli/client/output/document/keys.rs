//! Keys, their verdicts and the last census.

use serde::Serialize;

use crate::{cli::client::output::text::rfc3339, proto::rewrap as pb};

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
