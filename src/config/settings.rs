//! Typed access to the merged files and environment.
//!
//! [`Settings`] knows the source of each value, and collects problems instead of stopping
//! at the first one.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Map, Source, Value, ValueKind};

use super::{
    environment::{Environment, overrides},
    renamed::new_name,
};
use crate::regular_file;

/// Size limit in bytes, far above any site config written by hand.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The section that only this program reads.
pub(super) const SECTION: &str = "rewrap";

pub(super) struct Settings {
    values: Map<String, Value>,
    /// The values of the files alone, without the environment.
    file_values: Map<String, Value>,
    /// The keys whose values were asked for.
    asked: RefCell<BTreeSet<String>>,
    files: String,
    /// For each overridden key, the environment variable.
    variables: BTreeMap<String, String>,
    problems: Vec<String>,
    /// Files with `[rewrap]` and `deny_unknown_fields = true`, which nico-api refuses.
    refused_by_nico_api: Vec<String>,
    /// Whether a file could not be read. A setting that seems to be missing may be in it.
    incomplete: bool,
}

impl Settings {
    /// Reads the files and the environment. For each key, a later file overrides an earlier
    /// one. A file that can't be read or parsed is a problem, and counts as empty.
    pub(super) fn read(files: &[PathBuf], environment: &Environment) -> Self {
        let mut problems = Vec::new();
        let mut builder = config::Config::builder();
        let mut refused_by_nico_api = Vec::new();
        for path in files {
            match TomlFile::read(path) {
                Ok(file) => {
                    if file.is_refused_by_nico_api() {
                        refused_by_nico_api.push(path.display().to_string());
                    }
                    builder = builder.add_source(file);
                }
                Err(problem) => problems.push(format!("{}: {problem}", path.display())),
            }
        }
        let incomplete = !problems.is_empty();
        let file_values = builder.clone().build().and_then(|config| config.collect());

        let mut variables = BTreeMap::new();
        for (key, variable, value) in overrides(environment, &mut problems) {
            builder = match builder.clone().set_override(&key, value) {
                Ok(builder) => builder,
                Err(_) => {
                    problems.push(format!(
                        "environment variable {variable}: is not the name of a setting"
                    ));
                    builder
                }
            };
            variables.insert(key, variable.to_owned());
        }

        let merged = builder.build().and_then(|config| config.collect());
        let values = merged.unwrap_or_else(|_| {
            problems.push("the files can't be merged".to_owned());
            Map::new()
        });
        let names: Vec<_> = files
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        Self {
            values,
            file_values: file_values.unwrap_or_default(),
            asked: RefCell::default(),
            files: names.join(", "),
            variables,
            problems,
            refused_by_nico_api,
            incomplete,
        }
    }

    /// The keys whose values were asked for so far, without those that a variable overrides.
    pub(super) fn asked(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        let keys = asked
            .iter()
            .filter(|key| !self.variables.contains_key(*key));
        keys.cloned().collect()
    }

    /// The values of the files alone, without the environment.
    pub(super) fn file_values(&self) -> &Map<String, Value> {
        &self.file_values
    }

    pub(super) fn into_problems(self) -> Vec<String> {
        self.problems
    }

    /// Records a problem with the value of `key`, or with its absence.
    pub(super) fn problem(&mut self, key: &str, what: impl std::fmt::Display) {
        let source = self.source(key);
        self.problems
            .push(format!("{source}: {}: {what}", display_key(key)));
    }

    /// Records that `key` has no value. Does nothing if the value may be in a file or a
    /// section that could not be read: that problem is already recorded.
    pub(super) fn missing(&mut self, key: &str, what: impl std::fmt::Display) {
        let sections = key.match_indices('.').map(|(end, _)| &key[..end]);
        let misshapen = |section| {
            let value = self.value(section);
            value.is_some_and(|value| !matches!(value.kind, ValueKind::Table(_)))
        };
        if !self.incomplete && !sections.into_iter().any(misshapen) {
            self.problem(key, what);
        }
    }

    /// Records a problem for each of `sections` that is not a table. Such a section must not
    /// count as absent: an absent section can turn a feature off.
    pub(super) fn only_sections(&mut self, sections: &[&str]) {
        for section in sections {
            // Not asked for: other settings in the section may change.
            let what = match value_at(&self.values, section).map(|value| &value.kind) {
                None | Some(ValueKind::Table(_)) => continue,
                Some(ValueKind::Array(_)) => format!(
                    "must be one section, [{section}], not a list of sections, [[{section}]]"
                ),
                Some(_) => format!("must be a section, [{section}], not a value"),
            };
            self.problem(section, what);
        }
    }

    /// Records problems that do not belong to one setting.
    pub(super) fn problems(&mut self, problems: Vec<String>) {
        self.problems.extend(problems);
    }

    /// The source of the value of `key`; all files if there is no value.
    pub(super) fn source(&self, key: &str) -> String {
        if let Some(variable) = self.variables.get(key) {
            return format!("environment variable {variable}");
        }
        self.value(key)
            .and_then(|value| value.origin().map(str::to_owned))
            .unwrap_or_else(|| self.files.clone())
    }

    /// Records a problem for each file that has both `[rewrap]` and
    /// `deny_unknown_fields = true`: nico-api does not start with such a file.
    pub(super) fn only_accepted_by_nico_api(&mut self) {
        for file in &self.refused_by_nico_api {
            self.problems.push(format!(
                "{file}: [rewrap]: is in a file with deny_unknown_fields = true, with which nico-api \
                 does not start; move the section to another file and add a --config for that file"
            ));
        }
    }

    /// Records a problem for each unknown key of `[rewrap]`, so that a typo is noticed.
    pub(super) fn reject_unknown(&mut self, known: &[&str]) {
        let section = match self.value(SECTION).map(|value| value.kind) {
            None => return,
            Some(ValueKind::Table(section)) => section,
            // `only_sections` reports this.
            Some(_) => return,
        };
        let mut unknown: Vec<_> = section
            .keys()
            .filter(|key| !known.contains(&key.as_str()))
            .cloned()
            .collect();
        unknown.sort();
        for name in unknown {
            let problem = match new_name(&name) {
                Some(new) => format!("this setting was renamed; write {new}"),
                None => format!("no such setting; use one of {}", known.join(", ")),
            };
            self.problem(&format!("{SECTION}.{name}"), problem);
        }
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The sorted keys of a section or an inline table.
    pub(super) fn keys(&mut self, key: &str) -> Option<Vec<String>> {
        match self.value(key)?.kind {
            ValueKind::Table(table) => {
                let mut keys: Vec<_> = table.into_keys().collect();
                keys.sort();
                Some(keys)
            }
            _ => {
                self.problem(key, "must be a section or an inline table in braces");
                None
            }
        }
    }

    pub(super) fn string(&mut self, key: &str) -> Option<String> {
        match self.value(key)?.kind {
            ValueKind::String(text) => Some(text),
            _ => {
                self.problem(key, "must be a string in quotes");
                None
            }
        }
    }

    /// A string that is not blank: nico-api's files write `""` for "not set".
    pub(super) fn non_empty_string(&mut self, key: &str) -> Option<String> {
        self.string(key).filter(|text| !text.trim().is_empty())
    }

    pub(super) fn required_string(&mut self, key: &str, what_to_do: &str) -> Option<String> {
        let text = self.non_empty_string(key);
        if text.is_none()
            && !matches!(self.value(key), Some(value) if !matches!(value.kind, ValueKind::String(_)))
        {
            self.missing(key, format!("is missing; {what_to_do}"));
        }
        text
    }

    pub(super) fn bool(&mut self, key: &str, default: bool) -> bool {
        match self.value(key).map(|value| value.kind) {
            None => default,
            Some(ValueKind::Boolean(value)) => value,
            Some(ValueKind::String(text)) if text == "true" => true,
            Some(ValueKind::String(text)) if text == "false" => false,
            Some(_) => {
                self.problem(key, "must be true or false");
                default
            }
        }
    }

    /// A list of strings. In an environment variable, commas separate them.
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        if let ValueKind::String(text) = &value.kind
            && self.variables.contains_key(key)
            && is_not_commas(text)
        {
            self.problem(
                key,
                "must be names separated by commas, like a,b, without brackets, quotes and line \
                 breaks",
            );
            return None;
        }
        let items = match value.kind {
            ValueKind::Array(items) => items
                .into_iter()
                .map(|item| match item.kind {
                    ValueKind::String(text) => Some(text),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>(),
            ValueKind::String(text) if self.variables.contains_key(key) => Some(
                text.split(',')
                    .map(|item| item.trim().to_owned())
                    .filter(|item| !item.is_empty())
                    .collect(),
            ),
            _ => None,
        };
        if items.is_none() {
            self.problem(key, "must be a list of strings, like [\"a\", \"b\"]");
        }
        items
    }

    /// A list without blank entries: an empty name would match unintended names.
    pub(super) fn non_empty_list(&mut self, key: &str) -> Vec<String> {
        let mut items = self.list(key).unwrap_or_default();
        if items.iter().any(|item| item.trim().is_empty()) {
            self.problem(key, "has a blank entry; remove it");
            items.clear();
        }
        items
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        default: u32,
        range: std::ops::RangeInclusive<u32>,
    ) -> u32 {
        let Some(value) = self.value(key) else {
            return default;
        };
        let number = match value.kind {
            ValueKind::I64(number) => u32::try_from(number).ok(),
            ValueKind::U64(number) => u32::try_from(number).ok(),
            ValueKind::String(text) => text.parse().ok(),
            _ => None,
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                self.problem(
                    key,
                    format!("must be a number from {} to {}", range.start(), range.end()),
                );
                default
            }
        }
    }

    /// A duration with a unit, from one millisecond to one hour.
    pub(super) fn duration(&mut self, key: &str, default: Duration) -> Duration {
        let Some(value) = self.value(key) else {
            return default;
        };
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        let duration = match value.kind {
            ValueKind::String(text) => humantime::parse_duration(&text).ok(),
            _ => None,
        };
        match duration.filter(|duration| range.contains(duration)) {
            Some(duration) => duration,
            None => {
                self.problem(
                    key,
                    "must be a duration with a unit, from \"1ms\" to \"1h\", like \"2s\"",
                );
                default
            }
        }
    }

    pub(super) fn address(&mut self, key: &str, default: SocketAddr) -> SocketAddr {
        let Some(text) = self.string(key) else {
            return default;
        };
        text.parse().unwrap_or_else(|_| {
            self.problem(
                key,
                "must be an address and a port, like \"[::]:1179\" or \"127.0.0.1:1179\"",
            );
            default
        })
    }

    /// One of the given words.
    pub(super) fn one_of<T: Copy>(&mut self, key: &str, default: T, choices: &[(&str, T)]) -> T {
        let Some(text) = self.string(key) else {
            return default;
        };
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, one_of)) => *one_of,
            None => {
                let words: Vec<_> = choices
                    .iter()
                    .map(|(word, _)| format!("\"{word}\""))
                    .collect();
                self.problem(key, format!("must be one of {}", words.join(", ")));
                default
            }
        }
    }

    /// The value with its origin, which `config::Config::get` loses.
    fn value(&self, key: &str) -> Option<Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        value_at(&self.values, key).cloned()
    }
}

/// The value of the key `a.b.c`.
pub(super) fn value_at<'a>(values: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let mut path = key.split('.');
    let mut value = values.get(path.next()?)?;
    for name in path {
        let ValueKind::Table(table) = &value.kind else {
            return None;
        };
        value = table.get(name)?;
    }
    Some(value).filter(|value| value.kind != ValueKind::Nil)
}

/// Reads the files again and merges them.
pub(super) fn read_files(files: &[PathBuf]) -> Result<Map<String, Value>, String> {
    let mut builder = config::Config::builder();
    for path in files {
        let file = TomlFile::read(path).map_err(|what| format!("{} {what}", path.display()))?;
        builder = builder.add_source(file);
    }
    let merged = builder.build().and_then(|config| config.collect());
    merged.map_err(|_| "the files can't be merged".to_owned())
}

/// Whether a list from the environment has another syntax than names and commas: TOML, JSON,
/// YAML, or one name per line.
fn is_not_commas(text: &str) -> bool {
    let text = text.trim();
    let quoted = |item: &str| item.starts_with(['"', '\'']) || item.ends_with(['"', '\'']);
    text.starts_with(['[', '{'])
        || text.contains(char::is_control)
        || text.split(',').map(str::trim).any(quoted)
}

/// The key `a.b.c` in the spelling of messages, `[a.b].c`.
fn display_key(key: &str) -> String {
    match key.rsplit_once('.') {
        Some((section, key)) => format!("[{section}].{key}"),
        None => key.to_owned(),
    }
}

/// A parsed file. Its path is the origin of every value.
#[derive(Debug, Clone)]
struct TomlFile(Map<String, Value>);

impl TomlFile {
    fn is_refused_by_nico_api(&self) -> bool {
        let denies = self.0.get("deny_unknown_fields");
        denies.is_some_and(|value| value.kind == ValueKind::Boolean(true))
            && self.0.contains_key(SECTION)
    }

    /// Reads a file. The error has only line and column, since the parser's message would quote
    /// the line, which may contain a password.
    fn read(path: &Path) -> Result<Self, String> {
        let text = regular_file::read_text(path, MAX_FILE_BYTES)
            .map_err(|error| format!("can't be read ({error})"))?;
        let table = text.parse::<toml::Table>().map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let place = before.map_or_else(String::new, |before| {
                let line = before.matches('\n').count() + 1;
                let last = before.rsplit('\n').next().unwrap_or_default();
                format!(" at line {line} column {}", last.chars().count() + 1)
            });
            format!("is not TOML{place}")
        })?;
        Ok(Self(with_origin(&path.display().to_string(), table)))
    }
}

impl Source for TomlFile {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

fn with_origin(origin: &String, table: toml::Table) -> Map<String, Value> {
    let value = |value| value_with_origin(origin, value);
    table.into_iter().map(|(k, v)| (k, value(v))).collect()
}

fn value_with_origin(origin: &String, value: toml::Value) -> Value {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text),
        toml::Value::Integer(number) => ValueKind::I64(number),
        toml::Value::Float(number) => ValueKind::Float(number),
        toml::Value::Boolean(value) => ValueKind::Boolean(value),
        toml::Value::Datetime(time) => ValueKind::String(time.to_string()),
        toml::Value::Array(items) => {
            let items = items.into_iter();
            ValueKind::Array(items.map(|item| value_with_origin(origin, item)).collect())
        }
        toml::Value::Table(table) => ValueKind::Table(with_origin(origin, table)),
    };
    Value::new(Some(origin), kind)
}
