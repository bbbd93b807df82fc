//! The environment variables that the client reads.

use std::collections::BTreeMap;

use super::problem::Problem;

/// The environment. A value that is not UTF-8 is `None`.
#[derive(Debug, Default)]
pub(crate) struct Variables(BTreeMap<String, Option<String>>);

/// The variables that the client reads. The rest of the environment may contain secrets.
const NAMES: [&str; 10] = [
    "HOME",
    "NO_COLOR",
    "REWRAP_CACERT",
    "REWRAP_CERT",
    "REWRAP_ENDPOINT",
    "REWRAP_KEY",
    "REWRAP_SERVER_NAME",
    "REWRAP_SOCKET",
    "TERM",
    "XDG_CONFIG_HOME",
];

impl Variables {
    /// Takes the variables of [`NAMES`] from an environment.
    pub(crate) fn from<'a>(environment: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Self {
        let known = environment.filter(|(name, _)| NAMES.contains(name));
        Self(
            known
                .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)))
                .collect(),
        )
    }

    /// The value. An empty value counts as not set.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        match self.0.get(name) {
            None => Ok(None),
            Some(None) => Err(Problem::config(format!("{name}: the value is not UTF-8"))),
            Some(Some(value)) => Ok(Some(value.clone()).filter(|value| !value.is_empty())),
        }
    }

    /// Whether the variable has a value that is not empty.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.0
            .get(name)
            .is_some_and(|value| value.as_ref().is_none_or(|value| !value.is_empty()))
    }

    /// Whether the variable has this value.
    pub(super) fn is(&self, name: &str, value: &str) -> bool {
        self.0
            .get(name)
            .is_some_and(|text| text.as_deref() == Some(value))
    }
}
