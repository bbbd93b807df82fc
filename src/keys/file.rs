//! Reads keys from the secrets file, the JSON or YAML file that nico-api reads too. The
//! module [`super::environment`] reads keys from environment variables.
//!
//! Only the map `machine_identity.encryption_keys` is read: from key id to the standard
//! base64 of 32 bytes. All other credentials in the file are skipped and not kept in
//! memory. Every key is checked, and every problem is reported with the key id but without
//! the key.

use std::{collections::BTreeSet, fmt, io, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use zeroize::{Zeroize, Zeroizing};

use super::{key_text, yaml};
use crate::domain::keyring::{Kek, KeyId, KeySource};

/// Maximum size of the file, in bytes. A site of 100,000 machines has about 10 MiB of
/// credentials.
pub const MAX_BYTES: u64 = 64 << 20;

/// Reads the keys in the content of the file at `path`. There may be none. `content` is the
/// result of reading the file: this module does no I/O, so that it can be fuzzed alone.
///
/// # Errors
///
/// One sentence for each problem, without the name of the file.
pub fn of_file(
    path: &Path,
    content: io::Result<Zeroizing<Vec<u8>>>,
) -> Result<Vec<Kek>, Vec<String>> {
    let text = content.map_err(|error| vec![unreadable(&error)])?;
    let text = std::str::from_utf8(&text).map_err(|_| vec!["is not UTF-8".to_owned()])?;
    let keks = parse(text)?.into_iter();
    Ok(keks
        .map(|kek| kek.found_in(KeySource::File(path.to_owned())))
        .collect())
}

fn unreadable(error: &io::Error) -> String {
    let mut problem = format!("can't be read ({error})");
    if error.kind() == io::ErrorKind::NotFound {
        problem +=
            "; if the keys are in Vault, Vault Agent writes this file: see docs/install/vault.md";
    }
    problem
}

/// Reads the keys in `text`. As in nico-api, the text is parsed as JSON first and then as
/// YAML, regardless of the name of the file.
///
/// # Errors
///
/// One sentence for each problem. It quotes only key ids, no other text.
pub fn parse(text: &str) -> Result<Vec<Kek>, Vec<String>> {
    // The messages of the parsers are not passed on: both may quote the file.
    let file: SecretsFile = match serde_json::from_str(text) {
        Ok(file) => file,
        Err(json_error) => {
            let yaml = serde_saphyr::from_str_with_options(text, yaml::options(text));
            yaml.map_err(|yaml_error| vec![misread(text, &json_error, &yaml_error)])?
        }
    };

    let entries = file
        .machine_identity
        .and_then(|section| section.encryption_keys)
        .map(|entries| entries.0)
        .unwrap_or_default();

    let mut keks = Vec::new();
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, (id, key)) in entries.iter().enumerate() {
        // An id that looks like a key is reported by its number: id and key may have been
        // swapped.
        let number = i + 1;
        let is_key = key_text::is_like_a_key(id);
        if !seen.insert(id) {
            let shown = if is_key {
                format!("number {number}")
            } else {
                format!("{id:?}")
            };
            problems.push(format!(
                "key id {shown} appears twice: keep only the right entry"
            ));
            continue;
        }
        match kek(id, &key.0) {
            Ok(kek) => keks.push(kek),
            Err(_) if is_key => problems.push(format!(
                "key number {number} has a text that looks like a key in the place of its id: write \
                 the id first and the key after it"
            )),
            Err(problem) => problems.push(format!("key {id:?} {problem}")),
        }
    }
    if problems.is_empty() {
        Ok(keks)
    } else {
        Err(problems)
    }
}

/// Explains why a file is neither valid JSON nor valid YAML.
fn misread(text: &str, json_error: &serde_json::Error, yaml_error: &serde_saphyr::Error) -> String {
    let of_yaml = yaml_error
        .location()
        .map(|at| (at.line() as usize, at.column() as usize));
    let at = |place: Option<(usize, usize)>| {
        place.map_or_else(String::new, |(line, column)| {
            format!(" at line {line} column {column}")
        })
    };
    if let Some(limit) = yaml::over_limit(yaml_error) {
        let place = at(of_yaml);
        return format!(
            "exceeds a limit of the YAML reader{place}, which reads at most {limit}: write the file \
             as JSON, or use fewer aliases and levels"
        );
    }
    let place = at(if text.trim_start().starts_with('{') {
        Some((json_error.line(), json_error.column()))
    } else {
        of_yaml
    });
    format!(
        "is not the expected JSON or YAML{place}: \
         machine_identity.encryption_keys must map key ids to base64 texts"
    )
}

/// Makes the key `id` from its text.
pub(super) fn kek(id: &str, text: &str) -> Result<Kek, String> {
    let id = KeyId::new(id).map_err(|error| format!("can't be used: {error}"))?;
    Ok(Kek::new(id, &key_text::decode(text)?))
}

#[derive(Deserialize)]
struct SecretsFile {
    machine_identity: Option<MachineIdentity>,
}

#[derive(Deserialize)]
struct MachineIdentity {
    encryption_keys: Option<KeyEntries>,
}

/// In the order of the file and with repeated ids, which a map type would drop.
struct KeyEntries(Vec<(String, KeyText)>);

/// The text of a key. It is wiped on drop.
#[derive(Deserialize)]
pub(super) struct KeyText(String);

impl KeyText {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Drop for KeyText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<'de> Deserialize<'de> for KeyEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = KeyEntries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from key id to base64 text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyEntries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(KeyEntries(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use crate::keys::tests::{A, B, ids, problems};

    #[test]
    fn json_and_yaml_may_contain_other_credentials() {
        let json = format!(
            r#"{{"bmc": {{"root": {{"UsernamePassword": {{"username": "r", "password": "p"}}}}}},
                "machine_identity": {{"encryption_keys": {{"kv1": "{A}", "kv2": " {B}\n"}}, "x": 1}}}}"#
        );
        assert_eq!(ids(&json), ["kv1", "kv2"]);
        let yaml = format!(
            "bmc: {{root: [1, two]}}\nmachine_identity:\n  encryption_keys:\n    kv1: {A}\n    kv2: |\n      {B}\n"
        );
        assert_eq!(ids(&yaml), ["kv1", "kv2"]);
        let flow = format!("{{machine_identity: {{encryption_keys: {{kv1: {A}}}}}}}");
        assert_eq!(ids(&flow), ["kv1"]);
    }

    #[test]
    fn every_bad_key_is_named_and_no_key_is_quoted() {
        let text = r#"{"machine_identity": {"encryption_keys": {
            "short": "c2VjcmV0", "odd": "s3cr3t!", "": "ERERERERERERERERERERERERERERERERERERERERERE=",
            "kv1": "ERERERERERERERERERERERERERERERERERERERERERE=",
            "kv1": "S0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0s="}}}"#;
        let found = problems(text);
        assert!(
            found.contains("key \"short\" decodes to 6 bytes instead of 32"),
            "{found}"
        );
        assert!(
            found.contains("key \"odd\" is not standard base64"),
            "{found}"
        );
        assert!(found.contains("key \"\" can't be used"), "{found}");
        assert!(found.contains("key id \"kv1\" appears twice"), "{found}");
        for secret in ["c2VjcmV0", "s3cr3t", "ERER", "S0tL"] {
            assert!(!found.contains(secret), "{found}");
        }
    }

    #[test]
    fn a_key_in_the_place_of_its_id_is_not_quoted() {
        let swapped = format!(
            r#"{{"machine_identity": {{"encryption_keys": {{"kv1": "{A}", "{B}": "kv2"}}}}}}"#
        );
        let found = problems(&swapped);
        assert!(
            found.starts_with("key number 2 has a text that looks like a key"),
            "{found}"
        );
        let twice = swapped.replace("kv1", B);
        let found = format!("{found}{}", super::parse(&twice).unwrap_err().join(""));
        assert!(found.contains("key id number 2 appears twice"), "{found}");
        assert!(!found.contains(&B[..10]), "{found}");
    }

    #[test]
    fn a_file_that_does_not_parse_is_not_quoted() {
        for text in [
            r#"{"machine_identity": {"encryption_keys": {"kv1": {"password": "s3cr3t"}}}}"#,
            r#"{"machine_identity": {"encryption_keys": "s3cr3t"}}"#,
            r#"{"machine_identity": s3cr3t"#,
            "machine_identity:\n  encryption_keys:\n    kv1: {password: s3cr3t}\n",
            "machine_identity: [s3cr3t",
            "machine_identity:\n  encryption_keys:\n    kv1: s3cr3t\n    kv1: s3cr3t\n",
        ] {
            let found = problems(text);
            assert!(!found.contains("s3cr3t"), "{found}");
            assert!(found.contains("line"), "{found}");
        }
    }

    #[test]
    fn a_file_without_keys_is_allowed() {
        for text in [
            "{}",
            r#"{"machine_identity": {}}"#,
            "other: 1\n",
            r#"{"machine_identity": {"encryption_keys": {}}}"#,
        ] {
            assert!(ids(text).is_empty(), "{text}");
        }
    }
}
