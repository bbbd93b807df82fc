//! Reads a configuration file. Each value knows the file that it comes from.

use std::path::Path;

use config::{Map, Source, Value, ValueKind};

use crate::{config::schema::SECTION, regular_file};

/// Size limit in bytes, far above any site config written by hand.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A parsed file. Its path is the origin of every value.
#[derive(Debug, Clone)]
pub(super) struct TomlFile(Map<String, Value>);

impl TomlFile {
    /// Whether the file has `[rewrap]` and `deny_unknown_fields = true`, which nico-api refuses.
    pub(super) fn is_refused_by_nico_api(&self) -> bool {
        let denies = self.0.get("deny_unknown_fields");
        denies.is_some_and(|value| value.kind == ValueKind::Boolean(true))
            && self.0.contains_key(SECTION)
    }

    /// Reads a file. The error has only line and column, since the parser's message would quote
    /// the line, which may contain a password.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
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
