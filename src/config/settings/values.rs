//! Typed access to the values. After a problem, a method returns any value of its type: the
//! program does not start.

use std::{
    net::{Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use config::{Value, ValueKind};

use super::Settings;

impl Settings {
    pub(in crate::config) fn string(&mut self, key: &str) -> Option<String> {
        match self.value_or_default(key)?.kind {
            ValueKind::String(text) => Some(text),
            _ => {
                self.problem(key, "must be a string in quotes");
                None
            }
        }
    }

    /// A string that is not blank: nico-api's files write `""` for "not set".
    pub(in crate::config) fn non_empty_string(&mut self, key: &str) -> Option<String> {
        self.string(key).filter(|text| !text.trim().is_empty())
    }

    pub(in crate::config) fn required_string(
        &mut self,
        key: &str,
        what_to_do: &str,
    ) -> Option<String> {
        let text = self.non_empty_string(key);
        if text.is_none()
            && !matches!(self.value(key), Some(value) if !matches!(value.kind, ValueKind::String(_)))
        {
            self.missing(key, format!("is missing; {what_to_do}"));
        }
        text
    }

    /// A setting with a default in the schema.
    pub(in crate::config) fn bool(&mut self, key: &str) -> bool {
        let value = self.value_or_default(key);
        self.parse_bool(key, value)
    }

    /// A setting whose default depends on other settings, or that is not in the schema.
    pub(in crate::config) fn bool_or(&mut self, key: &str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            value => self.parse_bool(key, value),
        }
    }

    fn parse_bool(&mut self, key: &str, value: Option<Value>) -> bool {
        match value.map(|value| value.kind) {
            Some(ValueKind::Boolean(value)) => value,
            Some(ValueKind::String(text)) if text == "true" => true,
            Some(ValueKind::String(text)) if text == "false" => false,
            _ => {
                self.problem(key, "must be true or false");
                false
            }
        }
    }

    /// A list of strings. In an environment variable, commas separate them.
    pub(in crate::config) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let value = self.value_or_default(key)?;
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
    pub(in crate::config) fn non_empty_list(&mut self, key: &str) -> Vec<String> {
        let mut items = self.list(key).unwrap_or_default();
        if items.iter().any(|item| item.trim().is_empty()) {
            self.problem(key, "has a blank entry; remove it");
            items.clear();
        }
        items
    }

    pub(in crate::config) fn number(&mut self, key: &str, range: RangeInclusive<u32>) -> u32 {
        let value = self.value_or_default(key);
        let number = match value.map(|value| value.kind) {
            Some(ValueKind::I64(number)) => u32::try_from(number).ok(),
            Some(ValueKind::U64(number)) => u32::try_from(number).ok(),
            Some(ValueKind::String(text)) => text.parse().ok(),
            _ => None,
        };
        match number.filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let (least, most) = range.into_inner();
                self.problem(key, format!("must be a number from {least} to {most}"));
                least
            }
        }
    }

    /// A duration with a unit, from one millisecond to one hour.
    pub(in crate::config) fn duration(&mut self, key: &str) -> Duration {
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        self.duration_in(
            key,
            range,
            "must be a duration with a unit, from \"1ms\" to \"1h\", like \"2s\"",
        )
    }

    /// A duration in `range`. `rule` says what it must be.
    pub(in crate::config) fn duration_in(
        &mut self,
        key: &str,
        range: RangeInclusive<Duration>,
        rule: &str,
    ) -> Duration {
        let value = self.value_or_default(key);
        let duration = match value.map(|value| value.kind) {
            Some(ValueKind::String(text)) => humantime::parse_duration(&text).ok(),
            _ => None,
        };
        match duration.filter(|duration| range.contains(duration)) {
            Some(duration) => duration,
            None => {
                self.problem(key, rule);
                *range.start()
            }
        }
    }

    pub(in crate::config) fn address(&mut self, key: &str) -> SocketAddr {
        let value = self.value_or_default(key);
        let address = match value.map(|value| value.kind) {
            Some(ValueKind::String(text)) => text.parse().ok(),
            _ => None,
        };
        address.unwrap_or_else(|| {
            self.problem(
                key,
                "must be an address and a port, like \"[::]:1179\" or \"127.0.0.1:1179\"",
            );
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
        })
    }

    /// One of the given words. There is at least one.
    pub(in crate::config) fn one_of<T: Copy, const N: usize>(
        &mut self,
        key: &str,
        choices: [(&str, T); N],
    ) -> T {
        const { assert!(N > 0) };
        let value = self.value_or_default(key);
        let word = match value.map(|value| value.kind) {
            Some(ValueKind::String(text)) => text,
            _ => String::new(),
        };
        match choices.iter().find(|(choice, _)| *choice == word) {
            Some((_, choice)) => *choice,
            None => {
                let words = choices.map(|(choice, _)| format!("\"{choice}\""));
                self.problem(key, format!("must be one of {}", words.join(", ")));
                choices[0].1
            }
        }
    }
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
