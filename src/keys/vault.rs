//! Reads keys and key ids from the answers of Vault. Like [`super::file`], this module does no
//! I/O, so that it can be fuzzed alone.

use serde::Deserialize;

use super::{file::KeyText, key_text};
use crate::domain::keyring::{Kek, KeyId};

/// Where nico-api keeps the keys below the mount of the KV engine.
pub const FOLDER: &str = "machine_identity/encryption_keys";

/// The value of a key, as messages show it.
const SHAPE: &str =
    r#"{"UsernamePassword": {"username": "…", "password": "<base64 of 32 bytes>"}}"#;

/// The content of a secret of the KV engine, version 2.
pub enum Content {
    /// The key.
    Key(Kek),
    /// The current version was deleted or destroyed.
    Deleted,
    /// There is no such secret.
    Absent,
}

/// Reads the answer to a read of the key `id`.
///
/// # Errors
///
/// What is wrong with the answer, without its text.
pub fn content(id: &str, answer: &[u8]) -> Result<Content, String> {
    #[derive(Deserialize)]
    struct Answer {
        data: Option<Secret>,
    }
    #[derive(Deserialize)]
    struct Secret {
        data: Option<Value>,
    }
    // The kind of the credential, as nico-api's type writes it. Members that nico-api ignores are
    // ignored here too.
    #[derive(Deserialize)]
    enum Value {
        UsernamePassword {
            #[expect(dead_code, reason = "required, as in nico-api")]
            username: KeyText,
            password: KeyText,
        },
    }
    // The message of the parser may quote the answer.
    let answer: Answer = serde_json::from_slice(answer)
        .map_err(|_| format!("has another shape than nico-api's: write it as {SHAPE}"))?;
    let Some(secret) = answer.data else {
        return Ok(Content::Absent);
    };
    let Some(Value::UsernamePassword { password, .. }) = secret.data else {
        return Ok(Content::Deleted);
    };
    let id = KeyId::new(id).map_err(|error| format!("can't be used: {error}"))?;
    Ok(Content::Key(Kek::new(
        id,
        &key_text::decode(password.as_str())?,
    )))
}

/// Reads the answer to a list of a folder: the names in it. The name of a folder ends with `/`.
#[must_use]
pub fn names(answer: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Answer {
        data: Names,
    }
    #[derive(Deserialize)]
    struct Names {
        keys: Vec<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    Some(answer.data.keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";

    fn read(value: &str) -> Result<Content, String> {
        let answer = format!(r#"{{"data": {{"data": {value}, "metadata": {{"version": 1}}}}}}"#);
        content("kv1", answer.as_bytes())
    }

    #[test]
    fn a_key_has_the_shape_of_nico_api() {
        for more in ["", r#", "more": 1"#] {
            let value = format!(
                r#"{{"UsernamePassword": {{"username": "x", "password": " {A}\n"{more}}}}}"#
            )
            .replace('\n', "\\n");
            let Ok(Content::Key(kek)) = read(&value) else {
                panic!("{value}");
            };
            assert_eq!(kek.check_value().to_string(), "8c5c4580");
        }
        assert!(matches!(read("null"), Ok(Content::Deleted)));
        let absent = content("kv1", br#"{"errors": []}"#);
        assert!(matches!(absent, Ok(Content::Absent)));
    }

    #[test]
    fn another_shape_is_refused_and_not_quoted() {
        for value in [
            r#"{"password": "s3cr3t"}"#,
            r#"{"UsernamePassword": {"password": "s3cr3t"}}"#,
            r#"{"UsernamePassword": {"username": 1, "password": "s3cr3t"}}"#,
            r#"{"UsernamePassword": {"username": "s3cr3t", "password": ["s3cr3t"]}}"#,
            r#"{"UsernamePassword": {"username": "s3cr3t", "password": "s3cr3t"}}"#,
            r#"{"UsernamePassword": {"username": "a", "password": "s3cr3t"}, "s3cr3t": 1}"#,
            r#"{"s3cr3t": {}}"#,
            r#""s3cr3t""#,
            r#"s3cr3t"#,
        ] {
            let Err(problem) = read(value) else {
                panic!("{value}");
            };
            assert!(!problem.contains("s3cr3t"), "{problem}");
            assert!(
                problem.contains("another shape") || problem.contains("standard base64"),
                "{problem}"
            );
        }
    }

    #[test]
    fn names_are_listed() {
        let answer = br#"{"data": {"keys": ["kv1", "folder/"]}}"#;
        assert_eq!(names(answer).unwrap(), ["kv1", "folder/"]);
        for answer in ["", "{}", r#"{"errors": []}"#, r#"{"data": {"keys": [1]}}"#] {
            assert_eq!(names(answer.as_bytes()), None, "{answer}");
        }
    }
}
