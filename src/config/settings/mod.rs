//! The merged files and environment.
//!
//! [`Settings`] knows the source of each value, and collects problems instead of stopping
//! at the first one.

mod toml_file;
mod values;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use config::{Map, Source, Value, ValueKind};

use self::toml_file::TomlFile;
use super::{
    environment::{Environment, overrides},
    renamed::new_name,
    schema::{self, SECTION},
};

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
    pub(super) fn reject_unknown(&mut self) {
        let section = match self.value(SECTION).map(|value| value.kind) {
            None => return,
            Some(ValueKind::Table(section)) => section,
            // `only_sections` reports this.
            Some(_) => return,
        };
        let mut unknown: Vec<_> = section
            .keys()
            .filter(|name| schema::setting(name).is_none())
            .cloned()
            .collect();
        unknown.sort();
        for name in unknown {
            let problem = match new_name(&name) {
                Some(new) => format!("this setting was renamed; write {new}"),
                None => format!("no such setting; use one of {}", schema::names()),
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

    /// The value from a file or the environment, or the default of the schema.
    fn value_or_default(&self, key: &str) -> Option<Value> {
        let default = || Some(Value::new(None, schema::default_value(key)?));
        self.value(key).or_else(default)
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

/// The key `a.b.c` in the spelling of messages, `[a.b].c`.
fn display_key(key: &str) -> String {
    match key.rsplit_once('.') {
        Some((section, key)) => format!("[{section}].{key}"),
        None => key.to_owned(),
    }
}
