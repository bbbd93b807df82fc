//! `keys::file::parse` accepts any text without a panic. Its messages quote only the ids of
//! keys.

use std::collections::{BTreeMap, BTreeSet};

use nico_rewrap::keys::file::parse;
use serde::{Deserialize, de::IgnoredAny};

/// All messages, with `ID` for a key id and `N` for a number.
const MESSAGES: [&str; 26] = [
    "is not the expected JSON or YAML: \
     machine_identity.encryption_keys must map key ids to baseN texts",
    "is not the expected JSON or YAML at line N column N: \
     machine_identity.encryption_keys must map key ids to baseN texts",
    "exceeds a limit of the YAML reader, which reads at most N nested levels: write the file as \
     JSON, or use fewer aliases and levels",
    "exceeds a limit of the YAML reader at line N column N, which reads at most N nested levels: \
     write the file as JSON, or use fewer aliases and levels",
    "exceeds a limit of the YAML reader at line N column N, which reads at most N MiB of text, \
     aliases included: write the file as JSON, or use fewer aliases and levels",
    "exceeds a limit of the YAML reader, which reads at most N values that aliases and merge keys \
     repeat: write the file as JSON, or use fewer aliases and levels",
    "exceeds a limit of the YAML reader at line N column N, which reads at most N values that \
     aliases and merge keys repeat: write the file as JSON, or use fewer aliases and levels",
    "key id ID appears twice: keep only the right entry",
    "key id number N appears twice: keep only the right entry",
    "key number N has a text that looks like a key in the place of its id: write the id first and \
     the key after it",
    "key ID can't be used: a key id has N to N bytes",
    "key ID is not standard baseN: it has no padding: add `=` at its end",
    "key ID is not standard baseN: it is URL-safe baseN: replace every `-` with `+` and every `_` \
     with `/`, and end it with `=`",
    "key ID is not standard baseN: it contains white space: write it on one line",
    "key ID is not standard baseN: it contains quotes or a prefix: keep only the baseN text",
    "key ID is not standard baseN: copy it again from the source of nico-api's keys; a new \
     key cannot decrypt what this key encrypted",
    "key ID is not standard baseN: it is encrypted by sops (ENC[…]): decrypt the file with \
     `sops --decrypt`",
    "key ID is not standard baseN: it is encrypted by Ansible Vault: decrypt it with \
     `ansible-vault decrypt`",
    "key ID is not standard baseN: it is a PEM block; a key is the baseN of N bytes",
    "key ID is not standard baseN: it is a placeholder that was not replaced (like ${…}, {{…}} or \
     <…>): correct the program that writes the file",
    "key ID is not standard baseN: it is N hexadecimal digits: write the same N bytes as baseN, \
     with `xxd -r -p | baseN`",
    "key ID decodes to N bytes instead of N: it is empty",
    "key ID decodes to N bytes instead of N: they are N hexadecimal digits: write the same N bytes \
     as baseN, with `baseN -d | xxd -r -p | baseN`",
    "key ID decodes to N bytes instead of N: it was encoded twice: decode it once with \
     `baseN -d`, and write the result",
    "key ID decodes to N bytes instead of N: a line break was encoded with the key: encode the N \
     bytes without it, with `baseN -d | head -c N | baseN`",
    "key ID decodes to N bytes instead of N: copy it again from the source of nico-api's keys; \
     a new key cannot decrypt what this key encrypted",
];

/// Checks the properties. Returns whether the file `input` is `accepted` or `refused`.
pub(crate) fn check(input: &[u8]) -> &'static str {
    let Ok(text) = std::str::from_utf8(input) else {
        return "refused";
    };
    match parse(text) {
        Ok(keks) => {
            let ids: BTreeSet<_> = keks.iter().map(|kek| kek.id()).collect();
            assert_eq!(ids.len(), keks.len(), "{keks:?}");
            "accepted"
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            let ids = key_ids(text);
            for problem in &problems {
                let message = numbers_as_n(&id_as_id(problem, &ids));
                assert!(MESSAGES.contains(&message.as_str()), "{problem:?}");
            }
            "refused"
        }
    }
}

/// The ids that another reader finds, quoted as in the messages.
fn key_ids(text: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct File {
        machine_identity: Section,
    }
    #[derive(Deserialize)]
    struct Section {
        encryption_keys: BTreeMap<String, IgnoredAny>,
    }
    let file: Option<File> = serde_json::from_str(text)
        .ok()
        .or_else(|| serde_saphyr::from_str(text).ok());
    let keys = file.map(|file| file.machine_identity.encryption_keys);
    let ids = keys.unwrap_or_default().into_keys();
    ids.map(|id| format!("{id:?}")).collect()
}

fn id_as_id(problem: &str, ids: &[String]) -> String {
    for prefix in ["key id ", "key "] {
        let Some(rest) = problem.strip_prefix(prefix) else {
            continue;
        };
        // The longest match: an id with a quote may begin like another id.
        let id = ids.iter().filter(|id| rest.starts_with(id.as_str()));
        if let Some(id) = id.max_by_key(|id| id.len()) {
            return format!("{prefix}ID{}", &rest[id.len()..]);
        }
    }
    problem.to_owned()
}

fn numbers_as_n(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('N') => {}
            '0'..='9' => out.push('N'),
            other => out.push(other),
        }
    }
    out
}
