//! The JSON document of `status`.

use serde::Serialize;

use super::site::{Instance, Site};
use crate::cli::client::output::{
    document::{self, document},
    text::{duration, rfc3339},
};

impl Site {
    /// The document.
    pub(super) fn document(&self) -> impl Serialize {
        document(
            "Status",
            StatusDocument {
                endpoint: self.place.clone(),
                context: self.context.clone(),
                site: self.name.clone(),
                caller: document::Caller::from(&self.caller),
                agree: self.disagreements.is_empty(),
                disagreements: self.disagreements.clone(),
                instances: self.instances.iter().map(InstanceDocument::from).collect(),
                census: self
                    .keys
                    .as_ref()
                    .and_then(|keys| keys.census.as_ref())
                    .map(document::Census::from),
                keys: self
                    .keys
                    .iter()
                    .flat_map(|keys| &keys.keys)
                    .map(document::Key::from)
                    .collect(),
                active_runs: self
                    .active_runs()
                    .into_iter()
                    .map(document::Run::from)
                    .collect(),
                last_run: self.last_run.as_ref().map(document::Run::from),
                next: self.next_steps(),
            },
        )
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusDocument {
    endpoint: String,
    context: Option<String>,
    site: Option<String>,
    caller: document::Caller,
    agree: bool,
    disagreements: Vec<String>,
    instances: Vec<InstanceDocument>,
    census: Option<document::Census>,
    keys: Vec<document::Key>,
    active_runs: Vec<document::Run>,
    last_run: Option<document::Run>,
    next: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InstanceDocument {
    address: String,
    /// Why the instance does not answer.
    problem: Option<String>,
    version: String,
    revision: String,
    instance: String,
    start_time: Option<String>,
    enabled: bool,
    target_key_id: String,
    keys: Vec<LoadedKey>,
    database: Option<Database>,
    history_persistent: bool,
    changed_on_disk: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadedKey {
    key_id: String,
    check_value: String,
    target: bool,
    source: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Database {
    reachable: bool,
    server_version: String,
    in_recovery: bool,
    tls: String,
    replica_lag: Option<f64>,
}

impl From<&Instance> for InstanceDocument {
    fn from(instance: &Instance) -> Self {
        let status = instance.status.as_ref().ok().cloned().unwrap_or_default();
        Self {
            address: instance.address.clone(),
            problem: instance
                .status
                .as_ref()
                .err()
                .map(|problem| problem.message.clone()),
            version: status.version,
            revision: status.revision,
            instance: status.instance,
            start_time: rfc3339(status.start_time),
            enabled: status.enabled,
            target_key_id: status.target_key_id,
            keys: status
                .keys
                .into_iter()
                .map(|key| LoadedKey {
                    key_id: key.key_id,
                    check_value: key.check_value,
                    target: key.target,
                    source: key.source,
                })
                .collect(),
            database: status.database.map(|database| Database {
                reachable: database.reachable,
                server_version: database.server_version,
                in_recovery: database.in_recovery,
                tls: database.tls,
                replica_lag: duration(database.replica_lag).map(|lag| lag.as_secs_f64()),
            }),
            history_persistent: status.history_persistent,
            changed_on_disk: status.changed_on_disk,
        }
    }
}
