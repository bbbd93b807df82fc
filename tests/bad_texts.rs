//! Invalid column texts, grouped by what is wrong with them.

use serde_json::{Value, json};

use crate::seal::{encode, key, seal, seal_object, seal_with};
use crate::seed::{DELEGATION, signing_key_pem};

/// A text that cannot be re-wrapped to `kv2` although `kv1` and `kv2` are known.
pub(crate) struct Bad {
    /// The problem, for the message of a failed test.
    pub(crate) name: &'static str,
    /// The beginning of the expected failure text.
    pub(crate) begins: String,
    pub(crate) text: String,
}

/// Bad texts, at least one of every kind.
pub(crate) fn bad_texts() -> Vec<Bad> {
    let kinds = [
        ("unreadable envelope: ", not_base64()),
        ("unreadable envelope: ", not_an_envelope()),
        ("unreadable envelope: ", members_out_of_shape()),
        ("unsupported scheme version", of_other_versions()),
        (
            "key id \"no \\\"such\\\" key ✓\" is not in the secrets",
            vec![("an odd key", seal(DELEGATION, "no \"such\" key ✓"))],
        ),
        (
            "key id \"kv9\" is not in the secrets",
            vec![("another key", seal(DELEGATION, "kv9"))],
        ),
        (
            "key id \"KV1\" is not in the secrets",
            vec![("a key in other case", seal(DELEGATION, "KV1"))],
        ),
        (
            "key id \"kv1 \" is not in the secrets",
            vec![("a key and a space", seal(DELEGATION, "kv1 "))],
        ),
        (
            "authentication failed under key id \"kv1\"",
            not_authentic(),
        ),
        (
            "authentication failed under key id \"kv2\"",
            vec![(
                "kv2 says the label",
                seal_with(DELEGATION, "kv2", &key("kv1")),
            )],
        ),
    ];
    let bad = |begins: &str, (name, text)| Bad {
        name,
        begins: begins.into(),
        text,
    };
    kinds
        .into_iter()
        .flat_map(|(begins, texts)| texts.into_iter().map(move |text| bad(begins, text)))
        .collect()
}

fn good() -> Value {
    seal_object(DELEGATION, "kv1", &key("kv1"))
}

fn not_base64() -> Vec<(&'static str, String)> {
    // The length needs two padding characters.
    let mut object = good().to_string();
    object.extend(std::iter::repeat_n(' ', (4 - object.len() % 3) % 3));
    let text = encode(&object);
    let bare = text.strip_suffix("==").unwrap();
    vec![
        ("no base64", "!!!".into()),
        ("no padding", bare.into()),
        ("half the padding", format!("{bare}=")),
        (
            "stray bits",
            format!(
                "{}{}==",
                &bare[..bare.len() - 1],
                if bare.ends_with('A') { 'B' } else { 'R' }
            ),
        ),
        ("two lines", text.replacen('I', "I\n", 1)),
        ("PEM by mistake", signing_key_pem().into()),
        ("delegation by mistake", DELEGATION.into()),
        ("longer than 1 MiB", text + &" ".repeat(1 << 20)),
    ]
}

fn not_an_envelope() -> Vec<(&'static str, String)> {
    let object = good();
    let text = object.to_string();
    let values = ["scheme_version", "key_id", "nonce", "ciphertext"].map(|member| &object[member]);
    vec![
        ("white space", " \n".into()),
        ("no JSON", encode("hello")),
        ("another array", encode("[1, 2]")),
        ("an array of the values", encode(&json!(values).to_string())),
        ("an empty object", encode("{}")),
        ("an encoded PEM by mistake", encode(signing_key_pem())),
        ("an encoded delegation by mistake", encode(DELEGATION)),
        ("something behind it", encode(&format!("{text}x"))),
        ("a second object", encode(&format!("{text}{text}"))),
        ("an open end", encode(&text[..text.len() - 1])),
        (
            "a member twice",
            encode(&text.replacen('{', r#"{"key_id":"kv1","#, 1)),
        ),
    ]
}

fn members_out_of_shape() -> Vec<(&'static str, String)> {
    vec![
        ("an unknown member", bent("aad", "")),
        ("no scheme version", bent("scheme_version", Value::Null)),
        ("no key id", bent("key_id", Value::Null)),
        ("no nonce", bent("nonce", Value::Null)),
        ("no ciphertext", bent("ciphertext", Value::Null)),
        ("a version in quotes", bent("scheme_version", "1")),
        ("a version with a fraction", bent("scheme_version", 1.0)),
        ("an empty key id", bent("key_id", "")),
        ("a key id of 256 bytes", bent("key_id", "k".repeat(256))),
        ("a number for a key id", bent("key_id", 1)),
        ("a nonce of 11 bytes", bent("nonce", vec![1; 11])),
        ("a nonce of 13 bytes", bent("nonce", vec![1; 13])),
        ("a nonce in base64", bent("nonce", "AAAAAAAAAAAAAAAA")),
        ("a byte of 256", bent("ciphertext", vec![256; 40])),
        ("a byte of -1", bent("ciphertext", vec![-1; 40])),
        ("a byte of 1.5", bent("ciphertext", vec![1.5; 40])),
        ("no room for a tag", bent("ciphertext", vec![1; 15])),
    ]
}

fn of_other_versions() -> Vec<(&'static str, String)> {
    vec![
        ("version 0", bent("scheme_version", 0)),
        ("version 2", bent("scheme_version", 2)),
        ("version 257", bent("scheme_version", 257)),
        ("version -1", bent("scheme_version", -1)),
        (
            "version 2^32 + 1",
            bent("scheme_version", 4_294_967_297_u64),
        ),
    ]
}

fn not_authentic() -> Vec<(&'static str, String)> {
    let flipped = |byte: usize| {
        let mut object = good();
        let old = object["ciphertext"][byte].as_u64().unwrap();
        object["ciphertext"][byte] = json!(old ^ 1);
        encode(&object.to_string())
    };
    vec![
        (
            "kv1 says the label",
            seal_with(DELEGATION, "kv1", &key("kv2")),
        ),
        ("a changed nonce", bent("nonce", vec![1; 12])),
        ("a changed ciphertext", flipped(0)),
        ("a changed tag", flipped(DELEGATION.len() + 15)),
        ("a tag of nothing", bent("ciphertext", vec![1; 16])),
    ]
}

/// A good envelope in which one member is replaced, or left out if the value is `null`.
fn bent(member: &str, value: impl Into<Value>) -> String {
    let mut object = good();
    object[member] = value.into();
    object
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    encode(&object.to_string())
}
