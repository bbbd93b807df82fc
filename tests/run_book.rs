//! Carries out the run-book and the commands of the README, as an operator does.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::certs;
use crate::database::Database;
use crate::documents::read;
use crate::leaks;
use crate::process;
use crate::seal::keys;
use crate::seed::Org;
use crate::server::Server;
use crate::site::{BINARY, Site};

/// The sections of the run-book that have commands, in order.
pub(crate) const RUN_BOOK: [&str; 7] = [
    "Before you start",
    "1. Make a key",
    "4. Prove that the bytes are equal",
    "5. Dry run",
    "6. Apply",
    "7. Wait for the verdict",
    "With the tools of nico-api",
];

/// An operator's directory: certificates with the file names of the page, and nico-rewrap and
/// grpcurl in the PATH.
pub(crate) struct Operator {
    pub(crate) dir: std::path::PathBuf,
}

impl Operator {
    pub(crate) fn new() -> Self {
        let dir = process::lasting_dir("operator");
        let admin = certs::admin();
        let files = [
            ("ca.pem", &certs::root_ca().cert),
            ("admin.pem", &admin.cert_chain),
            ("admin.key", &admin.key),
        ];
        for (name, file) in files {
            fs::copy(file, dir.join(name)).unwrap();
        }
        let bin = dir.join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(BINARY, bin.join("nico-rewrap")).unwrap();
        if let Some(grpcurl) = std::env::var_os("GRPCURL") {
            std::os::unix::fs::symlink(grpcurl, bin.join("grpcurl")).unwrap();
        }
        Self { dir }
    }

    /// Runs the commands of these sections in one shell, with the address of `server` in place of
    /// the page's address.
    fn run(&self, sections: &[&str], server: &Server) -> Result<String, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/doc_commands.sh");
        let mut commands = String::new();
        for section in sections {
            let mut print = Command::new(&script);
            commands += &process::run(print.args(["rotate", section]));
        }
        self.run_text(&commands, server).map(|(_, said)| said)
    }

    /// The same for the text of a page. Returns standard output and standard error.
    pub(crate) fn run_text(
        &self,
        commands: &str,
        server: &Server,
    ) -> Result<(String, String), String> {
        let commands = commands.replace("localhost:1179", &server.grpc);
        let path = std::env::var("PATH").unwrap();
        let mut bash = Command::new("bash");
        bash.args(["-euc", &commands]).current_dir(&self.dir);
        bash.env("PATH", format!("{}:{path}", self.dir.join("bin").display()));
        let output = bash.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        leaks::assert_none(&said);
        if output.status.success() {
            Ok((String::from_utf8_lossy(&output.stdout).into_owned(), said))
        } else {
            Err(said)
        }
    }

    pub(crate) fn report(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.dir.join(name)).unwrap()).unwrap()
    }
}

/// A site after step 3: organizations under the old key, and one that nico-api has written under
/// the new key.
pub(crate) async fn after_step_3() -> Database {
    let database = Database::migrated().await;
    let client = database.client().await;
    for id in ["acme", "other"] {
        Org::under(id, "kv1").insert(&client).await;
    }
    Org::under("test-organization", "kv2").insert(&client).await;
    database
}

/// A site whose server takes a census every second and lets a key soak for a moment.
fn site(database: &Database) -> Site {
    Site::new(database)
        .set("rewrap.census_interval", "\"1s\"")
        .set("rewrap.soak", "\"1ms\"")
}

/// Repeats the commands of sections until they succeed.
async fn until_ok(operator: &Operator, sections: &[&str], server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(said) = operator.run(sections, server) {
        assert!(Instant::now() < deadline, "{said}\n{}", server.log_text());
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn the_run_book_rotates_the_key() {
    let database = after_step_3().await;
    let server = site(&database).start().await;
    let operator = Operator::new();
    let [start, make, proof, dry_run, apply, verdict, forge] = RUN_BOOK;
    let until_apply = [start, make, proof, dry_run, apply];
    let said = operator.run(&until_apply, &server).unwrap();
    assert!(said.contains("key check value"), "{said}");
    let key = fs::read_to_string(operator.dir.join("new-key.txt")).unwrap();
    assert!(key.starts_with("\"kv2\": \""), "{}", key.len());
    let report = |name: &str| operator.report(name)["report"].clone();
    assert_eq!(report("proof.json")["secretsOnTarget"], "2");
    assert_eq!(report("dry-run.json")["rowsUpdated"], "2");
    assert_eq!(report("apply.json")["rowsUpdated"], "2");
    until_ok(&operator, &[start, verdict], &server).await;
    operator.run(&[start, forge], &server).unwrap();
    let report = operator.report("forge.json");
    assert_eq!(report["rowsSkippedAllOnTarget"], 3);
}

#[tokio::test]
async fn the_run_book_stops_at_a_problem() {
    let database = after_step_3().await;
    let operator = Operator::new();
    let [start, _, proof, dry_run, apply, verdict, _] = RUN_BOOK;

    // The key under the new id has other bytes than in nico-api.
    let mut other_bytes = keys(&["kv1", "kv2"]);
    other_bytes.insert("kv2".to_owned(), crate::seal::key("other bytes"));
    let server = Site::new(&database).keys(&other_bytes).start().await;
    operator.run(&[start, proof], &server).unwrap_err();
    let group = &operator.report("proof.json")["failureGroups"][0];
    assert_eq!(group["reason"], "NOT_AUTHENTIC");
    assert_eq!(group["keyId"], "kv2");

    // There was no apply yet.
    let server = site(&database).start().await;
    operator.run(&[start, proof, dry_run], &server).unwrap();
    operator.run(&[start, verdict], &server).unwrap_err();

    // A key is missing.
    let server = Site::new(&database).keys(&keys(&["kv2"])).start().await;
    for section in [dry_run, apply] {
        operator.run(&[start, section], &server).unwrap_err();
    }
    let group = &operator.report("apply.json")["failureGroups"][0];
    assert_eq!(group["reason"], "KEY_NOT_IN_SECRETS");

    // A server with the old target key.
    let server = Site::new(&database).target("kv1").start().await;
    let said = operator.run(&[start, dry_run], &server).unwrap_err();
    assert!(
        said.contains("UNEXPECTED_TARGET_KEY") || said.contains("the call expects"),
        "{said}"
    );
}

#[tokio::test]
async fn the_commands_of_the_readme_rotate_the_key() {
    let database = after_step_3().await;
    let server = Site::new(&database).start().await;
    let operator = Operator::new();
    let systemctl = operator.dir.join("bin/systemctl");
    fs::write(&systemctl, "#!/bin/sh\n").unwrap();
    process::run(Command::new("chmod").arg("+x").arg(systemctl));
    let readme = read("README.md");
    let section = readme.split("\n## Rotate the key\n").nth(1).unwrap();
    let block = section.split("```sh\n").nth(1).unwrap();
    let commands = block.split("```").next().unwrap();
    let (answers, said) = operator.run_text(commands, &server).unwrap();
    assert!(said.contains("key check value"), "{said}");
    let answers = serde_json::Deserializer::from_str(&answers).into_iter();
    let answers: Vec<Value> = answers.map(Result::unwrap).collect();
    let ended = answers
        .iter()
        .filter(|answer| answer["state"] == "RUN_STATE_FINISHED");
    let reports: Vec<_> = ended.map(|run| (&run["kind"], &run["report"])).collect();
    let [(dry_run, would), (apply, did)] = reports[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(
        (dry_run, apply),
        (&json!("RUN_KIND_DRY_RUN"), &json!("RUN_KIND_APPLY"))
    );
    assert_eq!(
        (&would["rowsUpdated"], &did["rowsUpdated"]),
        (&json!("2"), &json!("2"))
    );
    assert_eq!(would["secretsOnTarget"], "2");
    let keys = answers.last().unwrap();
    assert_eq!(keys["keys"][0]["keyId"], "kv1", "{keys}");
}
