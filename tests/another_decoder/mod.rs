//! Python's `cryptography` opens what the service writes, and the service re-wraps what Python
//! seals. The two share no code: AES-GCM, JSON and base64 are other implementations.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::grpcurl::run;
use crate::outcome::serve;
use crate::seal::key;
use crate::seed::{self, Org};

/// Runs the script on these entries.
fn python(entries: &[Value]) -> Vec<Value> {
    let program = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/another_decoder/envelope.py"
    );
    let mut child = Command::new(&program)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let input = serde_json::to_vec(entries).unwrap();
    // If the script ends early, its output says why.
    let _ = child.stdin.take().unwrap().write_all(&input);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "set PYTHON to a Python with the package cryptography: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Plaintexts of every kind: keys, JSON, nothing, every byte, and a long one.
fn plaintexts() -> Vec<Vec<u8>> {
    let mut plaintexts = vec![
        seed::signing_key_pem().as_bytes().to_vec(),
        seed::DELEGATION.as_bytes().to_vec(),
        b"{}".to_vec(),
        Vec::new(),
        (0..=255).collect(),
        vec![b'x'; 100_000],
    ];
    plaintexts.extend((1..40).map(|length| vec![length; length.into()]));
    plaintexts
}

#[tokio::test]
async fn python_opens_what_the_service_writes_and_the_service_opens_what_python_writes() {
    let plaintexts = plaintexts();
    let to_seal = |plaintext: &Vec<u8>| {
        json!({
            "key": BASE64_STANDARD.encode(key("kv1")),
            "key_id": "kv1",
            "plaintext": BASE64_STANDARD.encode(plaintext),
        })
    };
    let sealed = python(&plaintexts.iter().map(to_seal).collect::<Vec<_>>());
    let orgs: Vec<_> = sealed
        .iter()
        .enumerate()
        .map(|(i, text)| Org::new(&format!("org{i:03}")).text(i % 3, text.as_str().unwrap()))
        .collect();
    let (_database, client, server) = serve(&orgs).await;
    let report = run(&server, false).await;
    assert_eq!(
        (report.rows_updated as usize, report.rows_failed),
        (plaintexts.len(), 0)
    );

    let rows = seed::snapshot(&client).await;
    let texts = rows.values().enumerate().map(|(i, row)| {
        let text = row.texts[i % 3].as_ref().unwrap();
        json!({"key": BASE64_STANDARD.encode(key("kv2")), "text": text})
    });
    let opened = python(&texts.collect::<Vec<_>>());
    let expected = plaintexts
        .iter()
        .map(|plaintext| json!(["kv2", BASE64_STANDARD.encode(plaintext)]));
    assert_eq!(opened, expected.collect::<Vec<_>>());
}
