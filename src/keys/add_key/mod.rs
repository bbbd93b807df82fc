//! A new key in the text of a secrets file.
//!
//! The key is inserted, and no other byte changes. The new text is then read again: it must
//! have the same content and the new key. A text for which this fails is refused.

mod check;
mod json;
mod yaml;

use serde::de::IgnoredAny;
use serde_json::Value;
use thiserror::Error;
use zeroize::Zeroizing;

use self::check::checked;
use super::file::parse;
use crate::domain::keyring::Kek;

/// The section of the file, and the map of keys in it.
const SECTION: &str = "machine_identity";
const KEYS: &str = "encryption_keys";

/// Why a key was not added.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// The file as it is has errors.
    #[error("{}", .0.join("; "))]
    Problems(Vec<String>),
    /// The id is taken.
    #[error("already has a key {0:?}; nothing was changed. Choose another id")]
    Exists(String),
    /// The key cannot be inserted without another change.
    #[error(
        "has a form in which this program cannot safely insert a line; nothing was changed. Run \
         the command again without --into, and add the line that it prints to {SECTION}.{KEYS} by \
         hand"
    )]
    NotSafe,
}

/// The format of a file without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object.
    Json,
    /// Block mappings.
    Yaml,
}

/// `text` with one more key: `key` is its base64 text, and `kek` is the key itself. `format`
/// is used only if the text is blank.
///
/// # Errors
///
/// [`AddError`], of which no text quotes a key.
pub fn add_key(
    text: &str,
    format: Format,
    kek: &Kek,
    key: &str,
) -> Result<Zeroizing<String>, AddError> {
    let id = kek.id().as_str();
    let entry = Entry::new(id, key);
    if text.trim().is_empty() {
        return checked("", entry.file(format), format, kek, key);
    }
    let keks = parse(text).map_err(AddError::Problems)?;
    if keks.iter().any(|other| other.id() == kek.id()) {
        return Err(AddError::Exists(id.to_owned()));
    }
    let json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    let (insertions, format) = if json {
        let insertion = json::insertion(text, &entry);
        (insertion.into_iter().collect(), Format::Json)
    } else {
        (yaml::insertions(text, &entry), Format::Yaml)
    };
    let new = insertions.iter().filter_map(|piece| piece.apply(text));
    new.map(|new| checked(text, new, format, kek, key))
        .find(Result::is_ok)
        .unwrap_or(Err(AddError::NotSafe))
}

/// A piece of text, and the byte before which it is inserted.
struct Insertion {
    at: usize,
    text: Zeroizing<String>,
}

impl Insertion {
    fn apply(&self, text: &str) -> Option<Zeroizing<String>> {
        let (before, after) = text.split_at_checked(self.at)?;
        Some(concat(&[before, &self.text, after]))
    }
}

/// Concatenates without leaving copies behind: the buffer never grows.
fn concat(pieces: &[&str]) -> Zeroizing<String> {
    let length = pieces.iter().map(|piece| piece.len()).sum();
    let mut text = Zeroizing::new(String::with_capacity(length));
    for piece in pieces {
        text.push_str(piece);
    }
    text
}

/// The new key as a member of a map, in a form that JSON and YAML share.
struct Entry(Zeroizing<String>);

impl Entry {
    fn new(id: &str, key: &str) -> Self {
        let id = Value::from(id).to_string();
        // Base64 needs no escapes.
        Self(concat(&[&id, ": \"", key, "\""]))
    }

    /// The map of keys with this one in it.
    fn keys(&self) -> Zeroizing<String> {
        concat(&["\"", KEYS, "\": {", &self.0, "}"])
    }

    /// The section with that map in it.
    fn section(&self) -> Zeroizing<String> {
        concat(&["\"", SECTION, "\": {", &self.keys(), "}"])
    }

    /// A whole file.
    fn file(&self, format: Format) -> Zeroizing<String> {
        match format {
            Format::Json => concat(&["{", &self.section(), "}\n"]),
            Format::Yaml => self.block("\n"),
        }
    }

    /// The section as lines of YAML.
    fn block(&self, newline: &str) -> Zeroizing<String> {
        let colon = [":", newline].concat();
        concat(&[
            SECTION, &colon, "  ", KEYS, &colon, "    ", &self.0, newline,
        ])
    }
}

#[cfg(test)]
mod tests;
