//! The import structure of `src/`: every folder imports only folders below it, and the imports of
//! files have no cycle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders, and files at the root, that each of them may import. The order is that of the
/// levels in `src/lib.rs`, from the top.
const ALLOWED: [(&str, &[&str]); 17] = [
    (
        "cli",
        &[
            "app",
            "config",
            "domain",
            "keys",
            "regular_file",
            "store",
            "telemetry",
        ],
    ),
    (
        "app",
        &[
            "api",
            "audit",
            "auth",
            "config",
            "domain",
            "run",
            "server",
            "store",
            "telemetry",
            "tls",
            "vault",
        ],
    ),
    (
        "config",
        &[
            "audit",
            "auth",
            "domain",
            "keys",
            "regular_file",
            "run",
            "server",
            "store",
            "telemetry",
            "tls",
            "vault",
        ],
    ),
    ("server", &["api", "auth", "limits", "telemetry", "tls"]),
    (
        "api",
        &[
            "audit",
            "auth",
            "domain",
            "limits",
            "run",
            "store",
            "telemetry",
        ],
    ),
    ("audit", &["auth", "regular_file", "run", "telemetry"]),
    ("run", &["auth", "domain", "store", "telemetry"]),
    ("store", &["auth", "domain", "tls"]),
    ("tls", &["auth", "regular_file", "telemetry"]),
    ("vault", &["domain", "keys", "regular_file", "tls"]),
    ("keys", &["domain"]),
    ("auth", &[]),
    ("domain", &[]),
    ("limits", &[]),
    ("regular_file", &[]),
    ("telemetry", &[]),
    ("lib", &[]),
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without its comments and unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
    text.lines()
        .map(|line| line.split("//").next().unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The paths below `crate::` in a text, with groups in braces expanded.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        expand(rest, "", &mut found);
    }
    found
}

fn expand(text: &str, prefix: &str, found: &mut BTreeSet<String>) {
    if let Some(group) = text.strip_prefix('{') {
        let mut depth = 0;
        let mut start = 0;
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    expand(group[start..at].trim(), prefix, found);
                    return;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(group[start..at].trim(), prefix, found);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    match text[end..].strip_prefix("::") {
        Some(rest) => expand(rest, &format!("{path}::"), found),
        None => {
            found.insert(path);
        }
    }
}

/// The folder of a file, or the name of a file at the root.
fn folder(path: &Path) -> String {
    let inside = path.strip_prefix(source()).unwrap();
    let first = inside.components().next().unwrap().as_os_str();
    first.to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn every_folder_imports_only_folders_below_it() {
    let mut all = Vec::new();
    files(&source(), &mut all);
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let mut wrong = Vec::new();
    for path in &all {
        let from = folder(path);
        if from == "main" {
            continue;
        }
        let may = allowed
            .get(from.as_str())
            .unwrap_or_else(|| panic!("{from} has no level: add it to ALLOWED"));
        for import in imports(&code(path)) {
            let to = import.split("::").next().unwrap();
            let is_folder = allowed.contains_key(to);
            if to != from && is_folder && !may.contains(&to) {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "against the direction:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_levels_have_no_circle() {
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    let mut left: BTreeSet<_> = allowed.keys().copied().collect();
    while !left.is_empty() {
        let free: Vec<_> = left
            .iter()
            .filter(|name| allowed[*name].iter().all(|below| !left.contains(below)))
            .copied()
            .collect();
        assert!(!free.is_empty(), "a circle among {left:?}");
        for name in free {
            left.remove(name);
        }
    }
}

#[test]
fn the_reader_of_this_test_takes_imports_apart() {
    let text = "use crate::{a::{B, c::D}, e};\nlet x = crate::f::g();";
    let found: Vec<_> = imports(text).into_iter().collect();
    assert_eq!(found, ["a::B", "a::c::D", "e", "f::g"]);
}
