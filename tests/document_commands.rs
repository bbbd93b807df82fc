//! The run-book and the installation pages claim that tests run their commands. This module checks
//! that: a script or a test runs every section with commands, and the tests here carry out the
//! run-book.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::certs;
use crate::database::Database;
use crate::kubelet::rendered;
use crate::leaks;
use crate::process;
use crate::seal::keys;
use crate::seed::Org;
use crate::server::Server;
use crate::site::{BINARY, Site};

const PAGES: [&str; 7] = [
    "install/compose",
    "install/debian",
    "install/kubernetes",
    "install/postgres",
    "install/vault",
    "reference/configuration",
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
fn sections(page: &str) -> Vec<(String, Vec<String>)> {
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
            let is_played = page == "rotate" && RUN_BOOK.contains(&heading.as_str());
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
    "7. Second dry run",
    "9. Take the old key away from nico-rewrap",
];

/// An operator's directory: certificates with the file names of the page, and nico-rewrap and
/// grpcurl in the PATH.
struct Operator {
    dir: std::path::PathBuf,
}

impl Operator {
    fn new() -> Self {
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
    fn run_text(&self, commands: &str, server: &Server) -> Result<(String, String), String> {
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

    fn report(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.dir.join(name)).unwrap()).unwrap()
    }
}

/// A site after step 3: organizations under the old key, and one that nico-api has written under
/// the new key.
async fn after_step_3() -> Database {
    let database = Database::migrated().await;
    let client = database.client().await;
    for id in ["acme", "other"] {
        Org::under(id, "kv1").insert(&client).await;
    }
    Org::under("test-organization", "kv2").insert(&client).await;
    database
}

#[tokio::test]
async fn the_run_book_rotates_the_key() {
    let database = after_step_3().await;
    let server = Site::new(&database).start().await;
    let operator = Operator::new();
    let [start, steps @ .., without_old_key] = &RUN_BOOK;
    let sections: Vec<_> = std::iter::once(*start)
        .chain(steps.iter().copied())
        .collect();
    let said = operator.run(&sections, &server).unwrap();
    assert!(said.contains("key check value"), "{said}");
    let key = fs::read_to_string(operator.dir.join("new-key.txt")).unwrap();
    assert!(key.starts_with("\"kv2\": \""), "{}", key.len());
    assert_eq!(operator.report("proof.json")["fieldsSkippedOnTarget"], 2);
    assert_eq!(operator.report("dry-run.json")["rowsUpdated"], 2);
    assert_eq!(operator.report("apply.json")["rowsUpdated"], 2);
    assert_eq!(operator.report("second.json")["rowsSkippedAllOnTarget"], 3);

    let server = Site::new(&database).keys(&keys(&["kv2"])).start().await;
    operator.run(&[start, without_old_key], &server).unwrap();
    let report = operator.report("without-old-key.json");
    assert_eq!(report["rowsSkippedAllOnTarget"], 3);
}

#[tokio::test]
async fn the_run_book_stops_at_a_problem() {
    let database = after_step_3().await;
    let operator = Operator::new();
    let [start, _, proof, dry_run, _, second, without_old_key] = RUN_BOOK;

    // The key under the new id has other bytes than in nico-api.
    let mut other_bytes = keys(&["kv1", "kv2"]);
    other_bytes.insert("kv2".to_owned(), crate::seal::key("other bytes"));
    let server = Site::new(&database).keys(&other_bytes).start().await;
    operator.run(&[start, proof], &server).unwrap_err();
    let failure = &operator.report("proof.json")["failures"][0]["error"];
    let failure = failure.as_str().unwrap();
    assert!(
        failure.starts_with("authentication failed under key id \"kv2\""),
        "{failure}"
    );

    // There was no apply yet.
    let server = Site::new(&database).start().await;
    operator.run(&[start, proof, dry_run], &server).unwrap();
    operator.run(&[start, second], &server).unwrap_err();
    assert_eq!(operator.report("second.json")["rowsUpdated"], 2);

    // A straggler.
    let server = Site::new(&database).keys(&keys(&["kv2"])).start().await;
    operator
        .run(&[start, without_old_key], &server)
        .unwrap_err();
    let failure = &operator.report("without-old-key.json")["failures"][0]["error"];
    assert_eq!(
        failure,
        "key id \"kv1\" is not in the secrets: add that key and run again"
    );

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
    let (reports, said) = operator.run_text(commands, &server).unwrap();
    assert!(said.contains("key check value"), "{said}");
    let reports = serde_json::Deserializer::from_str(&reports).into_iter();
    let reports: Vec<Value> = reports.map(Result::unwrap).collect();
    let updated: Vec<_> = reports
        .iter()
        .map(|report| &report["rowsUpdated"])
        .collect();
    assert_eq!(updated, [2, 2, 0]);
    assert_eq!(reports[0]["fieldsSkippedOnTarget"], 2);
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
    let (mut kubectl, mut systemd, mut docker) = (0, 0, 0);
    for command in table_commands() {
        // The function of the page, which the other test runs.
        if command.starts_with("rewrap ") {
            let known = [
                "rewrap '{\"dry_run\": true}'",
                "rewrap '{\"dry_run\": false}'",
            ];
            assert!(known.contains(&command.as_str()), "{command}");
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
                let known = ["nico-rewrap", "nico-rewrap-vault", "nico-api"];
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
        kubectl >= 10 && systemd >= 6 && docker >= 6,
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
        ["patch", "deployment", "nico-rewrap", "-p", patch] => {
            let patch: Value = serde_json::from_str(patch).unwrap();
            let volume = &patch["spec"]["template"]["spec"]["volumes"][0]["name"];
            let volumes = &deployment["spec"]["template"]["spec"]["volumes"];
            let volumes = volumes.as_array().unwrap();
            assert!(volumes.iter().any(|one| one["name"] == *volume), "{volume}");
        }
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
        ["rollout", "restart" | "status" | "undo", _]
        | ["logs", "--follow", _]
        | ["get", "job", _] => {}
        other => panic!("{other:?}"),
    }
}
