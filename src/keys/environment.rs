//! Keys in environment variables, as nico-api takes them where it is told to.
//!
//! nico-api hands its environment to figment (`Env::prefixed(…).split("__")`), and the
//! names are read here the way that does it: prefix and sections in any case, `__` and
//! `.` both separate, and what is left, the key id, comes out in lower case.

use std::collections::BTreeMap;

use super::file::kek;
use crate::domain::keyring::{Kek, KeySource};

/// The sections below the prefix, as the secrets file nests them.
const SECTIONS: [&str; 2] = ["machine_identity", "encryption_keys"];

/// How the variables of keys are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variables {
    /// Without underscores at its end.
    prefix: String,
}

impl Variables {
    /// The variables with this prefix; underscores at its end don't count.
    #[must_use]
    pub fn with_prefix(prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('_').to_owned();
        Self { prefix }
    }

    /// The name for a key with this id.
    #[must_use]
    pub fn name(&self, id: &str) -> String {
        let [outer, inner] = SECTIONS.map(str::to_ascii_uppercase);
        format!("{}__{outer}__{inner}__{id}", self.prefix)
    }

    /// The keys of `environment`, which may well be none. A value that is not UTF-8 is
    /// `None`.
    ///
    /// # Errors
    ///
    /// One sentence for each fault, which begins with the name of the variable.
    pub fn read<'a>(
        &self,
        environment: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<Vec<Kek>, Vec<String>> {
        let mut keks = Vec::new();
        let mut faults = Vec::new();
        let mut seen: BTreeMap<String, &str> = BTreeMap::new();
        for (variable, value) in environment {
            let key = match self.key_id(variable) {
                None => continue,
                Some(Ok(id)) => match seen.insert(id.clone(), variable) {
                    Some(other) => Err(format!(
                        "sets key {id:?}, as {other} does: ids come out in lower case; unset one"
                    )),
                    None => value
                        .ok_or_else(|| "is not UTF-8".to_owned())
                        .and_then(|value| kek(&id, unquoted(value)))
                        .map_err(|fault| format!("key {id:?} {fault}")),
                },
                Some(Err(fault)) => Err(fault),
            };
            match key {
                Ok(kek) => keks.push(kek.found_in(KeySource::Environment(variable.to_owned()))),
                Err(fault) => faults.push(format!("environment variable {variable}: {fault}")),
            }
        }
        if faults.is_empty() {
            Ok(keks)
        } else {
            Err(faults)
        }
    }

    /// Whether `variable` is meant to hold keys, well or badly named.
    #[must_use]
    pub fn is_one(&self, variable: &str) -> bool {
        self.key_id(variable).is_some()
    }

    /// The id in the name of a variable, a fault if the name has none to be used, and
    /// nothing if it is about something else.
    fn key_id(&self, variable: &str) -> Option<Result<String, String>> {
        let name = variable.trim().to_ascii_lowercase();
        let prefix = format!("{}__", self.prefix.to_ascii_lowercase());
        let path = name.strip_prefix(&prefix)?.replace("__", ".");
        let mut names = path.splitn(3, '.');
        if names.next() != Some(SECTIONS[0]) {
            return None;
        }
        match (names.next(), names.next()) {
            // nico-api takes a whole section in one value, too.
            (None, _) | (Some(_), None) => Some(Err(format!(
                "several keys in one variable are not read here: set one for each, {}",
                self.name("<id>")
            ))),
            (Some(section), _) if section != SECTIONS[1] => None,
            (_, Some(id)) if id.is_empty() || id.contains('.') => Some(Err(
                "is no name for a key: its end is to be the key id, without \"__\" and \".\" in it"
                    .to_owned(),
            )),
            (_, Some(id)) => Some(Ok(id.to_owned())),
        }
    }
}

/// What figment makes of a value: one in double quotes is what is between them.
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
            .map_err(|faults| faults.join("\n"))
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
        // The check values are those of keyring.rs and of the second key by the same formula.
        let a = "8c5c4580";
        let keys = keys.unwrap();
        assert_eq!(keys.len(), 4);
        assert_eq!(keys[0], format!("kv1 {a}"));
        assert!(keys[1].starts_with("kv-2 ") && !keys[1].ends_with(a));
        assert_eq!(keys[2], format!("v_3 {a}"));
        assert_eq!(keys[3], format!("_4 {a}"));
    }

    #[test]
    fn every_bad_variable_is_named_and_none_is_quoted() {
        let faults = read(
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
        let lines: Vec<_> = faults.lines().collect();
        let ends = [
            "KV1: key \"kv1\" decodes to 6 bytes instead of 32",
            "KV2: key \"kv2\" is not standard base64",
            "kv2: sets key \"kv2\", as P__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV2 does",
            "A__B: is no name for a key",
            "A.B: is no name for a key",
            "KEYS__: is no name for a key",
            "KEYS: several keys in one variable are not read here",
            "IDENTITY: several keys in one variable are not read here",
        ];
        assert_eq!(lines.len(), ends.len(), "{faults}");
        for (line, end) in lines.iter().zip(ends) {
            assert!(line.starts_with("environment variable P__"), "{line}");
            assert!(line.contains(end), "{end:?} is not in {line:?}");
        }
        for secret in ["c2VjcmV0", "s3cr3t", "ERER", "S0tL"] {
            assert!(!faults.contains(secret), "{faults}");
        }
    }

    #[test]
    fn an_environment_without_keys_is_no_fault() {
        assert_eq!(read("P", &[("PATH", "/bin"), ("P", "x")]), Ok(Vec::new()));
    }
}
