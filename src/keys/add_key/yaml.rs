//! Where a key belongs in YAML.

use std::borrow::Cow;

use serde::{Deserialize, de::IgnoredAny};
use serde_saphyr::Spanned;
use zeroize::Zeroizing;

use super::{Entry, Insertion, KEYS, SECTION, concat};
use crate::keys::yaml;

/// How many lines with the name of an empty map are tried. Each try reads the file again.
const MAX_PLACES: usize = 4;

#[derive(Deserialize)]
struct YamlFile {
    machine_identity: Option<Spanned<YamlSection>>,
}

#[derive(Deserialize)]
struct YamlSection {
    encryption_keys: Option<Spanned<IgnoredAny>>,
}

/// The places where the key may belong. Which of them is right shows when the new text is read.
pub(super) fn insertions(text: &str, entry: &Entry) -> Vec<Insertion> {
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let file = serde_saphyr::from_str_with_options(text, yaml::options(text));
    let Ok(YamlFile { machine_identity }) = file else {
        return Vec::new();
    };
    let entry_below = |indent: &str| concat(&[indent, "  ", &entry.0, newline]);
    let keys_below = |indent: &str| {
        let line = [indent, "  ", KEYS, ":", newline, "  "].concat();
        concat(&[&line, &entry_below(indent)])
    };
    let Some(section) = machine_identity else {
        // A line break can become a part of the last text, and readers differ about when.
        let at_end = text.ends_with('\n').then(|| Insertion {
            at: text.len(),
            text: entry.block(newline),
        });
        return at_end
            .into_iter()
            .chain(below_empty(text, SECTION, keys_below))
            .collect();
    };
    if let Some(keys) = &section.value.encryption_keys {
        let member = insert_member(text, keys, newline, |_| Cow::Borrowed(&entry.0));
        return member.into_iter().collect();
    }
    let member = insert_member(text, &section, newline, |indent| {
        let Some(indent) = indent else {
            return Cow::Owned(entry.keys());
        };
        let line = [":", newline, indent, "  "].concat();
        Cow::Owned(concat(&[KEYS, &line, &entry.0]))
    });
    member
        .into_iter()
        .chain(below_empty(text, KEYS, entry_below))
        .collect()
}

/// Inserts lines below each line that says `name:` and nothing more.
fn below_empty(
    text: &str,
    name: &str,
    lines: impl Fn(&str) -> Zeroizing<String>,
) -> Vec<Insertion> {
    let mut insertions = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        let content = line.trim_start_matches(' ');
        let indent = &line[..line.len() - content.len()];
        let value = content
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(':'));
        let is_empty = |value: &str| value.trim().is_empty() || value.trim().starts_with('#');
        if value.is_some_and(is_empty) && line.ends_with('\n') {
            let text = lines(indent);
            insertions.push(Insertion { at, text });
        }
    }
    insertions.truncate(MAX_PLACES);
    insertions
}

/// Inserts a member before the first one of `map`. `member` gets the indentation of the
/// lines of a block mapping, and nothing for a mapping in braces.
fn insert_member<'a, T>(
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
