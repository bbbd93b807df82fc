//! Keys in environment variables, in the format of nico-api. The server reads them only if this is
//! enabled, and before the secrets file. A message names the variable of each error. The process
//! keeps no copy of a key.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::configuration::{accepted, refused};
use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::pg::PASSWORD;
use crate::process;
use crate::seal::{key, keys};
use crate::seed::one_under_kv1;
use crate::server::Server;
use crate::site::{BINARY, Site, quote};

const ON: &str = "CARBIDE_CREDENTIALS_ENV_ENABLED";
const KV1: &str = "CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY__ENCRYPTION_KEYS__KV1";
const KV2: &str = "CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY__ENCRYPTION_KEYS__kv2";
const OTHER_PREFIX: &str = "SITE__MACHINE_IDENTITY__ENCRYPTION_KEYS__kv2";

fn text(id: &str) -> String {
    BASE64_STANDARD.encode(key(id))
}

/// The usual site without a secrets file.
fn fileless(database: &Database) -> Site {
    Site::new(database).unset("rewrap.secrets_file")
}

/// Checks that the server opens the row under kv1 and seals it under kv2, with the usual keys of
/// the tests.
async fn assert_rewraps(site: Site) -> Server {
    let server = site.start().await;
    let report = run(&server, true).await;
    assert_eq!((report.rows_updated, report.rows_failed), (1, 0));
    leaks::assert_none(&server.log_text());
    server
}

fn warnings(server: &Server) -> String {
    let mut logs = server.logs();
    logs.retain(|line| line["level"] == "WARN");
    let texts: Vec<_> = logs
        .iter()
        .map(|line| line["message"].to_string())
        .collect();
    texts.join("\n")
}

#[tokio::test]
async fn keys_can_all_come_from_the_environment() {
    let database = one_under_kv1().await;
    let site = || {
        fileless(&database)
            .env(KV1, &text("kv1"))
            .env(KV2, &format!("\"{}\"", text("kv2")))
    };
    assert_rewraps(site().env(ON, "true")).await;
    assert_rewraps(site().set("rewrap.secrets_from_environment", "true")).await;
    let prefix = || site().env(ON, "true").env(OTHER_PREFIX, &text("kv2"));
    for site in [
        prefix().env("CARBIDE_CREDENTIALS_ENV_PREFIX", "SITE_"),
        prefix().set("rewrap.secrets_environment_prefix", "\"SITE__\""),
    ] {
        let exit = site.target("kv1").run_to_exit().await;
        assert_eq!(exit.code, 78);
        let words = "is not among the keys of the environment variables \
                     SITE__MACHINE_IDENTITY__ENCRYPTION_KEYS__<id> (it has \"kv2\")";
        assert!(exit.stderr.contains(words), "{}", exit.stderr);
    }
}

#[tokio::test]
async fn the_environment_is_read_only_where_it_is_switched_on() {
    let database = one_under_kv1().await;
    let site = || Site::new(&database).env(KV2, &text("another"));
    for site in [
        site(),
        site().env(ON, "false"),
        site()
            .set("rewrap.secrets_from_environment", "false")
            .env(ON, "true"),
    ] {
        let server = assert_rewraps(site).await;
        let warned = format!("environment variable {KV2} is not read");
        assert!(warnings(&server).contains(&warned), "{}", server.log_text());
    }
}

#[tokio::test]
async fn the_environment_wins_over_the_file_key_by_key() {
    let database = one_under_kv1().await;
    // kv1 comes from the file, kv2 from the environment. The kv2 of the file is not used.
    let mut others = keys(&["kv1", "kv2"]);
    others.insert("kv2".to_owned(), key("another"));
    let on = |site: Site| site.env(ON, "true").env(KV2, &text("kv2"));
    let server = assert_rewraps(on(Site::new(&database).keys(&others))).await;
    let log = server.log_text();
    let said = warnings(&server);
    assert!(
        said.contains("secrets.json: the first takes precedence, as in nico-api"),
        "{log}"
    );
    let kv2 = server.logs_with("key");
    let checks: Vec<_> = kv2.iter().filter(|line| line["key_id"] == "kv2").collect();
    assert_eq!(checks.len(), 1, "one key for an id: {log}");
    let check = checks[0]["key_check_value"].as_str().unwrap();
    let words = format!(r#"key \"kv2\" has key check value {check} in environment variable "#);
    assert!(said.contains(&words), "{log}");

    // The same bytes twice, or a file without keys, cause no warning.
    for file in [
        Site::new(&database),
        Site::new(&database)
            .secrets("secrets.json", r#"{"bmc": {}}"#)
            .env(KV1, &text("kv1")),
    ] {
        let server = assert_rewraps(on(file)).await;
        assert!(
            !warnings(&server).contains("environment"),
            "{}",
            server.log_text()
        );
    }
}

#[tokio::test]
async fn every_fault_names_its_variable() {
    let database = Database::migrated().await;
    let on = |site: Site| site.unset("rewrap.secrets_file").env(ON, "true");
    let words = [
        &format!("environment variable {KV1}: key \"kv1\" decodes to 29 bytes instead of 32"),
        &format!("environment variable {KV2}: key \"kv2\" is not standard base64"),
        "environment variable CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY: several keys in one",
    ];
    let said = refused(&database, &words, |site| {
        on(site)
            .env(KV1, &text("kv1")[4..])
            .env(KV2, PASSWORD)
            .env("CARBIDE_STATIC_CREDENTIAL__MACHINE_IDENTITY", PASSWORD)
    })
    .await;
    assert_eq!(said.lines().count(), words.len(), "{said}");

    let no_key = [
        "there is no key in the environment",
        "ENCRYPTION_KEYS__<id>",
    ];
    refused(&database, &no_key, on).await;
    let none_at_all = ["has no keys", "ENCRYPTION_KEYS__<id> is set"];
    refused(&database, &none_at_all, |site| {
        site.secrets("s", "{}").env(ON, "true")
    })
    .await;
    let switch = [
        &format!("environment variable {ON}: "),
        "must be true or false",
    ];
    refused(&database, &switch, |site| site.env(ON, "yes")).await;
    let case = ["key ids from environment variables are in lower case"];
    refused(&database, &case, |site| {
        on(site).env(KV1, &text("kv1")).target("KV1")
    })
    .await;
    // A named file must exist, even if the environment has all keys.
    let missing = ["[rewrap].secrets_file: ", "can't be read ("];
    refused(&database, &missing, |site| {
        site.missing_secrets()
            .env(ON, "true")
            .env(KV2, &text("kv2"))
    })
    .await;
    accepted(&database, |site| on(site).env(KV2, &text("kv2"))).await;
}

/// The commands run up to the bind, which shows that the server accepted the keys.
#[tokio::test]
async fn the_documented_commands_do_it() {
    let database = Database::migrated().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = quote(&taken.local_addr().unwrap().to_string());
    let site = fileless(&database).set("rewrap.listen", address);
    site.write("serve");
    for id in ["kv1", "kv2"] {
        std::fs::write(site.dir().join(format!("{id}.base64")), text(id)).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut print = Command::new(root.join("scripts/doc_commands.sh"));
    let commands =
        process::run(print.args(["reference/configuration", "Keys in environment variables"]));
    let path = format!(
        "{}:{}",
        Path::new(BINARY).parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut bash = Command::new("bash");
    bash.args(["-euc", &commands]).current_dir(site.dir());
    let output = bash.env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("can't listen on"), "{commands}\n{said}");
    leaks::assert_none(&said);
}

/// The process stack has a copy of the environment for `/proc/PID/environ`. No other memory may
/// contain a variable. Without permission to read the memory, the test only shows that the process
/// denies access.
#[tokio::test]
async fn no_copy_of_a_variable_is_kept() {
    let database = one_under_kv1().await;
    let site = fileless(&database).env(ON, "true");
    let site = site.env(KV1, &text("kv1")).env(KV2, &text("kv2"));
    let server = assert_rewraps(site).await;
    let process = format!("/proc/{}", server.pid());
    let memory = match std::fs::File::open(format!("{process}/mem")) {
        Ok(memory) => memory,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
            return;
        }
    };
    let maps = std::fs::read_to_string(format!("{process}/maps")).unwrap();
    let (mut on_the_stack, mut searched) = (0, 0_usize);
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let address = |hex| u64::from_str_radix(hex, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(address(end) - address(start)).unwrap()];
        // A region can disappear while this function reads it.
        let read = memory.read_at(&mut bytes, address(start)).unwrap_or(0);
        searched += read;
        for id in ["kv1", "kv2"] {
            let needle = text(id);
            let found = bytes[..read]
                .windows(needle.len())
                .filter(|window| *window == needle.as_bytes())
                .count();
            if line.contains("[stack]") {
                on_the_stack += found;
            } else {
                assert_eq!(found, 0, "the text of {id} is in {line}");
            }
        }
    }
    assert_eq!(on_the_stack, 2, "so the search finds what is there");
    assert!(searched > 1 << 20);
}
