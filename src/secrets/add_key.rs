//! A new key in the text of a secrets file.
//!
//! The key is inserted, and no other byte changes. The new text is then read again: it must
//! have the same content and the new key. A text for which this fails is refused.

use std::borrow::Cow;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, value::RawValue};
use serde_saphyr::Spanned;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::{parse, yaml};
use crate::keyring::Kek;

/// The section of the file, and the map of keys in it.
const SECTION: &str = "machine_identity";
const KEYS: &str = "encryption_keys";

/// Why a key was not added.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// The file as it is has faults.
    #[error("{}", .0.join("; "))]
    Faults(Vec<String>),
    /// The id is taken.
    #[error("already has a key {0:?}; nothing was changed. Choose another id")]
    Exists(String),
    /// No way was found that leaves everything else as it is.
    #[error(
        "has a form in which this program cannot safely insert a line; nothing was changed. Run \
         the command again without --into, and add the line that it prints to {SECTION}.{KEYS} by \
         hand"
    )]
    NotSafe,
}

/// How a file without any content is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object.
    Json,
    /// Block mappings.
    Yaml,
}

/// `text` with one more key: `key` is its base64 text, and `kek` what comes of that. `format`
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
    let keks = parse(text).map_err(AddError::Faults)?;
    if keks.iter().any(|other| other.id() == kek.id()) {
        return Err(AddError::Exists(id.to_owned()));
    }
    let json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    let (insertion, format) = if json {
        (json_insertion(text, &entry), Format::Json)
    } else {
        (yaml_insertion(text, &entry), Format::Yaml)
    };
    let new = insertion.and_then(|insertion| insertion.apply(text));
    checked(text, new.ok_or(AddError::NotSafe)?, format, kek, key)
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
fn json_insertion(text: &str, entry: &Entry) -> Option<Insertion> {
    let file: JsonFile<'_> = serde_json::from_str(text).ok()?;
    let Some(section) = file.machine_identity else {
        return json_member(text, text.trim(), &entry.section());
    };
    let fields: JsonSection<'_> = serde_json::from_str(section.get()).ok()?;
    match fields.encryption_keys {
        None => json_member(text, section.get(), &entry.keys()),
        Some(keys) => json_member(text, keys.get(), &entry.0),
    }
}

/// Inserts a member behind the last one of `object`, which is a part of `text`.
fn json_member(text: &str, object: &str, member: &str) -> Option<Insertion> {
    let start = object.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    let inner = object.strip_prefix('{')?.strip_suffix('}')?;
    if inner.trim().is_empty() {
        let text = Zeroizing::new(member.to_owned());
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
        text: concat(&[",", space, member]),
    })
}

#[derive(Deserialize)]
struct YamlFile {
    machine_identity: Option<Spanned<YamlSection>>,
}

#[derive(Deserialize)]
struct YamlSection {
    encryption_keys: Option<Spanned<IgnoredAny>>,
}

fn yaml_insertion(text: &str, entry: &Entry) -> Option<Insertion> {
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let file: YamlFile = serde_saphyr::from_str_with_options(text, yaml::options(text)).ok()?;
    let Some(section) = file.machine_identity else {
        // A line break can become a part of the last text, and readers differ about when.
        return text.ends_with('\n').then(|| Insertion {
            at: text.len(),
            text: entry.block(newline),
        });
    };
    match &section.value.encryption_keys {
        Some(keys) => yaml_member(text, keys, newline, |_| Cow::Borrowed(&entry.0)),
        None => yaml_member(text, &section, newline, |indent| {
            let Some(indent) = indent else {
                return Cow::Owned(entry.keys());
            };
            let line = [":", newline, indent, "  "].concat();
            Cow::Owned(concat(&[KEYS, &line, &entry.0]))
        }),
    }
}

/// Inserts a member before the first one of `map`. `member` gets the indentation of the
/// lines of a block mapping, and nothing for a mapping in braces.
fn yaml_member<'a, T>(
    text: &str,
    map: &Spanned<T>,
    newline: &str,
    member: impl FnOnce(Option<&str>) -> Cow<'a, Zeroizing<String>>,
) -> Option<Insertion> {
    // An alias: what it stands for may be used elsewhere.
    if map.defined != map.referenced {
        return None;
    }
    let at = usize::try_from(map.defined.span().byte_offset()?).ok()?;
    let (before, after) = text.split_at_checked(at)?;
    if let Some(inner) = after.strip_prefix('{') {
        let is_empty = inner.trim_start().starts_with('}');
        let comma = if is_empty { "" } else { ", " };
        return Some(Insertion {
            at: at + 1,
            text: concat(&[&member(None), comma]),
        });
    }
    let mut line = before.rfind('\n')? + 1;
    let indent = &before[line..];
    if !indent.bytes().all(|byte| byte == b' ') {
        return None;
    }
    // A comment in front of the first member stays in front of it.
    while let Some(previous) = before[..line].strip_suffix('\n') {
        let start = previous.rfind('\n').map_or(0, |end| end + 1);
        let content = previous[start..].trim();
        if !content.is_empty() && !content.starts_with('#') {
            break;
        }
        line = start;
        if line == 0 {
            break;
        }
    }
    Some(Insertion {
        at: line,
        text: concat(&[indent, &member(Some(indent)), newline]),
    })
}

/// Reads `new` again, as nico-api will.
fn checked(
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
        // A YAML file with comments alone.
        if self.0.is_null() {
            self.0 = Value::Object(Map::new());
        }
        let section = self.0.as_object_mut()?.entry(SECTION);
        let section = section.or_insert_with(|| Value::Object(Map::new()));
        let keys = section.as_object_mut()?.entry(KEYS);
        let keys = keys.or_insert_with(|| Value::Object(Map::new()));
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

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;
    use crate::keyring::KeyId;

    const A: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";
    const B: &str = "S0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0s=";

    fn add(text: &str, id: &str, format: Format) -> Result<String, AddError> {
        let bytes = STANDARD.decode(B).unwrap().try_into().unwrap();
        let kek = Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new(bytes));
        add_key(text, format, &kek, B).map(|text| text.to_string())
    }

    /// Between two `+` is what has to be inserted. `@A` and `@B` are keys.
    fn inserts(marked: &str) {
        let marked = marked.replace("@A", A).replace("@B", B);
        let pieces: Vec<_> = marked.split('+').collect();
        let [before, _, after] = pieces[..] else {
            panic!("{marked}");
        };
        let old = [before, after].concat();
        let new = add(&old, "kv2", Format::Yaml);
        assert_eq!(new.as_deref(), Ok(&*pieces.concat()), "{old}");
    }

    #[test]
    fn a_key_is_added_to_yaml_and_nothing_else_changes() {
        for marked in [
            "bmc: {root: [1, two]}\nmachine_identity:\n  encryption_keys:\n+    \"kv2\": \"@B\"\n+    kv1: @A\n",
            // Comments stay where they are, and a text in several lines stays whole.
            "# a\nmachine_identity:\n    encryption_keys: # b\n+      \"kv2\": \"@B\"\n+\n      # c\n      kv1: |\n        @A\n    x: 1\n    # d\nother: |\n  text\n\n",
            "machine_identity:\r\n  encryption_keys:\r\n+    \"kv2\": \"@B\"\r\n+    'kv1': '@A'\r\n",
            "\u{fc}: \u{fc}\nmachine_identity:\n  encryption_keys:\n+    \"kv2\": \"@B\"\n+    kv1: >\n      @A",
            "machine_identity:\n  encryption_keys: &keys\n+    \"kv2\": \"@B\"\n+    kv1: @A\n",
            "base: &base {kv1: @A}\nmachine_identity:\n  encryption_keys:\n+    \"kv2\": \"@B\"\n+    <<: *base\n",
            "machine_identity:\n  encryption_keys: {+\"kv2\": \"@B\", +kv1: \"@A\"}\n",
            "machine_identity:\n  encryption_keys: {+\"kv2\": \"@B\"+ }\n",
            "{machine_identity: {encryption_keys: {+\"kv2\": \"@B\", +kv1: @A}}}",
            // Without the map of keys, or the whole section.
            "machine_identity:\n+  encryption_keys:\n    \"kv2\": \"@B\"\n+  other: 1\n",
            "machine_identity: {+\"encryption_keys\": {\"kv2\": \"@B\"}, +other: 1}\n",
            "bmc: x\n+machine_identity:\n  encryption_keys:\n    \"kv2\": \"@B\"\n+",
            "# nothing yet\n+machine_identity:\n  encryption_keys:\n    \"kv2\": \"@B\"\n+",
        ] {
            inserts(marked);
        }
    }

    #[test]
    fn a_key_is_added_to_json_and_nothing_else_changes() {
        for marked in [
            r#"{"machine_identity":{"encryption_keys":{"kv1":"@A"+, "kv2": "@B"+}}}"#,
            "{\n  \"n\": 1.50,\n  \"machine_identity\": {\n    \"encryption_keys\": {\n      \"kv1\": \"@A\"+,\n      \"kv2\": \"@B\"+\n    }\n  }\n}\n",
            r#"{"machine_identity": {"encryption_keys": {+"kv2": "@B"+ }}, "x": "}"}"#,
            r#"{"machine_identity": {"x": "{\"encryption_keys\": {}}"+, "encryption_keys": {"kv2": "@B"}+}}"#,
            r#" {"x": []+, "machine_identity": {"encryption_keys": {"kv2": "@B"}}+} "#,
            r#"{+"machine_identity": {"encryption_keys": {"kv2": "@B"}}+}"#,
            r#"{"machine\u005fidentity": {"encryption_keys": {"kv1": "@A"+, "kv2": "@B"+}}}"#,
        ] {
            inserts(marked);
        }
    }

    #[test]
    fn a_blank_file_is_begun() {
        for (format, text) in [
            (
                Format::Yaml,
                format!("machine_identity:\n  encryption_keys:\n    \"kv2\": \"{B}\"\n"),
            ),
            (
                Format::Json,
                format!(
                    "{{\"machine_identity\": {{\"encryption_keys\": {{\"kv2\": \"{B}\"}}}}}}\n"
                ),
            ),
        ] {
            for blank in ["", "\n \n"] {
                assert_eq!(add(blank, "kv2", format).as_deref(), Ok(&*text));
            }
        }
    }

    #[test]
    fn an_id_with_special_characters_is_written_as_it_is() {
        let text = format!("machine_identity:\n  encryption_keys:\n    kv1: {A}\n");
        for id in ["a b", "\"", "\\", "\u{fc}", ": #", "\n", "true", "1"] {
            let new = add(&text, id, Format::Yaml).unwrap();
            let keks = parse(&new).unwrap();
            assert_eq!(keks[0].id().as_str(), id, "{new}");
            assert_eq!(keks.len(), 2);
        }
    }

    #[test]
    fn what_cannot_be_edited_safely_is_refused() {
        for text in [
            // A null where the map of keys belongs.
            "machine_identity:\n  encryption_keys:\n",
            "machine_identity:\n",
            r#"{"machine_identity": null}"#,
            r#"{"machine_identity": {"encryption_keys": null}}"#,
            // The line would change what an alias means, or belong to something else.
            "keys: &keys {kv1: @A}\nmachine_identity:\n  encryption_keys: *keys\n",
            "machine_identity:\n  encryption_keys: &keys\n    kv1: @A\nsame: *keys\n",
            "bmc: x\n...\n",
            "bmc: |+\n  text",
            "bmc: x",
            "{bmc: x}\n",
        ] {
            let text = text.replace("@A", A);
            let refused = add(&text, "kv2", Format::Yaml);
            assert_eq!(refused, Err(AddError::NotSafe), "{text}");
        }
    }

    #[test]
    fn a_file_with_faults_or_with_the_id_is_refused() {
        let text = format!("machine_identity:\n  encryption_keys:\n    kv1: {A}\n");
        let taken = add(&text, "kv1", Format::Yaml);
        assert_eq!(taken, Err(AddError::Exists("kv1".to_owned())));
        for text in ["[", "machine_identity: 1", "a: 1\n---\nb: 1\n", "42"] {
            let refused = add(text, "kv2", Format::Yaml).unwrap_err();
            assert!(matches!(refused, AddError::Faults(_)), "{text}");
        }
        let short = "machine_identity: {encryption_keys: {kv1: s3cr3t}}";
        let refused = add(short, "kv2", Format::Yaml).unwrap_err().to_string();
        assert!(refused.contains("\"kv1\"") && !refused.contains("s3cr3t"));
    }
}
