//! The check that a new text has the old content and the new key.

use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

use super::{AddError, Format, KEYS, SECTION};
use crate::{
    domain::keyring::Kek,
    keys::{file::parse, yaml},
};

/// Reads `new` again, as nico-api will.
pub(super) fn checked(
    old: &str,
    new: Zeroizing<String>,
    format: Format,
    kek: &Kek,
    key: &str,
) -> Result<Zeroizing<String>, AddError> {
    let is_added = || {
        let keks = parse(&new).ok()?;
        let added = keks.iter().find(|other| other.id() == kek.id())?;
        if added.check_value() != kek.check_value() {
            return None;
        }
        let mut wanted = if old.is_empty() {
            Content(Value::Object(Map::new()))
        } else {
            Content::read(old, format)?
        };
        wanted.add(kek.id().as_str(), key)?;
        Some(wanted.0 == Content::read(&new, format)?.0)
    };
    if is_added() == Some(true) {
        Ok(new)
    } else {
        Err(AddError::NotSafe)
    }
}

/// All that is in a file. Wiped on drop.
struct Content(Value);

impl Content {
    fn read(text: &str, format: Format) -> Option<Self> {
        let value = match format {
            Format::Json => serde_json::from_str(text).ok(),
            Format::Yaml => serde_saphyr::from_str_with_options(text, yaml::options(text)).ok(),
        };
        value.map(Self)
    }

    fn add(&mut self, id: &str, key: &str) -> Option<()> {
        // YAML without a value, as in a file with comments alone, is null.
        let map = |value: &mut Value| {
            if value.is_null() {
                *value = Value::Object(Map::new());
            }
        };
        map(&mut self.0);
        let section = self
            .0
            .as_object_mut()?
            .entry(SECTION)
            .or_insert(Value::Null);
        map(section);
        let keys = section.as_object_mut()?.entry(KEYS).or_insert(Value::Null);
        map(keys);
        keys.as_object_mut()?.insert(id.to_owned(), key.into());
        Some(())
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
