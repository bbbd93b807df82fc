//! Carries out the run-book and the commands of the README, as an operator does.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::certs;
use crate::database::Database;
use crate::documents::read;
use crate::leaks;
use crate::process;
use crate::rewrap_client::ask;
use crate::seal::keys;
use crate::seed::{self, Org};
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
    "The raw calls",
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
    fn run(&self, sections: &[&str], server: &Server) -> Result<(String, String), String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/doc_commands.sh");
        let mut commands = String::new();
        for section in sections {
            let mut print = Command::new(&script);
            commands += &process::run(print.args(["rotate", section]));
        }
        // The test does not wait for a verdict that does not come.
        let commands = commands.replace("--wait", "--wait --timeout 20s");
        self.run_text(&commands, server)
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
    seed::set_public_keys(&client).await;
    database
}

/// A site whose server takes a census every second and lets a key soak for a moment.
fn site(database: &Database) -> Site {
    Site::new(database)
        .set("rewrap.census_interval", "\"1s\"")
        .set("rewrap.soak", "\"1ms\"")
}

#[tokio::test]
async fn the_run_book_rotates_the_key() {
    let database = after_step_3().await;
    let server = site(&database).start().await;
    let operator = Operator::new();
    let [start, make, proof, dry_run, apply, verdict, raw] = RUN_BOOK;
    let until_apply = [start, make, proof, dry_run, apply];
    let (screen, said) = operator.run(&until_apply, &server).unwrap();
    assert!(said.contains("key check value"), "{said}");
    let key = fs::read_to_string(operator.dir.join("new-key.txt")).unwrap();
    assert!(key.starts_with("\"kv2\": \""), "{}", key.len());
    for line in [
        "✓ same bytes: 2 secrets under kv2 open",
        "3 examined: 2 would be re-wrapped, 1 on target, 0 failed",
        "3 examined: 2 re-wrapped, 1 on target, 0 failed",
    ] {
        assert!(screen.contains(line), "{line}: {screen}");
    }
    let (screen, _) = operator.run(&[start, verdict], &server).unwrap();
    assert!(screen.contains("Yes: kv1 is REMOVABLE"), "{screen}");
    operator.run(&[raw], &server).unwrap();
    let report = operator.report("forge.json");
    assert_eq!(report["rowsSkippedAllOnTarget"], 3);
}

#[tokio::test]
async fn the_run_book_stops_at_a_problem() {
    let database = after_step_3().await;
    let operator = Operator::new();
    let [start, _, proof, dry_run, apply, verdict, _] = RUN_BOOK;
    let check = operator.dir.join("check.txt");
    let checked = || fs::read_to_string(&check).unwrap();

    // The key under the new id has other bytes than in nico-api.
    let mut other_bytes = keys(&["kv1", "kv2"]);
    other_bytes.insert("kv2".to_owned(), crate::seal::key("other bytes"));
    let server = Site::new(&database).keys(&other_bytes).start().await;
    operator.run(&[start, proof], &server).unwrap_err();
    assert!(checked().contains("NOT_AUTHENTIC"), "{}", checked());
    assert!(checked().contains("under kv2 cannot be opened"));

    // nico-api has not written under the new key.
    let without = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&without.client().await)
        .await;
    let server = Site::new(&without).start().await;
    operator.run(&[start, proof], &server).unwrap_err();
    assert!(checked().contains("! no secret is under kv2 yet"));

    // There was no apply yet.
    let server = site(&database).start().await;
    operator.run(&[start, proof, dry_run], &server).unwrap();
    let said = operator.run(&[start, verdict], &server).unwrap_err();
    assert!(said.contains("kv1: IN_USE"), "{said}");

    // A key is missing.
    let server = Site::new(&database).keys(&keys(&["kv2"])).start().await;
    for section in [dry_run, apply] {
        operator.run(&[start, section], &server).unwrap_err();
    }
    let runs = ask(&server, "ListRuns", json!({})).await;
    let group = &runs["runs"][0]["failureGroups"][0];
    assert_eq!(group["reason"], "KEY_NOT_IN_SECRETS", "{runs}");

    // A server with the old target key.
    let server = Site::new(&database).target("kv1").start().await;
    let said = operator.run(&[start, dry_run], &server).unwrap_err();
    assert!(said.contains("the call expects"), "{said}");
}

#[tokio::test]
async fn the_commands_of_the_readme_rotate_the_key() {
    let database = after_step_3().await;
    let server = site(&database).start().await;
    let operator = Operator::new();
    let systemctl = operator.dir.join("bin/systemctl");
    fs::write(&systemctl, "#!/bin/sh\n").unwrap();
    process::run(Command::new("chmod").arg("+x").arg(systemctl));
    let readme = read("README.md");
    let section = readme.split("\n## Rotate the key\n").nth(1).unwrap();
    let block = section.split("```sh\n").nth(1).unwrap();
    let commands = block.split("```").next().unwrap();
    // A site has a soak of an hour.
    let commands = commands.replace("--wait", "--wait --timeout 20s");
    let (screen, said) = operator.run_text(&commands, &server).unwrap();
    assert!(said.contains("key check value"), "{said}");
    for line in [
        "✓ same bytes: 2 secrets under kv2 open",
        "3 examined: 2 re-wrapped, 1 on target, 0 failed",
        "Yes: kv1 is REMOVABLE",
    ] {
        assert!(screen.contains(line), "{line}: {screen}");
    }
}
