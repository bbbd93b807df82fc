//! Refuses an apply with wrong key bytes under a right key id, before it writes a row.
//!
//! If the target key had other bytes here than in nico-api, an apply would make every secret
//! unreadable for nico-api, and its report would look good. So a few secrets of every key id
//! must open first.

use thiserror::Error;

use super::{Census, Site};
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
    /// How many secrets were tried.
    pub tried: usize,
}

/// Opens a few secrets of every key id in `census` that this instance holds.
///
/// # Errors
///
/// [`StoreError`] when the rows can't be read.
pub async fn check_keys(
    site: &Site,
    census: &Census,
) -> Result<Option<WrongKeyMaterial>, StoreError> {
    for (key_id, key) in &census.tally.keys {
        let Some(kek) = site.keyring.get(key_id) else {
            // Every row under it fails with KEY_NOT_IN_SECRETS.
            continue;
        };
        let (mut tried, mut opened) = (0, 0);
        for organization_id in &key.sample_organization_ids {
            if tried >= SAMPLE && opened > 0 {
                break;
            }
            let row = match site.store.row(organization_id).await {
                Ok(row) => row,
                Err(StoreError::Row(_)) => None,
                Err(error) => return Err(error),
            };
            let texts = row.map(|row| row.texts).unwrap_or_default();
            for text in texts.iter().flatten() {
                if !names(text, key_id) {
                    continue;
                }
                tried += 1;
                opened += usize::from(open(&site.keyring, text, &mut Buffers::default()).is_ok());
            }
            wipe_stack();
        }
        if tried >= SAMPLE && opened == 0 {
            return Ok(Some(WrongKeyMaterial {
                key_id: key_id.clone(),
                check_value: kek.check_value(),
                tried,
            }));
        }
    }
    Ok(None)
}

/// Whether the text is an envelope under this key id. A text changes while tenants write.
fn names(text: &str, key_id: &str) -> bool {
    Envelope::parse(text, &mut Buffers::default()).is_ok_and(|text| text.key_id() == key_id)
}
