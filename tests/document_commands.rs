//! The run-book and the installation pages claim that tests run their commands. This module checks
//! that: a script or a test runs every section with commands, and the tests here carry out the
//! run-book.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::certs;
use crate::database::Database;
use crate::kubelet::rendered;
use crate::leaks;
use crate::process;
use crate::seal::keys;
use crate::seed::Org;
use crate::server::Server;
use crate::site::{BINARY, Site};

const PAGES: [&str; 8] = [
    "install/compose",
    "install/debian",
    "install/kubernetes",
    "install/postgres",
    "install/vault",
    "reference/configuration",
    "reference/service",
    "rotate",
];

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The text of all scripts and tests that print a section's commands in order to run them.
fn runners() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    for folder in ["scripts", "tests"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.extension().and_then(|kind| kind.to_str());
            if matches!(kind, Some("sh" | "rs")) && !path.ends_with("document_commands.rs") {
                text += &read(path);
            }
        }
    }
    text.replace(".sh\" ", ".sh ")
}

/// Whether CI calls this target, or a target that depends on it.
fn is_called_by_ci(command: &str) -> bool {
    let ci = read(".ci/run");
    let target = command.strip_prefix("make ").unwrap();
    let makefile = read("Makefile");
    let needing = makefile
        .lines()
        .filter_map(|line| line.split("##").next()?.split_once(": "))
        .filter(|(_, needed)| needed.split_whitespace().any(|one| one == target));
    needing
        .map(|(name, _)| name)
        .chain([target])
        .any(|name| ci.lines().any(|line| line == format!("timed make {name}")))
}

/// The headings of a page, each with the commands up to the next heading.
pub(crate) fn sections(page: &str) -> Vec<(String, Vec<String>)> {
    let mut sections = Vec::new();
    let mut in_block = None;
    for line in page.lines() {
        match in_block {
            None if line.starts_with("##") => {
                sections.push((line.trim_start_matches('#').trim().to_owned(), Vec::new()));
            }
            _ if line.starts_with("```") => {
                in_block = in_block.is_none().then(|| line == "```console");
            }
            Some(true) => {
                let command = line.strip_prefix("$ ").or(line.strip_prefix("# "));
                let (_, commands) = sections.last_mut().unwrap();
                commands.extend(command.map(str::to_owned));
            }
            _ => {}
        }
    }
    sections.retain(|(_, commands)| !commands.is_empty());
    sections
}

#[test]
fn every_page_with_commands_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/install");
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let page = format!("install/{}", name.strip_suffix(".md").unwrap());
        assert!(PAGES.contains(&page.as_str()), "{page}");
    }
}

#[test]
fn every_section_with_commands_is_run() {
    let runners = runners();
    let mut count = 0;
    for page in PAGES {
        let sections = sections(&read(format!("docs/{page}.md")));
        assert!(!sections.is_empty(), "{page} has no commands");
        for (heading, commands) in sections {
            count += 1;
            if commands.iter().all(|command| command.starts_with("make ")) {
                for command in commands {
                    assert!(is_called_by_ci(&command), "{page}, {heading}: {command}");
                }
                continue;
            }
            let run = [
                format!("documented {page} \"{heading}\""),
                format!("documented {page} {heading}\n"),
                format!("doc_commands.sh {page} \"{heading}\""),
                format!("print.args([\"{page}\", \"{heading}\"])"),
            ];
            // The test of the service page runs all sections in their order.
            let is_played = page == "reference/service"
                || page == "rotate" && RUN_BOOK.contains(&heading.as_str());
            assert!(
                is_played || run.iter().any(|call| runners.contains(call)),
                "no test runs the commands of {page}, {heading}"
            );
        }
    }
    assert!(count >= 15, "{count}");
}

/// The sections of the run-book that have commands, in order.
const RUN_BOOK: [&str; 7] = [
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

/// The commands between backticks in the run-book's tables, by column: for a cluster, for systemd
/// and for compose.
fn table_commands() -> Vec<String> {
    let page = read("docs/rotate.md");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let programs = [
        "kubectl ",
        "systemctl ",
        "journalctl ",
        "docker ",
        "nico-rewrap ",
        "rewrap ",
        "run ",
    ];
    quoted
        .filter(|text| programs.iter().any(|program| text.starts_with(program)))
        .map(str::to_owned)
        .collect()
}

/// Tests the commands without a cluster, systemd or Docker. Stand-ins for the three record the
/// arguments from the shell. Every object that a command names must exist in what the project
/// installs.
#[test]
fn commands_in_tables_name_installed_programs() {
    let dir = process::lasting_dir("stand-ins");
    for program in [
        "kubectl",
        "systemctl",
        "journalctl",
        "docker",
        "nico-rewrap",
    ] {
        let text = "#!/bin/sh\nprintf '%s\\n' \"$(basename \"$0\")\" \"$@\"\n";
        fs::write(dir.join(program), text).unwrap();
        process::run(Command::new("chmod").arg("+x").arg(dir.join(program)));
    }
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let standalone = rendered("standalone");
    let compose = read("deploy/compose/docker-compose.yml");
    let unit = read("deploy/systemd/nico-rewrap.service");
    let page = read("docs/rotate.md");
    let (mut kubectl, mut systemd, mut docker) = (0, 0, 0);
    for command in table_commands() {
        // The functions of the page, which the other tests run.
        if command.starts_with("rewrap ") || command.starts_with("run ") {
            assert!(page.contains(&format!("$ {command}\n")), "{command}");
            continue;
        }
        let mut bash = Command::new("bash");
        let said = process::run(bash.args(["-euc", &command]).env("PATH", &path));
        let words: Vec<_> = said.lines().collect();
        match words[..] {
            ["kubectl", "-n", "nico-system", ref rest @ ..] => {
                kubectl += 1;
                names_objects(rest, &standalone);
            }
            ["systemctl" | "journalctl", .., name] => {
                systemd += 1;
                let known = ["nico-rewrap", "nico-api"];
                assert!(known.contains(&name), "{command}");
            }
            ["nico-rewrap", "healthcheck", ref files @ ..] => {
                let start = format!(
                    "\nExecStart=/usr/bin/nico-rewrap serve {}\n",
                    files.join(" ")
                );
                assert!(unit.contains(&start), "{command}");
            }
            ["docker", "compose", ref rest @ ..] => {
                docker += 1;
                let names = rest.iter().filter(|word| word.starts_with("nico-"));
                for name in names {
                    assert!(compose.contains(&format!("\n  {name}:\n")), "{command}");
                }
            }
            _ => panic!("{command}"),
        }
    }
    assert!(
        kubectl >= 9 && systemd >= 4 && docker >= 5,
        "{kubectl} {systemd} {docker}"
    );
}

fn names_objects(words: &[&str], standalone: &std::collections::BTreeMap<String, Value>) {
    let deployment = &standalone["Deployment"];
    for word in words {
        match word.split_once('/') {
            Some(("deployment", "nico-api")) => {}
            Some(("deployment", name)) => assert_eq!(deployment["metadata"]["name"], name),
            Some(("job", name)) => assert_eq!(rendered("call")["Job"]["metadata"]["name"], name),
            _ => {}
        }
    }
    match words {
        ["apply", "-f", file] => {
            let page = read("docs/install/kubernetes.md");
            assert!(page.contains(&format!(" > {file}\n")), "{file}");
        }
        ["delete", "job", name] => assert_eq!(rendered("call")["Job"]["metadata"]["name"], *name),
        ["get", "pods", "-l", label] => {
            let (key, value) = label.split_once('=').unwrap();
            let labels =
                &rendered("sidecar")["Deployment"]["spec"]["template"]["metadata"]["labels"];
            assert_eq!(labels[key], value);
        }
        ["logs", "--prefix", "--tail=-1", "-l", label] => {
            let (key, value) = label.split_once('=').unwrap();
            assert_eq!(
                deployment["spec"]["template"]["metadata"]["labels"][key],
                value
            );
        }
        ["rollout", "restart" | "status", _] | ["logs", "--follow", _] | ["get", "job", _] => {}
        other => panic!("{other:?}"),
    }
}
