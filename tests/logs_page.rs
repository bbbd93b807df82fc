//! docs/reference/logs.md has every event of the source, with its level and its fields.

use std::collections::BTreeSet;

use crate::documents::{check_generated, files, read};
use crate::source_imports::without_tests_and_comments;

const PAGE: &str = "docs/reference/logs.md";
const HEAD: &str = "| level | message | fields |\n| --- | --- | --- |\n";
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// An event: the number of its level in [`LEVELS`], its message, and its fields.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    level: usize,
    message: String,
    fields: Vec<String>,
}

/// The arguments of a macro call, from after its opening parenthesis. A comma inside brackets or
/// inside a text separates nothing.
fn arguments(call: &str) -> Vec<String> {
    let mut arguments = vec![String::new()];
    let (mut depth, mut in_text, mut is_escaped) = (0, false, false);
    let mut angles = 0;
    for c in call.chars() {
        if in_text {
            in_text = is_escaped || c != '"';
            is_escaped = c == '\\' && !is_escaped;
        } else {
            match c {
                '"' => in_text = true,
                '(' | '[' | '{' => depth += 1,
                ')' if depth == 0 => break,
                ')' | ']' | '}' => depth -= 1,
                // The types of a call: `f::<A, B>()`.
                '<' if arguments.last().unwrap().ends_with("::") => angles += 1,
                '>' if angles > 0 => angles -= 1,
                ',' if depth == 0 && angles == 0 => {
                    arguments.push(String::new());
                    continue;
                }
                _ => {}
            }
        }
        arguments.last_mut().unwrap().push(c);
    }
    let trimmed = arguments.iter().map(|one| one.trim().to_owned());
    trimmed.filter(|one| !one.is_empty()).collect()
}

/// The value of a text in the source.
fn unquoted(text: &str) -> String {
    let text = text.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
    let mut lines = text.split("\\\n");
    let first = lines.next().unwrap().to_owned();
    let joined = lines.fold(first, |text, line| text + line.trim_start());
    joined.replace("\\\"", "\"")
}

fn event(level: usize, call: &str) -> Event {
    let (mut message, mut fields) = (None, Vec::new());
    for argument in arguments(call) {
        if argument.starts_with('"') {
            assert!(
                message.replace(unquoted(&argument)).is_none(),
                "{call:.100}"
            );
            continue;
        }
        let (name, _) = argument.split_once('=').unwrap_or((&argument, ""));
        let name = name.trim().trim_start_matches(['%', '?']).to_owned();
        let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(name.chars().all(is_name), "{name}: {call:.100}");
        fields.push(name);
    }
    Event {
        level,
        message: message.unwrap_or_else(|| panic!("no message: {call:.100}")),
        fields,
    }
}

/// The events in the code of a file.
fn events_of(code: &str) -> Vec<Event> {
    let mut found = Vec::new();
    for (level, name) in LEVELS.into_iter().enumerate() {
        let name = format!("tracing::{name}!(");
        let calls = code.split(&name).skip(1);
        found.extend(calls.map(|call| event(level, call)));
    }
    found
}

fn events() -> BTreeSet<Event> {
    let mut events = BTreeSet::new();
    for source in files("src", ".rs") {
        if source.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        let code = without_tests_and_comments(&read(&source));
        let calls = events_of(&code);
        // Every event has the name of its macro in full, so that none is missed.
        let others = code.matches("tracing::").count();
        let other_uses = ["tracing::Instrument", "tracing::error_span!"];
        let known: usize = other_uses
            .map(|text| code.matches(text).count())
            .iter()
            .sum();
        assert_eq!(calls.len() + known, others, "{}", source.display());
        events.extend(calls);
    }
    events
}

fn with_current_table(page: &str) -> String {
    let (before, table_and_rest) = page.split_once(HEAD).unwrap();
    let rest = table_and_rest
        .split_once("\n\n")
        .map_or("", |(_, rest)| rest);
    let mut text = format!("{before}{HEAD}");
    for event in events() {
        let fields: Vec<_> = event
            .fields
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        let level = LEVELS[event.level];
        let message = event.message.replace('|', "\\|");
        let message = if message.contains('`') {
            format!("`` {message} ``")
        } else {
            format!("`{message}`")
        };
        text +=
            &format!("| {level} | {message} | {} |\n", fields.join(", ")).replace("|  |", "| |");
    }
    format!("{text}\n{rest}")
}

#[test]
fn the_page_has_every_event_and_no_other() {
    assert!(events().len() > 70);
    check_generated(PAGE, &with_current_table(&read(PAGE)), "logs_page");
}

#[test]
fn events_are_read_as_the_compiler_reads_them() {
    let code = r#"
        tracing::warn!(
            %error,
            reason = failure.reason(),
            names = ?list.iter().map(|(a, b)| f::<_, X>(a, "x, y)")),
            "two lines, \
             one \"message\""
        );
        Err(e) => tracing::info!("a {thing}"),
    "#;
    let wanted = [
        (
            1,
            "two lines, one \"message\"",
            &["error", "reason", "names"][..],
        ),
        (2, "a {thing}", &[]),
    ];
    let wanted = wanted.map(|(level, message, fields)| Event {
        level,
        message: message.to_owned(),
        fields: fields.iter().map(|&name| name.to_owned()).collect(),
    });
    assert_eq!(events_of(code), wanted);
}
