//! The import structure of `src/`: every folder imports only folders below it, and the imports of
//! files have no cycle.

use std::collections::{BTreeMap, BTreeSet};

use crate::source_imports::{Import, Sources};

/// For each folder, the folders that its files may import. A file at the root counts as a folder.
type Levels = &'static [(&'static str, &'static [&'static str])];

/// The folders, and files at the root, that each of them may import. The order is that of the
/// levels in `src/lib.rs`, from the top.
const ALLOWED: Levels = &[
    (
        "cli",
        &[
            "app",
            "cli::client",
            "config",
            "domain",
            "failpoint",
            "keys",
            "regular_file",
            "run",
            "store",
            "telemetry",
        ],
    ),
    // The operator's client knows nothing of the server.
    ("cli::client", &["domain", "proto"]),
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
            "failpoint",
            "limits",
            "proto",
            "run",
            "store",
            "telemetry",
        ],
    ),
    ("audit", &["auth", "regular_file", "run", "telemetry"]),
    (
        "run",
        &["auth", "domain", "failpoint", "store", "telemetry"],
    ),
    ("store", &["auth", "domain", "tls"]),
    ("tls", &["auth", "regular_file", "telemetry"]),
    ("vault", &["domain", "keys", "regular_file", "tls"]),
    ("keys", &["domain"]),
    ("auth", &[]),
    ("domain", &[]),
    ("failpoint", &[]),
    ("limits", &[]),
    ("proto", &[]),
    ("regular_file", &[]),
    ("telemetry", &[]),
];

/// The folder of a module, which is the first segment of its path. The operator's client is a
/// folder of its own.
fn folder(module: &[String]) -> Option<&str> {
    match module.first()?.as_str() {
        "cli" if module.get(1).is_some_and(|name| name == "client") => Some("cli::client"),
        name => Some(name),
    }
}

/// The problems of folders that import folders without permission of `allowed`.
fn forbidden_imports(sources: &Sources, allowed: Levels) -> Vec<String> {
    let allowed: BTreeMap<_, _> = allowed.iter().copied().collect();
    let folders: BTreeSet<_> = sources.modules().filter_map(folder).collect();
    let without_level = folders.iter().filter(|name| !allowed.contains_key(*name));
    let mut problems: Vec<_> = without_level
        .map(|name| format!("{name} has no level: add it to ALLOWED"))
        .collect();
    for import in sources.imports() {
        let (from, to) = (folder(&import.from), folder(&import.names));
        // The root of the crate has no items, only modules.
        let (Some(from), Some(to)) = (from, to) else {
            continue;
        };
        let is_allowed = allowed.get(from).is_some_and(|below| below.contains(&to));
        if from != to && !is_allowed {
            problems.push(described(&import));
        }
    }
    problems
}

fn described(import: &Import) -> String {
    format!("{} imports {}", import.from.join("::"), import.path)
}

/// The imports that form one cycle of files. Empty if the files have no cycle.
///
/// A file may use the items of the `mod.rs` files above it: a `mod.rs` is the interface of its
/// folder. An item that a `mod.rs` only re-exports counts as an item of the file that defines it.
fn cycle_of_files(sources: &Sources) -> Vec<String> {
    let mut imports: Vec<_> = sources.imports().into_iter().collect();
    imports.retain(|import| !import.from.starts_with(&import.to));
    // Remove the files that import no other file, until none is left or all are in cycles.
    loop {
        let importing: BTreeSet<_> = imports.iter().map(|import| import.from.clone()).collect();
        let before = imports.len();
        imports.retain(|import| importing.contains(&import.to));
        if imports.len() == before {
            break;
        }
    }
    let mut way: Vec<&Import> = imports.first().into_iter().collect();
    while let Some(last) = way.last() {
        if let Some(start) = way.iter().position(|import| import.from == last.to) {
            return way[start..]
                .iter()
                .map(|import| described(import))
                .collect();
        }
        let next = imports.iter().find(|import| import.from == last.to);
        way.extend(next);
    }
    Vec::new()
}

/// The folders that are part of a cycle in `allowed`, or above one.
fn cycle_of_levels(allowed: Levels) -> BTreeSet<&'static str> {
    let mut left: BTreeMap<_, _> = allowed.iter().copied().collect();
    loop {
        let count = left.len();
        let names: BTreeSet<_> = left.keys().copied().collect();
        left.retain(|_, below| below.iter().any(|name| names.contains(name)));
        if left.len() == count {
            return names;
        }
    }
}

#[test]
fn every_folder_imports_only_folders_below_it() {
    let problems = forbidden_imports(&Sources::of_this_crate(), ALLOWED);
    assert!(problems.is_empty(), "{problems:#?}");
    assert_eq!(cycle_of_levels(ALLOWED), BTreeSet::new(), "in ALLOWED");
}

#[test]
fn the_imports_of_files_have_no_cycle() {
    let cycle = cycle_of_files(&Sources::of_this_crate());
    assert!(cycle.is_empty(), "{cycle:#?}");
}

#[test]
fn an_import_against_the_direction_is_found_in_every_form() {
    const TWO_LEVELS: Levels = &[("high", &["low"]), ("low", &[])];
    let low = |text| {
        let files = [("high", "mod part;"), ("high::part", ""), ("low", text)];
        forbidden_imports(&Sources::of_files(&files), TWO_LEVELS)
    };
    for (text, path) in [
        ("use crate::high::X;", "crate::high::X"),
        ("use crate::{\n    high::{self, X},\n};", "crate::high::X"),
        (
            "pub(crate) use crate::high::part::X as Y;",
            "crate::high::part::X",
        ),
        ("fn f() -> crate::high::X {}", "crate::high::X"),
        ("use super::high::X;", "super::high::X"),
        ("use self::super::high;", "self::super::high"),
        (
            "#[cfg(test)]\nmod tests {\n    use super::*;\n}\n\nuse crate::high::X;",
            "crate::high::X",
        ),
    ] {
        let wanted = format!("low imports {path}");
        assert!(low(text).contains(&wanted), "{text}: {:?}", low(text));
    }
    for text in [
        "use crate::low::X;",
        "// use crate::high::X;",
        "#[cfg(test)]\nmod tests {\n    use crate::high::X;\n}",
        "use other::high::X;",
        "let text = $crate::high::X;",
    ] {
        assert_eq!(low(text), Vec::<String>::new(), "{text}");
    }
    let files = [("high", "use crate::low::X;"), ("new", ""), ("low", "")];
    let problems = forbidden_imports(&Sources::of_files(&files), TWO_LEVELS);
    assert_eq!(problems, ["new has no level: add it to ALLOWED"]);
}

#[test]
fn a_cycle_of_levels_is_found() {
    const CYCLE: Levels = &[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])];
    assert_eq!(cycle_of_levels(CYCLE), BTreeSet::from(["a", "b", "c"]));
}

#[test]
fn a_cycle_of_files_in_one_folder_is_found() {
    let direct = [
        ("x", "mod a;\nmod b;\nmod c;"),
        ("x::a", "use super::b::B;"),
        ("x::b", "use crate::x::c::{C, D};"),
        ("x::c", "fn f() { super::a::f() }"),
    ];
    assert_eq!(
        cycle_of_files(&Sources::of_files(&direct)),
        [
            "x::a imports super::b::B",
            "x::b imports crate::x::c::C",
            "x::c imports super::a::f"
        ]
    );
    // The same through re-exports, one of them under another name.
    let re_exported = [
        (
            "x",
            "mod a;\nmod b;\npub use self::a::A;\nuse b::B as Other;",
        ),
        ("x::a", "use super::Other;"),
        ("x::b", "use crate::x::A;"),
    ];
    assert_eq!(
        cycle_of_files(&Sources::of_files(&re_exported)),
        ["x::a imports super::Other", "x::b imports crate::x::A"]
    );
}

#[test]
fn a_file_may_use_the_items_of_the_modules_above_it() {
    let files = [
        (
            "x",
            "mod a;\nmod b;\npub use self::a::A;\npub struct Shared;",
        ),
        ("x::a", "use super::Shared;\nuse super::b::B;"),
        ("x::b", "mod deep;"),
        ("x::b::deep", "use super::super::Shared;"),
    ];
    assert_eq!(
        cycle_of_files(&Sources::of_files(&files)),
        Vec::<String>::new()
    );
}
