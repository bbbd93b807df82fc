//! Where a key belongs in JSON.

use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{Entry, Insertion, concat};

#[derive(Deserialize)]
struct JsonFile<'a> {
    #[serde(borrow)]
    machine_identity: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct JsonSection<'a> {
    #[serde(borrow)]
    encryption_keys: Option<&'a RawValue>,
}

/// A `null` where a map belongs is not replaced: the member would be there twice, and the
/// check refuses that.
pub(super) fn insertion(text: &str, entry: &Entry) -> Option<Insertion> {
    let file: JsonFile<'_> = serde_json::from_str(text).ok()?;
    let Some(section) = file.machine_identity else {
        return member(text, text.trim(), &entry.section());
    };
    let fields: JsonSection<'_> = serde_json::from_str(section.get()).ok()?;
    match fields.encryption_keys {
        None => member(text, section.get(), &entry.keys()),
        Some(keys) => member(text, keys.get(), &entry.0),
    }
}

/// Inserts a member behind the last one of `object`, which is a part of `text`.
fn member(text: &str, object: &str, new: &str) -> Option<Insertion> {
    let start = object.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    let inner = object.strip_prefix('{')?.strip_suffix('}')?;
    if inner.trim().is_empty() {
        let text = Zeroizing::new(new.to_owned());
        return Some(Insertion {
            at: start + 1,
            text,
        });
    }
    // The white space in front of the first member.
    let space = match &inner[..inner.len() - inner.trim_start().len()] {
        "" => " ",
        space => space,
    };
    Some(Insertion {
        at: start + 1 + inner.trim_end().len(),
        text: concat(&[",", space, new]),
    })
}
