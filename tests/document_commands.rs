//! The run-book and the installation pages claim that tests run their commands. This module checks
//! that: a script or a test runs every section with commands. `run_book.rs` carries out the run-book.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::documents::read;
use crate::kubelet::rendered;
use crate::process;
use crate::run_book::RUN_BOOK;
use crate::site::BINARY;

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
        let mut bash = Command::new("bash");
        bash.args(["-euc", &command]).env("PATH", &path);
        let said = process::run(bash.envs([("OLD", "kv1"), ("NEW", "kv2")]));
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
            ["nico-rewrap", ref rest @ ..] => client_has(rest),
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
        kubectl >= 9 && systemd >= 3 && docker >= 5,
        "{kubectl} {systemd} {docker}"
    );
}

/// The client has this command with these options.
fn client_has(words: &[&str]) {
    process::run(Command::new(BINARY).args(words).arg("--help"));
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
        ["exec", _, "--", "/nico-rewrap", rest @ ..] => client_has(rest),
        ["rollout", "restart" | "status", _] | ["logs", "--follow", _] | ["get", "job", _] => {}
        other => panic!("{other:?}"),
    }
}
