//! The answer of ListKeys.

use std::{cmp::Reverse, collections::BTreeSet};

use prost::Message;

use super::convert::key;
use crate::{
    domain::{
        census::KeyUse as CountedUse,
        verdict::{Verdict, VerdictState},
    },
    proto::rewrap as pb,
    run::{Site, censuses::KeyUse},
};

/// Maximum size of the keys in an answer, in bytes: half of what a gRPC client accepts by default
/// (4 MiB). The loaded keys are always in the answer.
const KEYS_BYTES: usize = 2 << 20;

const MEMORY_ONLY: &str =
    " This instance keeps no history: it knows only what it has seen since its start.";

/// Every key id that a secret names or that this instance holds, ascending. If they are too many,
/// the first entry has no key id and stands for the ids with the fewest secrets.
pub(super) fn list(site: &Site, known: &KeyUse) -> Vec<pb::Key> {
    let target = site.keyring.target().id().as_str();
    let no_use = CountedUse::default();
    let tally = known.last.as_ref().map(|census| &census.tally.keys);
    let counted = |id: &str| tally.and_then(|keys| keys.get(id));
    let entry = |id: &str| {
        let mut verdict = known.verdict(id);
        if known.is_of_process() {
            verdict.explanation += MEMORY_ONLY;
        }
        key(id, site.keyring.get(id), id == target, counted(id), verdict)
    };
    let loaded: BTreeSet<&str> = site.keyring.iter().map(|kek| kek.id().as_str()).collect();
    let mut keys: Vec<pb::Key> = loaded.iter().map(|id| entry(id)).collect();
    let mut bytes: usize = keys.iter().map(Message::encoded_len).sum();
    let others = tally.into_iter().flatten();
    let mut others: Vec<_> = others
        .filter(|(id, _)| !loaded.contains(id.as_str()))
        .collect();
    others.sort_by_key(|(_, key_use)| Reverse(key_use.secrets));
    let mut rest = no_use;
    let mut omitted = 0;
    for (id, key_use) in others {
        let shown = (bytes < KEYS_BYTES).then(|| entry(id));
        let size = shown.as_ref().map_or(0, Message::encoded_len);
        match shown.filter(|_| bytes + size <= KEYS_BYTES) {
            Some(shown) => {
                bytes += size;
                keys.push(shown);
            }
            None => {
                omitted += 1;
                rest.secrets += key_use.secrets;
                rest.organizations += key_use.organizations;
                for (sum, secrets) in rest.by_column.iter_mut().zip(key_use.by_column) {
                    *sum += secrets;
                }
            }
        }
    }
    if omitted > 0 {
        keys.push(key("", None, false, Some(&rest), verdict_of_rest(omitted)));
    }
    keys.sort_by(|a, b| a.key_id.cmp(&b.key_id));
    keys
}

/// The verdict of the entry for all key ids that are not shown.
fn verdict_of_rest(omitted: usize) -> Verdict {
    Verdict {
        state: VerdictState::InUse,
        explanation: format!(
            "This entry stands for {omitted} further key ids with fewer secrets, which are not shown \
             because the answer would be too long. An organization counts once for each of them. \
             Each of them is in use."
        ),
        clean_since: None,
        removable_at: None,
        stragglers: 0,
        last_straggler: None,
    }
}
