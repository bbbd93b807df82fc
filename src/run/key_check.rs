//! Refuses an apply with wrong key bytes under a right key id, before it writes a row.
//!
//! If the target key had other bytes here than in nico-api, an apply would make every secret
//! unreadable for nico-api, and its report would look good. So a few secrets of every key id must
//! open first. A secret that this program has written proves nothing, because it opens with the
//! same wrong bytes.

use std::collections::BTreeSet;

use thiserror::Error;

use super::{
    Census, Runner, Scope,
    record::{Kind, RunRecord},
};
use crate::{
    domain::{
        envelope::{Buffers, Envelope},
        keyring::{KeyCheckValue, wipe_stack},
        rewrap::open,
    },
    store::StoreError,
};

/// The minimum number of secrets for a decision about a key.
const SAMPLE: usize = 3;

/// A key whose bytes open none of the secrets under its id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "none of {tried} secrets under key id {key_id:?} opens with the key of that id here (check \
     value {check_value}): the key source has other bytes than nico-api. Nothing was written. \
     Compare the check values, and correct the key"
)]
pub struct WrongKeyMaterial {
    /// The key id.
    pub key_id: String,
    /// The check value of the key that this instance holds.
    pub check_value: KeyCheckValue,
    /// How many secrets were tried. Secrets that this program has written do not count.
    pub tried: usize,
}

/// Organizations that had an apply of their own, each with the target key id of that apply. These
/// are the canaries of an operator.
#[derive(Debug, Default)]
pub struct Canaries(BTreeSet<(String, String)>);

impl Canaries {
    /// The canaries among these runs.
    pub fn of(runs: impl IntoIterator<Item = RunRecord>) -> Self {
        let canary = |run: RunRecord| match run.scope {
            Scope::Organization(id) if run.kind == Kind::Apply => {
                let counts = run.counts.filter(|counts| counts.rows_updated > 0);
                counts.map(|_| (id.as_str().to_owned(), run.target_key_id))
            }
            _ => None,
        };
        Self(runs.into_iter().filter_map(canary).collect())
    }

    fn contains(&self, organization_id: &str, key_id: &str) -> bool {
        // The copies are cheap: a check reads at most ten organizations for each key.
        let pair = (organization_id.to_owned(), key_id.to_owned());
        self.0.contains(&pair)
    }
}

/// The result of a check.
#[derive(Debug, Default)]
pub struct Checked {
    /// The keys with wrong bytes.
    pub wrong: Vec<WrongKeyMaterial>,
    /// Whether a secret under the target key opens that another program wrote.
    pub target_opens: bool,
    /// Whether the sample of some key is too small for a decision, although the census counted
    /// enough secrets: the secrets were deleted or replaced.
    pub is_outdated: bool,
}

/// Opens the sample secrets of every key id in `census` that this instance holds.
///
/// # Errors
///
/// [`StoreError`] when the rows can't be read.
pub async fn check_keys(
    runner: &Runner,
    census: &Census,
    canaries: &Canaries,
) -> Result<Checked, StoreError> {
    let (site, own) = (runner.site(), &runner.context.own_texts);
    let mut checked = Checked::default();
    for (key_id, key) in &census.tally.keys {
        let Some(kek) = site.keyring.get(key_id) else {
            // The run reports its secrets as KEY_NOT_IN_SECRETS.
            continue;
        };
        let (mut closed, mut opened, mut own_secrets) = (0, 0, 0);
        for organization_id in &key.sample_organization_ids {
            if closed + opened >= SAMPLE && opened > 0 {
                break;
            }
            let row = match site.store.row(organization_id).await {
                Ok(row) => row,
                Err(StoreError::Row(_)) => None,
                Err(error) => return Err(error),
            };
            let texts = row.map(|row| row.texts).unwrap_or_default();
            for text in texts.iter().flatten().filter(|text| names(text, key_id)) {
                if open(&site.keyring, text, &mut Buffers::default()).is_err() {
                    closed += 1;
                } else if own.contains(text) || canaries.contains(organization_id, key_id) {
                    own_secrets += 1;
                } else {
                    opened += 1;
                }
            }
            wipe_stack();
        }
        if opened > 0 {
            checked.target_opens |= kek.id() == site.keyring.target().id();
        } else if closed >= SAMPLE {
            checked.wrong.push(WrongKeyMaterial {
                key_id: key_id.clone(),
                check_value: kek.check_value(),
                tried: closed,
            });
        } else if key.secrets >= SAMPLE as u64 && closed + own_secrets < SAMPLE {
            checked.is_outdated = true;
        }
    }
    Ok(checked)
}

/// Whether the row of an organization has a secret under this key id.
///
/// # Errors
///
/// [`StoreError`] when the row can't be read.
pub async fn is_used_by(
    runner: &Runner,
    organization_id: &str,
    key_id: &str,
) -> Result<bool, StoreError> {
    match runner.store().row(organization_id).await {
        Ok(row) => {
            let texts = row.map(|row| row.texts).unwrap_or_default();
            Ok(texts.iter().flatten().any(|text| names(text, key_id)))
        }
        // The run reports this row.
        Err(StoreError::Row(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the text is an envelope under this key id. A text changes while tenants write.
fn names(text: &str, key_id: &str) -> bool {
    Envelope::parse(text, &mut Buffers::default()).is_ok_and(|text| text.key_id() == key_id)
}
