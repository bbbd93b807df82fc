//! PEM files with an unreadable block. The server ignores no block, at the start and at a reload.
//! If it ignored a revocation list, a revoked administrator could connect.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::ca::Ca;
use crate::certs::{self, admin_root, root_ca, server_cert};
use crate::configuration::{accepted, refused};
use crate::crl::Crl;
use crate::database::Database;
use crate::grpcurl::Call;
use crate::handshake::handshake;
use crate::pki::{Cert, Leaf, Strings};
use crate::process::{lasting_dir, run};
use crate::reload::{Files, disabled, until, until_reloaded};
use crate::server::Server;
use crate::site::{Site, path};
use crate::transport::assert_refused;

/// A name, a function that damages the second of two blocks, and the expected message.
type Damage = (&'static str, fn(&str) -> String, &'static str);

const DAMAGES: [Damage; 9] = [
    ("joined", |pem| pem.to_owned(), "put a line break before it"),
    (
        "marked",
        |pem| format!("\n\u{feff}{pem}"),
        "put a line break before it",
    ),
    (
        "indented",
        |pem| format!("\n  {}", pem.replace('\n', "\n  ")),
        "remove the white space",
    ),
    (
        "commented",
        |pem| format!("\n# {pem}"),
        "put a line break before it",
    ),
    (
        "four dashes",
        |pem| format!("\n{}", &pem[1..]),
        "no BEGIN line",
    ),
    (
        "lower case",
        |pem| format!("\n{}", pem.to_lowercase()),
        "looks like part of a block",
    ),
    (
        "half",
        |pem| format!("\n{}", &pem[..pem.len() / 2]),
        "has no END line",
    ),
    (
        "wide",
        |pem| format!("\n{}", pem.replace('\n', "\0\n")),
        "NUL bytes",
    ),
    (
        "of another label",
        |pem| {
            format!(
                "\n{}",
                pem.replace("BEGIN ", "BEGIN OLD ")
                    .replace("END ", "END OLD ")
            )
        },
        "the label of this block is unknown",
    ),
];

/// Labels that only certificates have.
const LABELS: [(&str, &str); 3] = [
    ("TRUSTED CERTIFICATE", "convert it with openssl x509"),
    ("X509 CERTIFICATE", "change the label"),
    ("PKCS7", "convert it with openssl pkcs7"),
];

fn text(file: &PathBuf) -> String {
    fs::read_to_string(file).unwrap()
}

fn written(content: &str) -> PathBuf {
    let file = lasting_dir("pem").join("odd.pem");
    fs::write(&file, content).unwrap();
    file
}

/// Writes two blocks, the second of them damaged.
fn damaged(first: &str, second: &str, damage: fn(&str) -> String) -> PathBuf {
    written(&(first.trim_end().to_owned() + &damage(second)))
}

#[tokio::test]
async fn no_block_of_a_file_is_ignored() {
    let database = Database::migrated().await;
    let ca = text(&root_ca().cert);
    let other = text(&certs::other_ca().cert);
    let admin = text(&admin_root().cert);
    let server = certs::server();
    let list = text(&Crl::of(root_ca()).issue());
    let url = database.url();
    let root =
        |file: &PathBuf| format!("\"{url}?sslmode=verify-ca&sslrootcert={}\"", file.display());
    let list_of = |file: &PathBuf| format!("[{}]", path(file));
    let value = |file: &PathBuf| path(file);
    type Value<'a> = &'a dyn Fn(&PathBuf) -> String;
    let settings: [(&str, &str, &str, &str, Value<'_>); 6] = [
        (
            "tls.identity_pemfile_path",
            "[tls].identity_pemfile_path: ",
            &text(&server.cert_chain),
            &ca,
            &value,
        ),
        (
            "tls.identity_keyfile_path",
            "[tls].identity_keyfile_path: ",
            &text(&server.key),
            &ca,
            &value,
        ),
        (
            "tls.root_cafile_path",
            "[tls].root_cafile_path: ",
            &ca,
            &other,
            &value,
        ),
        (
            "tls.admin_root_cafile_path",
            "[tls].admin_root_cafile_path: ",
            &admin,
            &other,
            &value,
        ),
        (
            "rewrap.crl_files",
            "[rewrap].crl_files: ",
            &list,
            &list,
            &list_of,
        ),
        (
            "database_url",
            "database_url: sslrootcert: ",
            &ca,
            &other,
            &root,
        ),
    ];
    for (key, spelled, first, second, value) in settings {
        for (name, damage, words) in DAMAGES {
            let file = damaged(first, second, damage);
            let what = format!("{key}, {name}");
            let stderr = refused(&database, &[spelled, "odd.pem line ", words], |site| {
                site.set(key, value(&file))
            })
            .await;
            assert_eq!(stderr.trim().lines().count(), 1, "{what}: {stderr}");
        }
        // Text outside of blocks has no effect.
        let comment = "\n\nsubject=CN = x -----\n";
        let commented = written(&(comment.to_owned() + first + comment + second + comment));
        accepted(&database, |site| site.set(key, value(&commented))).await;
        let windows = written(&(first.to_owned() + second).replace('\n', "\r\n"));
        accepted(&database, |site| site.set(key, value(&windows))).await;
        if key == "rewrap.crl_files" {
            continue;
        }
        for (label, words) in LABELS {
            let renamed = second.replace("CERTIFICATE", label);
            let file = written(&(first.to_owned() + &renamed));
            refused(&database, &[spelled, "odd.pem line ", words], |site| {
                site.set(key, value(&file))
            })
            .await;
        }
    }
    // A list in a bundle would have no effect.
    let with_list = written(&(ca + &list));
    let words = "is a certificate revocation list, which has no effect here";
    refused(&database, &["[tls].root_cafile_path: ", words], |site| {
        site.set("tls.root_cafile_path", path(&with_list))
    })
    .await;
}

/// An administrator whose certificate is on today's list but not on yesterday's, which comes first
/// in the file.
struct Revoked {
    leaf: Leaf,
    yesterday: String,
    today: String,
}

fn revoked() -> Revoked {
    let leaf = certs::admin_cert().signed_by(admin_root());
    let today = Crl::of(admin_root()).revokes(&leaf.key);
    Revoked {
        yesterday: text(&Crl::of(admin_root()).old().issue()),
        today: text(&today.issue()),
        leaf,
    }
}

fn with_list(file: &PathBuf, policy: &str) -> Site {
    disabled()
        .set("rewrap.crl_files", format!("[{}]", path(file)))
        .set("rewrap.crl_policy", format!("\"{policy}\""))
}

async fn is_revoked(server: &Server, leaf: &Leaf) -> bool {
    let refused = handshake(server, Some(leaf), &[]).await.is_err();
    if refused {
        assert_refused(server, "revoked", 1).await;
    }
    refused
}

#[tokio::test]
async fn an_older_list_before_a_newer_one_hides_no_revocation() {
    let database = Database::migrated().await;
    let Revoked {
        leaf,
        yesterday,
        today,
    } = revoked();
    let same_second = Crl::of(admin_root()).revokes(&leaf.key).number(2).issue();
    let same_second = text(&Crl::of(admin_root()).issue()) + &text(&same_second);
    for policy in ["require_valid", "allow_unknown"] {
        for both in [
            yesterday.clone() + &today,
            today.clone() + &yesterday,
            same_second.clone(),
        ] {
            let server = with_list(&written(&both), policy).start().await;
            assert!(is_revoked(&server, &leaf).await, "{policy}");
        }
        for (_, damage, words) in DAMAGES {
            let file = damaged(&yesterday, &today, damage);
            refused(
                &database,
                &["[rewrap].crl_files: ", "odd.pem line ", words],
                |site| {
                    site.set("rewrap.crl_files", format!("[{}]", path(&file)))
                        .set("rewrap.crl_policy", format!("\"{policy}\""))
                },
            )
            .await;
        }
    }
}

/// Two lists of one CA with the same age. Only one of them revokes the client.
#[tokio::test]
async fn two_lists_of_the_same_age_are_refused() {
    let database = Database::migrated().await;
    let leaf = certs::admin_cert().signed_by(admin_root());
    let one = text(&Crl::of(admin_root()).issue());
    let other = text(&Crl::of(admin_root()).revokes(&leaf.key).issue());
    let both = written(&(one.clone() + &other));
    let words =
        "has two different lists of O=Acme, CN=Acme Corporate Root with the same thisUpdate";
    refused(&database, &["[rewrap].crl_files: ", words], |site| {
        site.set("rewrap.crl_files", format!("[{}]", path(&both)))
    })
    .await;
    let twice = written(&(other.clone() + &other));
    let server = with_list(&twice, "allow_unknown").start().await;
    assert!(is_revoked(&server, &leaf).await);
}

#[tokio::test]
async fn a_reload_of_a_damaged_list_fails_and_is_logged() {
    let files = Files::new();
    let Revoked {
        leaf,
        yesterday,
        today,
    } = revoked();
    let before = Crl::of(admin_root()).issue();
    files.install("crl.pem", &before);
    let server = files.site(disabled()).start().await;
    let counted = |message: &str, setting: &str, field: &str| {
        let lines = server.logs_with(message);
        let of = lines.iter().filter(|line| line["setting"] == setting);
        of.map(|line| line[field].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let read = "TLS file read";
    assert_eq!(counted(read, "rewrap.crl_files", "revocation_lists"), [1]);
    assert_eq!(counted(read, "tls.root_cafile_path", "certificates"), [1]);
    assert_eq!(counted(read, "tls.identity_keyfile_path", "keys"), [1]);
    for (failures, (name, damage, words)) in (1_u8..).zip(DAMAGES) {
        let both = damaged(&yesterday, &today, damage);
        files.install("crl.pem", &both);
        until_reloaded(&server, "failure", failures.into()).await;
        until(&server, "nico_rewrap_tls_reload_failing", &[], 1.0).await;
        let message = "TLS files not reloaded: the files that were loaded before stay in use";
        let told = server.wait_logs(message, failures.into()).await;
        let error = told.last().unwrap()["error"].as_str().unwrap();
        assert!(
            error.contains("crl.pem line ") && error.contains(words),
            "{name}: {error}"
        );
        files.install("crl.pem", &before);
        until(&server, "nico_rewrap_tls_reload_failing", &[], 0.0).await;
    }
    files.write("crl.pem", (yesterday + &today).as_bytes());
    until_reloaded(&server, "success", 1.0).await;
    until(&server, "nico_rewrap_tls_reload_failing", &[], 0.0).await;
    assert!(is_revoked(&server, &leaf).await);
    server.wait_logs(read, 10).await;
    assert_eq!(
        counted(read, "rewrap.crl_files", "revocation_lists"),
        [1, 2]
    );
    let bundles = counted(read, "tls.root_cafile_path", "certificates").len();
    assert_eq!(bundles, 2, "every file is told of again");
}

/// The names of these CAs exceed the 64 KiB that a handshake can list.
#[tokio::test]
async fn a_bundle_of_hundreds_of_cas_refuses_no_client() {
    let subject = format!("/O={}/OU={}/CN=many", "o".repeat(60), "u".repeat(60));
    let many = text(&Ca::root(&subject, Strings::Utf8).cert).repeat(600);
    let bundle = written(&(many + &text(&root_ca().cert)));
    let server = disabled()
        .set("tls.root_cafile_path", path(bundle))
        .start()
        .await;
    let leaf = certs::service("nico-api");
    for version in ["-tls1_2", "-tls1_3"] {
        let session = handshake(&server, Some(&leaf), &["-alpn", "h2", version])
            .await
            .unwrap();
        assert!(
            session.contains("No client certificate CA names sent"),
            "{session}"
        );
    }
    Call::new(&server, &leaf).verb(&["list"]).await.unwrap();
}

#[tokio::test]
async fn errors_distinguish_the_kinds_of_key_files() {
    let database = Database::migrated().await;
    let leaf = server_cert().signed_by(root_ca());
    let openssl = |args: &str| {
        let mut command = std::process::Command::new("openssl");
        let dir = leaf.key.parent().unwrap();
        run(command.args(args.split(' ')).current_dir(dir))
    };
    let key = text(&leaf.key);
    let parameters = openssl("ecparam -name prime256v1");
    let sec1 = openssl("ec -in key.pem");
    let dsa = "-----BEGIN DSA PRIVATE KEY-----\nAAAA\n-----END DSA PRIVATE KEY-----\n";
    let encrypted = "line 1: the private key is encrypted";
    for (content, words) in [
        (
            openssl("pkcs8 -topk8 -in key.pem -passout pass:x"),
            encrypted,
        ),
        (openssl("ec -in key.pem -aes128 -passout pass:x"), encrypted),
        (
            dsa.to_owned(),
            "line 1: this kind of private key is not supported",
        ),
        (
            openssl("ec -in key.pem -param_enc explicit"),
            "openssl ec -in FILE -param_enc named_curve",
        ),
        (
            openssl("pkey -in key.pem -pubout"),
            "holds no PEM private key",
        ),
        (
            key.clone() + &text(&certs::admin().key),
            "holds several private keys (on lines 1 and 6): leave only one",
        ),
        (
            text(&certs::admin().key),
            "is not the key of the certificate in ",
        ),
    ] {
        let file = written(&content);
        let words = ["[tls].identity_keyfile_path: ", words];
        refused(&database, &words, |site| {
            site.set("tls.identity_pemfile_path", path(&leaf.cert_chain))
                .set("tls.identity_keyfile_path", path(&file))
        })
        .await;
    }
    for good in [parameters + &sec1, key.clone() + &text(&leaf.cert_chain)] {
        let file = written(&good);
        accepted(&database, |site| {
            site.set("tls.identity_pemfile_path", path(&leaf.cert_chain))
                .set("tls.identity_keyfile_path", path(&file))
        })
        .await;
    }
}

#[tokio::test]
async fn the_error_about_a_chain_in_the_wrong_order_does_not_mention_the_key() {
    let database = Database::migrated().await;
    let intermediate = root_ca().intermediate("/O=NICo/CN=issuing", Strings::Utf8);
    let leaf = server_cert().signed_by(&intermediate);
    let own = text(&leaf.key.with_file_name("cert.pem"));
    let lines = intermediate.chain.lines().count();
    let shuffled = written(&(intermediate.chain.clone() + &own));
    let place = format!(
        "odd.pem line {}: the certificate of CN=nico-rewrap",
        lines + 1
    );
    let words = [
        "[tls].identity_pemfile_path: ",
        &place,
        "belongs to the private key, but is not the first",
    ];
    refused(&database, &words, |site| {
        site.set("tls.identity_pemfile_path", path(&shuffled))
            .set("tls.identity_keyfile_path", path(&leaf.key))
    })
    .await;
}

#[tokio::test]
async fn an_error_names_a_p_521_server_key() {
    let database = Database::migrated().await;
    let leaf = server_cert().p521().signed_by(root_ca());
    let words = [
        "[tls].identity_pemfile_path: ",
        "line 1: the certificate of CN=nico-rewrap has a key of the kind P-521",
    ];
    refused(&database, &words, |site| {
        site.set("tls.identity_pemfile_path", path(&leaf.cert_chain))
            .set("tls.identity_keyfile_path", path(&leaf.key))
    })
    .await;
}

/// The crypto library does not support ECDSA with SHA-512, but that of nico-api does.
#[tokio::test]
async fn ecdsa_with_sha_512_is_logged_by_name_and_counted() {
    let database = Database::migrated().await;
    let list = Crl::of(root_ca()).sha512().issue();
    let words = [
        "[rewrap].crl_files: ",
        "is signed with ECDSA with SHA-512, which is not supported",
    ];
    refused(&database, &words, |site| {
        site.set("rewrap.crl_files", format!("[{}]", path(&list)))
    })
    .await;
    // The signature of the CA certificate itself is not checked.
    let root = Cert::new("/O=Acme/CN=of SHA-512").ca().sha512();
    let root = root.key_usage(Some("critical,keyCertSign")).self_signed();
    let ca = Ca {
        cert: root.cert_chain.clone(),
        key: root.key,
        chain: String::new(),
    };
    // With several CAs of the same name, rustls reports another error.
    let twins =
        [(), ()].map(|()| text(&Ca::root("/O=Acme/CN=of SHA-512", Strings::Printable).cert));
    let bundle = written(&(twins.concat() + &text(&ca.cert)));
    let server = disabled()
        .set("tls.root_cafile_path", path(bundle))
        .start()
        .await;
    let good = certs::admin_cert().signed_by(&ca);
    assert!(handshake(&server, Some(&good), &[]).await.is_ok());
    let bad = certs::admin_cert().sha512().signed_by(&ca);
    assert!(handshake(&server, Some(&bad), &[]).await.is_err());
    assert_refused(&server, "unsupported_signature", 1).await;
    let told = server.wait_log("TLS handshake refused").await;
    let error = told["error"].as_str().unwrap();
    assert!(
        error.contains("is signed with ECDSA with SHA-512, which is not supported"),
        "{error}"
    );
}

/// The server accepts the file, as nico-api accepts such a CA.
#[tokio::test]
async fn warnings_about_unusual_certificates_give_line_and_subject() {
    let usage = || Cert::new("/O=Acme/CN=odd").key_usage(Some("critical,keyCertSign"));
    let lines = text(&root_ca().cert).lines().count();
    for (odd, words) in [
        (usage().p521(), "has a key of the kind P-521"),
        (usage().expired(), "has expired at 2020-12-31T00:00:00Z"),
    ] {
        let odd = text(&odd.ca().self_signed().cert_chain);
        let bundle = written(&(text(&root_ca().cert) + &odd));
        let site = disabled().set("tls.root_cafile_path", path(bundle));
        let server = site.start().await;
        let warning = warning_of(&server, "tls.root_cafile_path").await;
        assert!(warning["message"].as_str().unwrap().contains(words));
        assert_eq!(warning["line"], lines + 1);
        assert_eq!(warning["subject"], "O=Acme, CN=odd");
    }
    let files = Files::new();
    let chain = text(&certs::server().cert_chain) + &text(&certs::other_ca().cert);
    files.write("server.pem", chain.as_bytes());
    let server = files.site(disabled()).start().await;
    let warning = warning_of(&server, "tls.identity_pemfile_path").await;
    assert_eq!(warning["subject"], "O=Elsewhere, CN=Other Root");
}

/// Waits for a warning about a setting.
async fn warning_of(server: &Server, setting: &str) -> serde_json::Value {
    let of = |line: &serde_json::Value| line["level"] == "WARN" && line["setting"] == setting;
    for _ in 0..1000 {
        if let Some(warning) = server.logs().into_iter().find(of) {
            return warning;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no warning about {setting}: {}", server.log_text());
}
