//! `docs/deploy.md` claims that tests run its commands. Every section with commands must appear in
//! one of those tests.

use std::fs;
use std::path::Path;

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
            if matches!(kind, Some("sh" | "rs")) && !path.ends_with("deploy_page.rs") {
                text += &read(path);
            }
        }
    }
    text.replace(".sh\" \"", ".sh \"")
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

#[test]
fn every_section_with_commands_is_run() {
    let (page, runners) = (read("docs/deploy.md"), runners());
    let mut sections = 0;
    for section in page.split("\n## ").skip(1) {
        let heading = section.lines().next().unwrap();
        let blocks: Vec<_> = section.split("```console\n").skip(1).collect();
        if blocks.is_empty() {
            continue;
        }
        sections += 1;
        let commands = blocks
            .iter()
            .flat_map(|block| block.split("```").next().unwrap().lines())
            .filter_map(|line| line.strip_prefix("$ ").or(line.strip_prefix("# ")));
        let commands: Vec<_> = commands.collect();
        assert!(!commands.is_empty(), "{heading}");
        if commands.iter().all(|command| command.starts_with("make ")) {
            for command in commands {
                assert!(is_called_by_ci(command), "{heading}: {command}");
            }
            continue;
        }
        let run = [
            format!("documented \"{heading}\""),
            format!("documented {heading}\n"),
            format!("doc_commands.sh \"{heading}\""),
            format!("doc_commands.sh {heading} "),
            format!("print.arg(\"{heading}\")"),
        ];
        assert!(
            run.iter().any(|call| runners.contains(call)),
            "no test runs the commands of {heading}"
        );
    }
    assert!(sections >= 6, "{sections}");
}
