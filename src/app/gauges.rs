//! Keeps the gauges about keys and censuses up to date.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use crate::{
    api::context::LateRunner,
    domain::verdict::VerdictState,
    run::{
        Site,
        censuses::{Censuses, KeyUse},
        history::History,
        receipt::Receipt,
    },
    telemetry::{self, KeyGauges, StoredSecrets},
};

/// How often to check for censuses and applies of other instances.
const INTERVAL: Duration = Duration::from_secs(30);

/// How often to check whether the keys have been read and the schema `nico_rewrap` exists. Without
/// the schema, nothing is read from the database.
const START: Duration = Duration::from_secs(1);

/// How many receipts to search for the last site-wide apply.
const RECEIPTS: u32 = 20;

/// Sets the gauges whenever this instance has recorded a census, and regularly.
pub(super) async fn watch(runner: LateRunner, censuses: Arc<Censuses>, history: History) {
    let site = loop {
        match runner.get() {
            Some(runner) => break runner.site().clone(),
            None => sleep(START).await,
        }
    };
    let mut changes = censuses.changes();
    loop {
        let is_persistent = history.is_persistent();
        publish(&site, &censuses.key_use(&site).await);
        if is_persistent {
            publish_last_apply(&site).await;
        }
        let pause = if is_persistent { INTERVAL } else { START };
        let _ = timeout(pause, changes.changed()).await;
    }
}

fn publish(site: &Site, known: &KeyUse) {
    let keyring = &site.keyring;
    let ids = || keyring.iter().map(|kek| kek.id().as_str());
    let last = known.last.as_ref();
    telemetry::last_census(last.map(|census| census.time));
    telemetry::stored_secrets(
        ids(),
        last.map(|census| {
            let mut stored = StoredSecrets {
                unreadable: census.tally.unreadable,
                ..StoredSecrets::default()
            };
            for (id, key) in &census.tally.keys {
                if keyring.get(id).is_some() {
                    stored.by_key.insert(id.clone(), key.secrets);
                } else {
                    stored.not_in_secrets += key.secrets;
                }
            }
            stored
        }),
    );
    for id in ids() {
        let verdict = known.verdict(id);
        let gauges = KeyGauges {
            clean_since: verdict.clean_since,
            is_removable: match verdict.state {
                VerdictState::Removable => Some(true),
                VerdictState::Target | VerdictState::InUse | VerdictState::Soaking => Some(false),
                VerdictState::CannotSay => None,
            },
        };
        telemetry::key_verdict(id, gauges);
    }
}

/// The last apply of any instance, also after a restart. An apply that wrote nothing has no
/// receipt.
async fn publish_last_apply(site: &Site) {
    let Ok(receipts) = site.store.last_receipts(RECEIPTS).await else {
        return;
    };
    let ends = receipts
        .iter()
        .filter_map(|receipt| Receipt::end_of_clean_site_apply(&receipt.document));
    if let Some(end) = ends.max() {
        telemetry::apply_succeeded(end);
    }
}
