//! Completions, manual pages and the reference of the command line.

use std::process::{Command, Stdio};

use crate::documents::check_generated;
use crate::process::{run, temp_dir};
use crate::site::{BINARY, run_binary};

const PAGE: &str = "docs/reference/cli.md";

#[tokio::test]
async fn the_reference_of_the_command_line_is_current() {
    let args = ["dev", "cli-reference"].map(str::to_owned);
    let current = run_binary(&args, &[]).await;
    assert_eq!(current.code, 0, "{}", current.stderr);
    check_generated(PAGE, &current.stdout, "client_pages");
    for words in ["## nico-rewrap rotate", "`--canary-check <CMD>`", "| 78 |"] {
        assert!(current.stdout.contains(words), "{words}");
    }
    assert!(
        current
            .stdout
            .lines()
            .all(|line| line.chars().count() <= 120)
    );
}

#[tokio::test]
async fn bash_completes_the_commands() {
    let args = ["completion", "bash"].map(str::to_owned);
    let script = run_binary(&args, &[]).await;
    assert_eq!((script.code, script.stderr.as_str()), (0, ""));
    let directory = temp_dir("completion");
    let file = directory.path().join("nico-rewrap");
    std::fs::write(&file, script.stdout).unwrap();
    let complete = "source \"$1\"; COMP_WORDS=(nico-rewrap runs w); COMP_CWORD=2; _nico__rewrap nico-rewrap w runs; \
                    echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", complete, "bash"])
        .arg(&file)
        .stderr(Stdio::null());
    assert_eq!(run(&mut bash).trim(), "watch");
    for shell in ["zsh", "fish"] {
        let args = ["completion", shell].map(str::to_owned);
        let script = run_binary(&args, &[]).await;
        assert!(
            script.code == 0 && script.stdout.contains("can-i-delete"),
            "{shell}"
        );
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = temp_dir("man");
    run(Command::new(BINARY)
        .args(["man", "--dir"])
        .arg(directory.path()));
    for page in ["nico-rewrap", "nico-rewrap-rotate", "nico-rewrap-keys-list"] {
        let text = std::fs::read_to_string(directory.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH NAME"), "{page}: {text}");
    }
    assert!(
        !directory.path().join("nico-rewrap-keygen.1").exists(),
        "a hidden command"
    );
    let main = run(Command::new(BINARY).arg("man"));
    assert!(
        main.contains("nico\\-rewrap rotate") || main.contains("nico\\-rewrap\\-rotate"),
        "{main}"
    );
}
