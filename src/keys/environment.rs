//! Reads keys from environment variables, as nico-api does if it is configured so.
//!
//! nico-api uses figment for this (`Env::prefixed(…).split("__")`). Names are read here in
//! the same way. The prefix and the sections may have any case. `__` and `.` both separate
//! sections. The rest of the name is the key id, in lower case.

use std::collections::BTreeMap;

use super::file::kek;
use crate::domain::keyring::{Kek, KeySource};

/// The sections below the prefix, as in the secrets file.
const SECTIONS: [&str; 2] = ["machine_identity", "encryption_keys"];

/// The naming scheme of the variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// The prefix without trailing underscores.
    prefix: String,
}

impl Variables {
    /// The variables with this prefix. Trailing underscores of `prefix` are ignored.
    #[must_use]
    pub fn with_prefix(prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('_').to_owned();
        Self { prefix }
    }

    /// The variable name for the key with this id.
    #[must_use]
    pub fn name(&self, id: &str) -> String {
        let [outer, inner] = SECTIONS.map(str::to_ascii_uppercase);
        format!("{}__{outer}__{inner}__{id}", self.prefix)
    }

    /// Reads the keys of `environment`. There may be none. A value of `None` is not UTF-8.
    ///
    /// # Errors
    ///
    /// One sentence for each problem. It begins with the name of the variable.
    pub fn read<'a>(
        &self,
        environment: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<Vec<Kek>, Vec<String>> {
        let mut keks = Vec::new();
        let mut problems = Vec::new();
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for (variable, value) in environment {
            let key = match self.key_id(variable) {
                None => continue,
                Some(Ok(id)) => match seen.insert(id.clone(), variable) {
                    Some(other) => Err(format!(
                        "sets key {id:?}, which {other} sets too (ids are read in lower \
                         case): unset one"
                    )),
                    None => value
                        .ok_or_else(|| "is not UTF-8".to_owned())
                        .and_then(|value| kek(&id, unquoted(value)))
                        .map_err(|problem| format!("key {id:?} {problem}")),
                },
                Some(Err(problem)) => Err(problem),
            };
            match key {
                Ok(kek) => keks.push(kek.found_in(KeySource::Environment(variable.to_owned()))),
                Err(problem) => {
                    problems.push(format!("environment variable {variable}: {problem}"))
                }
            }
        }
        if problems.is_empty() {
            Ok(keks)
        } else {
            Err(problems)
        }
    }

    /// Whether `variable` is meant to hold keys, even if its name is wrong.
    #[must_use]
    pub fn is_one(&self, variable: &str) -> bool {
        self.key_id(variable).is_some()
    }

    /// The key id in the name of a variable, or what is wrong with the name. `None` if the
    /// variable is not about keys.
    fn key_id(&self, variable: &str) -> Option<Result<String, String>> {
        let name = variable.trim().to_ascii_lowercase();
        let prefix = format!("{}__", self.prefix.to_ascii_lowercase());
        let path = name.strip_prefix(&prefix)?.replace("__", ".");
        let mut names = path.splitn(3, '.');
        if names.next() != Some(SECTIONS[0]) {
            return None;
        }
        match (names.next(), names.next()) {
            // nico-api also accepts a whole section in one value.
            (None, _) | (Some(_), None) => Some(Err(format!(
                "several keys in one variable are not supported: set one variable for each key, {}",
                self.name("<id>")
            ))),
            (Some(section), _) if section != SECTIONS[1] => None,
            (_, Some(id)) if id.is_empty() || id.contains('.') => Some(Err(
                "is not the name of a key: it must end with a key id that contains no \"__\" \
                 and no \".\""
                    .to_owned(),
            )),
            (_, Some(id)) => Some(Ok(id.to_owned())),
        }
    }
}

/// The value as figment reads it: without surrounding double quotes.
fn unquoted(value: &str) -> &str {
    let value = value.trim();
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";
    const B: &str = "S0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0s=";

    fn read(prefix: &str, environment: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let environment = environment
            .iter()
            .map(|(name, value)| (*name, Some(*value)));
        let keks = Variables::with_prefix(prefix).read(environment);
        let id_and_check = |kek: &Kek| format!("{} {}", kek.id(), kek.check_value());
        keks.map(|keks| keks.iter().map(id_and_check).collect())
            .map_err(|problems| problems.join("\n"))
    }

    #[test]
    fn names_are_read_as_figment_reads_them() {
        let keys = read(
            "NICO_",
            &[
                ("NICO__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV1", A),
                ("nico__machine_identity__encryption_keys__kv-2", B),
                (
                    "Nico__Machine_Identity.Encryption_Keys.v_3",
                    " \"ERERERERERERERERERERERERERERERERERERERERERE=\"\n",
                ),
                ("NICO__MACHINE_IDENTITY__ENCRYPTION_KEYS___4", A),
                ("NICO__MACHINE_IDENTITY__OTHER__KV1", "x"),
                ("NICO__BMC_SITE_WIDE_ROOT__PASSWORD", "x"),
                ("NICO_MACHINE_IDENTITY__ENCRYPTION_KEYS__KV1", "x"),
                ("OTHER__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV1", "x"),
            ],
        );
        // The first check value is the one in keyring.rs.
        let a = "8c5c4580";
        let keys = keys.unwrap();
        assert_eq!(keys.len(), 4);
        assert_eq!(keys[0], format!("kv1 {a}"));
        assert!(keys[1].starts_with("kv-2 ") && !keys[1].ends_with(a));
        assert_eq!(keys[2], format!("v_3 {a}"));
        assert_eq!(keys[3], format!("_4 {a}"));
    }

    #[test]
    fn every_bad_variable_is_named_and_no_value_is_quoted() {
        let problems = read(
            "P__",
            &[
                ("P__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV1", "c2VjcmV0"),
                ("P__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV2", "s3cr3t!"),
                ("P__MACHINE_IDENTITY__ENCRYPTION_KEYS__kv2", B),
                ("P__MACHINE_IDENTITY__ENCRYPTION_KEYS__A__B", A),
                ("P__MACHINE_IDENTITY__ENCRYPTION_KEYS__A.B", A),
                ("P__MACHINE_IDENTITY__ENCRYPTION_KEYS__", A),
                ("P__MACHINE_IDENTITY__ENCRYPTION_KEYS", "{kv1=\"s3cr3t\"}"),
                ("P__MACHINE_IDENTITY", "{encryption_keys={kv1=\"s3cr3t\"}}"),
            ],
        )
        .unwrap_err();
        let lines: Vec<_> = problems.lines().collect();
        let ends = [
            "KV1: key \"kv1\" decodes to 6 bytes instead of 32",
            "KV2: key \"kv2\" is not standard base64",
            "kv2: sets key \"kv2\", which P__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV2 sets too",
            "A__B: is not the name of a key",
            "A.B: is not the name of a key",
            "KEYS__: is not the name of a key",
            "KEYS: several keys in one variable are not supported",
            "IDENTITY: several keys in one variable are not supported",
        ];
        assert_eq!(lines.len(), ends.len(), "{problems}");
        for (line, end) in lines.iter().zip(ends) {
            assert!(line.starts_with("environment variable P__"), "{line}");
            assert!(line.contains(end), "{end:?} is not in {line:?}");
        }
        for secret in ["c2VjcmV0", "s3cr3t", "ERER", "S0tL"] {
            assert!(!problems.contains(secret), "{problems}");
        }
    }

    #[test]
    fn an_environment_without_keys_is_allowed() {
        assert_eq!(read("P", &[("PATH", "/bin"), ("P", "x")]), Ok(Vec::new()));
    }
}
