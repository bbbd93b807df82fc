use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;
use crate::domain::keyring::KeyId;

const A: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";
const B: &str = "S0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0s=";

fn add(text: &str, id: &str, format: Format) -> Result<String, AddError> {
    let bytes = STANDARD.decode(B).unwrap().try_into().unwrap();
    let kek = Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new(bytes));
    add_key(text, format, &kek, B).map(|text| text.to_string())
}

/// The text between two `+` must be inserted. `@A` and `@B` are keys.
fn inserts(marked: &str) {
    let marked = marked.replace("@A", A).replace("@B", B);
    let pieces: Vec<_> = marked.split('+').collect();
    let [before, _, after] = pieces[..] else {
        panic!("{marked}");
    };
    let old = [before, after].concat();
    let new = add(&old, "kv2", Format::Yaml);
    assert_eq!(new.as_deref(), Ok(&*pieces.concat()), "{old}");
}

#[test]
fn a_key_is_added_to_yaml_and_nothing_else_changes() {
    for marked in [
        "bmc: {root: [1, two]}\nmachine_identity:\n  encryption_keys:\n+    \"kv2\": \"@B\"\n+    kv1: @A\n",
        // Comments stay where they are, and a text in several lines stays whole.
        "# a\nmachine_identity:\n    encryption_keys: # b\n+      \"kv2\": \"@B\"\n+\n      # c\n      kv1: |\n        @A\n    x: 1\n    # d\nother: |\n  text\n\n",
        "machine_identity:\r\n  encryption_keys:\r\n+    \"kv2\": \"@B\"\r\n+    'kv1': '@A'\r\n",
        "\u{fc}: \u{fc}\nmachine_identity:\n  encryption_keys:\n+    \"kv2\": \"@B\"\n+    kv1: >\n      @A",
        "machine_identity:\n  encryption_keys: &keys\n+    \"kv2\": \"@B\"\n+    kv1: @A\n",
        "base: &base {kv1: @A}\nmachine_identity:\n  encryption_keys:\n+    \"kv2\": \"@B\"\n+    <<: *base\n",
        "machine_identity:\n  encryption_keys: {+\"kv2\": \"@B\", +kv1: \"@A\"}\n",
        "machine_identity:\n  encryption_keys: {+\"kv2\": \"@B\"+ }\n",
        "{machine_identity: {encryption_keys: {+\"kv2\": \"@B\", +kv1: @A}}}",
        // Without the map of keys, or the whole section.
        "machine_identity:\n+  encryption_keys:\n    \"kv2\": \"@B\"\n+  other: 1\n",
        "machine_identity: {+\"encryption_keys\": {\"kv2\": \"@B\"}, +other: 1}\n",
        "bmc: x\n+machine_identity:\n  encryption_keys:\n    \"kv2\": \"@B\"\n+",
        "machine_identity:\n  encryption_keys: # none yet\n+    \"kv2\": \"@B\"\n+other: 1\n",
        "text: |\n  encryption_keys:\nmachine_identity:\n  encryption_keys:\n+    \"kv2\": \"@B\"\n+  x: 1\n",
        "machine_identity:\n+  encryption_keys:\n    \"kv2\": \"@B\"\n+other: 1\n",
        "# nothing yet\n+machine_identity:\n  encryption_keys:\n    \"kv2\": \"@B\"\n+",
    ] {
        inserts(marked);
    }
}

#[test]
fn a_key_is_added_to_json_and_nothing_else_changes() {
    for marked in [
        r#"{"machine_identity":{"encryption_keys":{"kv1":"@A"+, "kv2": "@B"+}}}"#,
        "{\n  \"n\": 1.50,\n  \"machine_identity\": {\n    \"encryption_keys\": {\n      \"kv1\": \"@A\"+,\n      \"kv2\": \"@B\"+\n    }\n  }\n}\n",
        r#"{"machine_identity": {"encryption_keys": {+"kv2": "@B"+ }}, "x": "}"}"#,
        r#"{"machine_identity": {"x": "{\"encryption_keys\": {}}"+, "encryption_keys": {"kv2": "@B"}+}}"#,
        r#" {"x": []+, "machine_identity": {"encryption_keys": {"kv2": "@B"}}+} "#,
        r#"{+"machine_identity": {"encryption_keys": {"kv2": "@B"}}+}"#,
        r#"{"machine\u005fidentity": {"encryption_keys": {"kv1": "@A"+, "kv2": "@B"+}}}"#,
    ] {
        inserts(marked);
    }
}

#[test]
fn a_blank_file_is_begun() {
    for (format, text) in [
        (
            Format::Yaml,
            format!("machine_identity:\n  encryption_keys:\n    \"kv2\": \"{B}\"\n"),
        ),
        (
            Format::Json,
            format!("{{\"machine_identity\": {{\"encryption_keys\": {{\"kv2\": \"{B}\"}}}}}}\n"),
        ),
    ] {
        for blank in ["", "\n \n"] {
            assert_eq!(add(blank, "kv2", format).as_deref(), Ok(&*text));
        }
    }
}

#[test]
fn an_id_with_special_characters_is_written_as_it_is() {
    let text = format!("machine_identity:\n  encryption_keys:\n    kv1: {A}\n");
    for id in ["a b", "\"", "\\", "\u{fc}", ": #", "\n", "true", "1"] {
        let new = add(&text, id, Format::Yaml).unwrap();
        let keks = parse(&new).unwrap();
        assert_eq!(keks[0].id().as_str(), id, "{new}");
        assert_eq!(keks.len(), 2);
    }
}

#[test]
fn what_cannot_be_edited_safely_is_refused() {
    for text in [
        // A null where the map of keys belongs.
        "machine_identity:\n  encryption_keys: null\n",
        "machine_identity: ~\n",
        r#"{"machine_identity": null}"#,
        r#"{"machine_identity": {"encryption_keys": null}}"#,
        // The line would change what an alias means, or belong to something else.
        "keys: &keys {kv1: @A}\nmachine_identity:\n  encryption_keys: *keys\n",
        "machine_identity:\n  encryption_keys: &keys\n    kv1: @A\nsame: *keys\n",
        "bmc: x\n...\n",
        "bmc: |+\n  text",
        "bmc: x",
        "{bmc: x}\n",
    ] {
        let text = text.replace("@A", A);
        let refused = add(&text, "kv2", Format::Yaml);
        assert_eq!(refused, Err(AddError::NotSafe), "{text}");
    }
}

#[test]
fn a_file_with_faults_or_with_the_id_is_refused() {
    let text = format!("machine_identity:\n  encryption_keys:\n    kv1: {A}\n");
    let taken = add(&text, "kv1", Format::Yaml);
    assert_eq!(taken, Err(AddError::Exists("kv1".to_owned())));
    for text in ["[", "machine_identity: 1", "a: 1\n---\nb: 1\n", "42"] {
        let refused = add(text, "kv2", Format::Yaml).unwrap_err();
        assert!(matches!(refused, AddError::Problems(_)), "{text}");
    }
    let short = "machine_identity: {encryption_keys: {kv1: s3cr3t}}";
    let refused = add(short, "kv2", Format::Yaml).unwrap_err().to_string();
    assert!(refused.contains("\"kv1\"") && !refused.contains("s3cr3t"));
}
