//! The keys, and what the last census says about them.

use std::{collections::BTreeMap, time::SystemTime};

use metrics::gauge;

use super::{
    catalog::{KEY_CLEAN_SINCE, KEY_INFO, KEY_REMOVABLE, STORED_SECRETS},
    metrics::{UNKNOWN, timestamp},
};

/// The label value for secrets under key ids that are not in the secrets. There can be any
/// number of such ids, so they have no series of their own.
const NOT_IN_SECRETS: &str = "not_in_secrets";

/// The label value for secrets whose key id cannot be read.
const UNREADABLE: &str = "unreadable";

/// What is known about a key of this instance.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeyGauges {
    /// Since when no census has seen a secret under the key.
    pub(crate) clean_since: Option<SystemTime>,
    /// Whether the key may be removed. `None` if this is unknown.
    pub(crate) is_removable: Option<bool>,
}

/// The secrets of the last census.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredSecrets {
    /// By key id, of the keys of this instance.
    pub(crate) by_key: BTreeMap<String, u64>,
    /// Under all other key ids.
    pub(crate) not_in_secrets: u64,
    /// Without a readable key id.
    pub(crate) unreadable: u64,
}

/// This instance holds this key.
pub(crate) fn key_info(key_id: &str, check_value: &str, is_target: bool) {
    let role = if is_target { "target" } else { "other" };
    gauge!(
        KEY_INFO,
        "key_id" => key_id.to_owned(),
        "check_value" => check_value.to_owned(),
        "role" => role
    )
    .set(1.0);
}

/// What the verdict about a key of this instance says now.
pub(crate) fn key_verdict(key_id: &str, gauges: KeyGauges) {
    let is_removable = gauges
        .is_removable
        .map_or(UNKNOWN, |yes| f64::from(u8::from(yes)));
    let clean_since = gauges.clean_since.map_or(UNKNOWN, timestamp);
    gauge!(KEY_CLEAN_SINCE, "key_id" => key_id.to_owned()).set(clean_since);
    gauge!(KEY_REMOVABLE, "key_id" => key_id.to_owned()).set(is_removable);
}

/// The secrets of the last census; `None` if there was none. `key_ids` are the keys of this
/// instance.
pub(crate) fn stored_secrets<'a>(
    key_ids: impl Iterator<Item = &'a str>,
    stored: Option<StoredSecrets>,
) {
    // A key can have the id of one of the two other series. Its secrets are then added to them.
    let mut series: BTreeMap<String, f64> = BTreeMap::new();
    let mut add = |name: &str, secrets: Option<u64>| {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is an f64")]
        let secrets = secrets.map_or(UNKNOWN, |secrets| secrets as f64);
        *series.entry(name.to_owned()).or_default() += secrets;
    };
    for id in key_ids {
        let secrets = |stored: &StoredSecrets| stored.by_key.get(id).copied().unwrap_or(0);
        add(id, stored.as_ref().map(secrets));
    }
    add(
        NOT_IN_SECRETS,
        stored.as_ref().map(|stored| stored.not_in_secrets),
    );
    add(UNREADABLE, stored.as_ref().map(|stored| stored.unreadable));
    for (key_id, secrets) in series {
        gauge!(STORED_SECRETS, "key_id" => key_id).set(secrets);
    }
}
