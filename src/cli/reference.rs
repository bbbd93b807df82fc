//! `docs/reference/cli.md`, made from the definitions of the command line.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::{client, pages::is_shown};

/// The longest line.
const WIDTH: usize = 120;

const INTRODUCTION: &str = "\
The program `nico-rewrap` is the server, and the client for operators. This page is made from the definitions of the \
command line: `nico-rewrap COMMAND --help` says the same.";

/// Options with these headings are those of every command that asks a server.
const COMMON: [&str; 2] = ["Connection", "Output"];

/// The whole page.
pub(super) fn page(mut command: Command) -> String {
    command.build();
    let mut page = format!("# Command line\n\n{}\n", wrapped(INTRODUCTION, "", ""));
    page += &exit_codes();
    // Any command that asks a server has all common options.
    if let Some(status) = command.find_subcommand("status") {
        page += "\n## Options of every command that asks a server\n\n";
        for heading in COMMON {
            page += &options(
                status
                    .get_arguments()
                    .filter(|arg| arg.get_help_heading() == Some(heading)),
            );
        }
    }
    for sub in command.get_subcommands().filter(|sub| is_shown(sub)) {
        section(&mut page, sub, &format!("nico-rewrap {}", sub.get_name()));
    }
    page
}

fn exit_codes() -> String {
    let mut text = "\n## Exit codes\n\n| code | meaning |\n| --- | --- |\n".to_owned();
    for line in client::EXIT_CODES.lines().skip(1) {
        if let Some((code, meaning)) = line.trim().split_once(' ') {
            let _ = writeln!(text, "| {code} | {} |", meaning.trim());
        }
    }
    text
}

/// The section of a command, then those of its subcommands.
fn section(page: &mut String, command: &Command, name: &str) {
    let _ = writeln!(page, "\n## {name}\n");
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    for paragraph in about.split("\n\n") {
        let _ = writeln!(page, "{}\n", wrapped(&escaped(paragraph), "", ""));
    }
    let mut usage = command.clone();
    let usage = usage.render_usage().to_string();
    let _ = writeln!(
        page,
        "```text\n{}\n```",
        usage.trim_start_matches("Usage: ")
    );
    let own = command.get_arguments().filter(|arg| {
        let is_common = arg
            .get_help_heading()
            .is_some_and(|heading| COMMON.contains(&heading));
        !is_common && !["help", "version"].contains(&arg.get_id().as_str())
    });
    let own = options(own);
    if !own.is_empty() {
        let _ = write!(page, "\n{own}");
    }
    for sub in command.get_subcommands().filter(|sub| is_shown(sub)) {
        section(page, sub, &format!("{name} {}", sub.get_name()));
    }
}

/// A list of options.
fn options<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut list = String::new();
    for argument in arguments {
        let help = argument.get_long_help().or(argument.get_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let takes_value = argument.get_action().takes_values();
        let default = argument
            .get_default_values()
            .first()
            .filter(|_| takes_value);
        let default = default.and_then(|default| default.to_str());
        let default = default.map_or_else(String::new, |default| format!(" Default: `{default}`."));
        let paragraphs: Vec<_> = help.split("\n\n").map(sentence).collect();
        let item = format!(
            "`{}`: {}{default}",
            spelled(argument),
            escaped(&paragraphs.join(" "))
        );
        let _ = writeln!(list, "{}", wrapped(&item, "* ", "  "));
    }
    list
}

/// The text on one line. clap removes the full stop at the end of a short help.
fn sentence(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = if text.ends_with(['.', '?']) { "" } else { "." };
    text + end
}

/// `-o, --output <FORMAT>`, or `<KEY>`.
fn spelled(argument: &Arg) -> String {
    let values = argument.get_value_names().unwrap_or_default();
    let takes_value = argument.get_action().takes_values() && !values.is_empty();
    let value = values
        .iter()
        .map(|value| format!("<{value}>"))
        .collect::<Vec<_>>()
        .join(" ");
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let names: Vec<_> = short.into_iter().chain(long).collect();
    match (names.is_empty(), takes_value) {
        (true, _) => value,
        (false, true) => format!("{} {value}", names.join(", ")),
        (false, false) => names.join(", "),
    }
}

/// Markdown must not read `<` as HTML.
fn escaped(text: &str) -> String {
    text.replace('<', "\\<")
}

/// The words in lines of at most [`WIDTH`] characters.
fn wrapped(text: &str, first: &str, next: &str) -> String {
    let mut lines = vec![first.to_owned()];
    let mut is_empty = true;
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if !is_empty && line + 1 + word.chars().count() > WIDTH {
            lines.push(next.to_owned());
            is_empty = true;
        }
        if let Some(line) = lines.last_mut() {
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
        }
        is_empty = false;
    }
    lines.join("\n")
}
