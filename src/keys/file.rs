//! The secrets file: the same JSON or YAML file that nico-api reads. Keys in
//! environment variables are read by [`super::environment`].
//!
//! Only `machine_identity.encryption_keys` is looked at, a map from key id to
//! the standard base64 of 32 bytes; the other credentials in the file are
//! skipped without being kept. Every key is checked, and every fault is
//! reported, with the key id and never with the key.

use std::{collections::BTreeSet, fmt, io, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use zeroize::{Zeroize, Zeroizing};

use super::{key_text, yaml};
use crate::domain::keyring::{Kek, KeyId, KeySource};

/// The largest file, in bytes. A site of 100,000 machines has some 10 MiB of credentials.
pub const MAX_BYTES: u64 = 64 << 20;

/// The keys of the file at `path`, which may well have none. `content` is what came of
/// reading it: this module reads no file itself, so that it can be fuzzed alone.
///
/// # Errors
///
/// One sentence for each fault, without the name of the file.
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
    let mut fault = format!("can't be read ({error})");
    if error.kind() == io::ErrorKind::NotFound {
        fault +=
            "; where the keys are in Vault, Vault Agent makes this file: docs/install/vault.md";
    }
    fault
}

/// Reads the keys out of `text`: JSON if it is that, else YAML, whatever the file is
/// called, as nico-api does it.
///
/// # Errors
///
/// One sentence for each fault, which quotes nothing of the text but key ids.
pub fn parse(text: &str) -> Result<Vec<Kek>, Vec<String>> {
    // Neither parser's message is passed on: both may quote what they choked on.
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
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, (id, key)) in entries.iter().enumerate() {
        // Not quoted where id and key are the wrong way round.
        let number = i + 1;
        let is_key = key_text::is_like_a_key(id);
        if !seen.insert(id) {
            let shown = if is_key {
                format!("number {number}")
            } else {
                format!("{id:?}")
            };
            faults.push(format!(
                "key id {shown} is there twice; which of the two is meant?"
            ));
            continue;
        }
        match kek(id, &key.0) {
            Ok(kek) => keks.push(kek),
            Err(_) if is_key => faults.push(format!(
                "key number {number} has what looks like a key for its id: write the id first, and \
                 the key behind it"
            )),
            Err(fault) => faults.push(format!("key {id:?} {fault}")),
        }
    }
    if faults.is_empty() {
        Ok(keks)
    } else {
        Err(faults)
    }
}

/// What is wrong with a file that is neither JSON nor YAML.
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
            "is over a limit of the YAML reader{place}, which reads at most {limit}: write the file \
             as JSON, or use fewer aliases and levels"
        );
    }
    let place = at(if text.trim_start().starts_with('{') {
        Some((json_error.line(), json_error.column()))
    } else {
        of_yaml
    });
    format!(
        "is not the JSON or YAML that is expected{place}: \
         machine_identity.encryption_keys must map key ids to base64 texts"
    )
}

/// The key in `text`, under `id`.
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

/// In the order of the file, repeated ids included: a map type would drop them.
struct KeyEntries(Vec<(String, KeyText)>);

#[derive(Deserialize)]
struct KeyText(String);

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
    use super::*;

    const A: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";
    const B: &str = "S0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0s=";

    fn ids(text: &str) -> Vec<String> {
        let keks = parse(text).unwrap();
        keks.iter().map(|kek| kek.id().to_string()).collect()
    }

    fn faults(text: &str) -> String {
        parse(text).unwrap_err().join("\n")
    }

    #[test]
    fn json_and_yaml_with_other_credentials_around() {
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
    fn every_bad_key_is_named_and_none_is_quoted() {
        let text = r#"{"machine_identity": {"encryption_keys": {
            "short": "c2VjcmV0", "odd": "s3cr3t!", "": "ERERERERERERERERERERERERERERERERERERERERERE=",
            "kv1": "ERERERERERERERERERERERERERERERERERERERERERE=",
            "kv1": "S0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0s="}}}"#;
        let faults = faults(text);
        assert!(
            faults.contains("key \"short\" decodes to 6 bytes instead of 32"),
            "{faults}"
        );
        assert!(
            faults.contains("key \"odd\" is not standard base64"),
            "{faults}"
        );
        assert!(faults.contains("key \"\" can't be used"), "{faults}");
        assert!(faults.contains("key id \"kv1\" is there twice"), "{faults}");
        for secret in ["c2VjcmV0", "s3cr3t", "ERER", "S0tL"] {
            assert!(!faults.contains(secret), "{faults}");
        }
    }

    #[test]
    fn a_key_in_the_place_of_its_id_is_not_quoted() {
        let swapped = format!(
            r#"{{"machine_identity": {{"encryption_keys": {{"kv1": "{A}", "{B}": "kv2"}}}}}}"#
        );
        let faults = faults(&swapped);
        assert!(
            faults.starts_with("key number 2 has what looks like a key for its id"),
            "{faults}"
        );
        let twice = swapped.replace("kv1", B);
        let faults = format!("{faults}{}", super::parse(&twice).unwrap_err().join(""));
        assert!(
            faults.contains("key id number 2 is there twice"),
            "{faults}"
        );
        assert!(!faults.contains(&B[..10]), "{faults}");
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
            let faults = faults(text);
            assert!(!faults.contains("s3cr3t"), "{faults}");
            assert!(faults.contains("line"), "{faults}");
        }
    }

    #[test]
    fn a_file_without_keys_is_no_fault() {
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
