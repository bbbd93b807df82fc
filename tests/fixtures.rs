//! Tests of the fixtures themselves, for the properties that other tests rely on.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::ca::{Ca, asn1};
use crate::certs;
use crate::database::Database;
use crate::pg::{self, Server};
use crate::pki::{Cert, Strings};
use crate::seal::{Key, is_canonical, key, keys, open, seal, seal_with};
use crate::seed::{self, DELEGATION, Org};

#[tokio::test]
async fn every_test_has_a_database_of_its_own() {
    let (a, b) = (Database::new().await, Database::new().await);
    a.client()
        .await
        .batch_execute("CREATE TABLE only_here ()")
        .await
        .unwrap();
    assert!(
        b.client()
            .await
            .batch_execute("TABLE only_here")
            .await
            .is_err()
    );
    assert!(
        pg::server_log().contains("only_here"),
        "the failed statement is in the server's log"
    );
    let over_tcp = a.url().parse().unwrap();
    let client = crate::database::connect(&over_tcp).await.unwrap();
    let row = client
        .query_one("SELECT current_user::text, current_database()::text", &[])
        .await
        .unwrap();
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, &str>(1)),
        (pg::OWNER, a.name())
    );
}

#[tokio::test]
async fn a_private_server_can_crash_and_restart_and_supports_tls() {
    let server = Server::options()
        .tls(certs::server())
        .tls_only()
        .setting("log_statement", "all")
        .start();
    let database = Database::on(&server).await;
    let client = database.client().await;
    client
        .batch_execute("CREATE TABLE kept AS SELECT 1")
        .await
        .unwrap();
    server.stop_immediate();
    assert!(client.batch_execute("TABLE kept").await.is_err());
    server.restart();
    database
        .client()
        .await
        .batch_execute("TABLE kept")
        .await
        .unwrap();
    assert!(
        crate::database::connect(&database.url().parse().unwrap())
            .await
            .is_err(),
        "no TCP without TLS"
    );
    assert!(server.log().contains("statement: TABLE kept"));
}

#[test]
fn subjects_have_the_requested_string_type() {
    let types = [
        (Strings::Printable, "PRINTABLESTRING"),
        (Strings::Utf8, "UTF8STRING"),
        (Strings::T61, "T61STRING"),
        (Strings::Bmp, "BMPSTRING"),
        (Strings::Ia5, "IA5STRING"),
    ];
    for (strings, name) in types {
        let issuer = certs::admin_issuer_named("Issuing CA", strings);
        let leaf = certs::admin_cert().strings(strings).signed_by(&issuer);
        assert_eq!(
            asn1(&leaf.cert_chain).matches(name).count(),
            5,
            "issuer O, CN; subject O, OU, CN: {name}"
        );
    }
}

#[test]
fn certificates_have_the_properties_of_their_builder() {
    let text = |leaf: &crate::pki::Leaf| {
        crate::process::run(
            std::process::Command::new("openssl")
                .args(["x509", "-noout", "-text", "-nameopt", "oneline", "-in"])
                .arg(&leaf.cert_chain),
        )
    };
    let root = Ca::root("/CN=a root", Strings::Utf8);
    let odd = Cert::new("/")
        .san("URI:spiffe://a/b,c#$d")
        .san("IP:::1")
        .ca()
        .key_usage(None)
        .eku("clientAuth");
    let odd = text(&odd.signed_by(&root));
    for expected in [
        "Subject: \n",
        "URI:spiffe://a/b,c#$d",
        "IP Address:0:0:0:0:0:0:0:1",
        "CA:TRUE",
        "TLS Web Client",
    ] {
        assert!(odd.contains(expected), "{expected}: {odd}");
    }
    assert!(!odd.contains("X509v3 Key Usage"));
    let repeated = text(
        &Cert::new("/O=A/OU=one/OU=two/CN=x\\/y")
            .expired()
            .self_signed(),
    );
    assert!(
        repeated.contains("OU = one, OU = two, CN = x/y"),
        "{repeated}"
    );
    assert!(repeated.contains("Dec 31 00:00:00 2020"), "{repeated}");
    assert!(text(&Cert::new("/CN=x").not_yet_valid().signed_by(&root)).contains("2090"));
    let pem = |leaf: &crate::pki::Leaf| std::fs::read_to_string(&leaf.key).unwrap();
    assert!(pem(certs::admin()).starts_with("-----BEGIN PRIVATE KEY"));
    assert!(
        pem(&Cert::new("/CN=x").traditional_key().self_signed())
            .starts_with("-----BEGIN EC PRIVATE KEY")
    );
    assert!(
        pem(&Cert::new("/CN=x").rsa().traditional_key().self_signed())
            .starts_with("-----BEGIN RSA PRIVATE KEY")
    );
    let chain = std::fs::read_to_string(&certs::admin().cert_chain).unwrap();
    assert_eq!(
        chain.matches("BEGIN CERTIFICATE").count(),
        2,
        "the leaf and its issuer, not the root"
    );
}

#[test]
fn envelopes_open_under_their_key_only() {
    let text = seal("plaintext", "kv1");
    assert!(is_canonical(&text) && !is_canonical(&format!(" {text}")));
    assert_eq!(
        open(&text, &keys(&["kv1", "kv2"])).unwrap(),
        ("kv1".to_owned(), b"plaintext".to_vec())
    );
    assert!(open(&text, &keys(&["kv2"])).is_err());
    assert!(
        open(
            &seal_with("plaintext", "kv1", &key("kv2")),
            &keys(&["kv1", "kv2"])
        )
        .is_err()
    );
}

#[test]
fn envelopes_of_the_reference_product_open() {
    let vectors: Value = serde_json::from_str(include_str!("vectors/envelope_v1.json")).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let key = |value: &Value| Key::try_from(BASE64_STANDARD.decode(text(value)).unwrap()).unwrap();
    let keys = vectors["keys"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(id, value)| (id.clone(), key(value)))
        .collect();
    for vector in vectors["valid"].as_array().unwrap() {
        let (key_id, plaintext) = open(&text(&vector["envelope"]), &keys).unwrap();
        assert_eq!(
            (key_id, BASE64_STANDARD.encode(plaintext)),
            (text(&vector["key_id"]), text(&vector["plaintext_b64"]))
        );
    }
}

#[tokio::test]
async fn a_snapshot_shows_every_write() {
    let client = Database::migrated().await.client().await;
    seed::insert(
        &client,
        &[
            Org::under("b", "kv1"),
            Org::new("A").text(1, ""),
            Org::new("c").version("odd"),
        ],
    )
    .await;
    let before = seed::snapshot(&client).await;
    assert_eq!(before.keys().collect::<Vec<_>>(), ["A", "b", "c"]);
    assert_eq!(
        (
            before["A"].texts[1].as_deref(),
            before["c"].version.as_str()
        ),
        (Some(""), "odd")
    );
    assert_eq!(
        open(before["b"].texts[2].as_ref().unwrap(), &keys(&["kv1"]))
            .unwrap()
            .1,
        DELEGATION.as_bytes()
    );
    assert_eq!(
        before["b"].version_parts(),
        (7, UNIX_EPOCH + Duration::from_secs(1_700_000_000))
    );
    client
        .batch_execute("UPDATE tenants SET version = version WHERE organization_id = 'b'")
        .await
        .unwrap();
    let after = seed::snapshot(&client).await;
    assert_eq!((&before["A"], &before["c"]), (&after["A"], &after["c"]));
    assert_ne!(before["b"], after["b"]);
    seed::add_encryption_key_id(&client).await;
    Org::new("old")
        .encryption_key_id("kv0")
        .insert(&client)
        .await;
    let old = seed::snapshot(&client).await;
    assert_eq!(old["old"].encryption_key_id.as_deref(), Some("kv0"));
    assert_eq!(
        old["b"].others, after["b"].others,
        "the old column is not among the others"
    );
    seed::drop_encryption_key_id(&client).await;
}

#[test]
fn a_supervised_process_takes_signals_and_ends() {
    let script = "trap 'exit 7' TERM; while :; do sleep 0.01; done";
    let args = ["-c", script];
    let mut process = crate::process::Supervised::spawn("/bin/sh".as_ref(), args, "KILL", |_| {});
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(process.try_wait(), None);
    process.signal("TERM");
    assert_eq!(process.wait(Duration::from_secs(5)), 7);
}
