//! Reads the source of a crate, and finds what each of its files imports.
//!
//! Paths that begin with `crate`, `self`, `super` or the name of a child module count, in `use`
//! lines and in the code. Comments and unit tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The files of a crate, each under its module path. The path of `src/lib.rs` is empty.
pub(crate) struct Sources(BTreeMap<Vec<String>, Module>);

struct Module {
    /// The paths in the code, each as its segments.
    paths: BTreeSet<Vec<String>>,
    /// The paths of the `use` lines, by the name that they bring into the module.
    names: BTreeMap<String, Vec<String>>,
}

/// A path in one file that leads into another file.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    /// The module that imports.
    pub(crate) from: Vec<String>,
    /// The module that the path names.
    pub(crate) names: Vec<String>,
    /// The module that defines the item, if `names` only re-exports it.
    pub(crate) to: Vec<String>,
    /// The path, as the code has it.
    pub(crate) path: String,
}

impl Sources {
    /// Reads every file of `src/` except `main.rs`, which is another crate.
    pub(crate) fn of_this_crate() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        collect(&root, &mut Vec::new(), &mut files);
        files.retain(|(module, _)| module != &["main"]);
        Self::parse(files)
    }

    /// The crate of these files, each given as module path and text.
    pub(crate) fn of_files(files: &[(&str, &str)]) -> Self {
        let segments = |module: &str| match module {
            "" => Vec::new(),
            _ => module.split("::").map(str::to_owned).collect(),
        };
        let files = files.iter();
        Self::parse(files.map(|(module, text)| (segments(module), (*text).to_owned())))
    }

    fn parse(files: impl IntoIterator<Item = (Vec<String>, String)>) -> Self {
        let files = files
            .into_iter()
            .filter(|(module, _)| !module.iter().any(|name| name == "tests"))
            .map(|(module, text)| (module, Module::parse(&without_tests_and_comments(&text))));
        Self(files.collect())
    }

    pub(crate) fn modules(&self) -> impl Iterator<Item = &[String]> {
        self.0.keys().map(Vec::as_slice)
    }

    /// Every import that leads into another file.
    pub(crate) fn imports(&self) -> BTreeSet<Import> {
        let mut imports = BTreeSet::new();
        for (from, module) in &self.0 {
            for path in &module.paths {
                let (names, item) = self.find(from, path);
                let to = self.definition(&names, &item);
                if names != *from {
                    imports.insert(Import {
                        from: from.clone(),
                        names,
                        to,
                        path: path.join("::"),
                    });
                }
            }
        }
        imports
    }

    /// The module that `path` names inside the module `from`, and the rest of the path.
    fn find(&self, from: &[String], path: &[String]) -> (Vec<String>, Vec<String>) {
        let mut module = from.to_vec();
        let mut rest = path;
        if rest.first().is_some_and(|first| first == "crate") {
            module.clear();
            rest = &rest[1..];
        }
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "self" => {}
                "super" => drop(module.pop()),
                name => {
                    module.push(name.to_owned());
                    if !self.0.contains_key(&module) {
                        module.pop();
                        break;
                    }
                }
            }
            rest = others;
        }
        (module, rest.to_vec())
    }

    /// The module that defines `item`, which `module` defines or re-exports.
    fn definition(&self, module: &[String], item: &[String]) -> Vec<String> {
        let mut module = module.to_vec();
        let mut item = item.to_vec();
        // Limited, since a mistake in the code could re-export in a circle.
        for _ in 0..8 {
            let Some((name, rest)) = item.split_first() else {
                break;
            };
            let Some(path) = self.0.get(&module).and_then(|m| m.names.get(name)) else {
                break;
            };
            let (next, mut next_item) = self.find(&module, path);
            next_item.extend_from_slice(rest);
            (module, item) = (next, next_item);
        }
        module
    }
}

impl Module {
    fn parse(code: &str) -> Self {
        let declared = code.lines().filter_map(|line| {
            let (_, name) = line.trim().strip_suffix(';')?.split_once("mod ")?;
            Some(name)
        });
        let starts: Vec<_> = declared.chain(["crate", "self", "super"]).collect();
        let mut paths = BTreeSet::new();
        for start in &starts {
            let start = format!("{start}::");
            for (at, _) in code.match_indices(&start) {
                let inside_a_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | ':');
                if !code[..at].ends_with(inside_a_path) {
                    let found = expand(&code[at..]);
                    paths.extend(found.into_iter().map(|(path, _)| path));
                }
            }
        }
        let is_local = |path: &Vec<String>| starts.contains(&path[0].as_str());
        let uses = code.match_indices("use ").filter(|(at, _)| {
            let before = code[..*at].rsplit('\n').next().unwrap().trim();
            before.is_empty() || before.starts_with("pub")
        });
        let names = uses.flat_map(|(at, word)| expand(&code[at + word.len()..]));
        let names = names.filter(|(path, _)| is_local(path));
        Self {
            paths,
            names: names.map(|(path, name)| (name, path)).collect(),
        }
    }
}

/// The paths at the start of a text, with groups in braces expanded. Each comes with the name
/// that a `use` line gives it.
fn expand(text: &str) -> Vec<(Vec<String>, String)> {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        return members(group).into_iter().flat_map(expand).collect();
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if let Some(rest) = rest.strip_prefix("::") {
        let below = expand(rest).into_iter().map(|(mut path, last)| {
            // `a::{self}` brings `a` into scope.
            let last = if last == "self" {
                name.to_owned()
            } else {
                last
            };
            path.insert(0, name.to_owned());
            (path, last)
        });
        return below.collect();
    }
    let alias = rest.trim_start().strip_prefix("as ").map(|alias| {
        let alias = alias.trim_start();
        &alias[..alias.find(|c| !is_name(c)).unwrap_or(alias.len())]
    });
    vec![(vec![name.to_owned()], alias.unwrap_or(name).to_owned())]
}

/// The members of a group, up to its closing brace.
fn members(group: &str) -> Vec<&str> {
    let mut members = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    // A comma after the last member.
    members.retain(|member| !member.trim().is_empty());
    members
}

pub(crate) fn without_tests_and_comments(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_module = |next: &&str| next.starts_with("mod ");
        if line == "#[cfg(test)]"
            && let Some(module) = lines.next_if(is_module)
        {
            if module.ends_with('{') {
                lines.by_ref().find(|line| *line == "}");
            }
            continue;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

fn collect(folder: &Path, module: &mut Vec<String>, files: &mut Vec<(Vec<String>, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            module.push(name);
            collect(&path, module, files);
            module.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let is_root = matches!(name.as_str(), "mod" | "lib");
            let name = (!is_root).then_some(name);
            let path_of_module = module.iter().cloned().chain(name).collect();
            files.push((path_of_module, fs::read_to_string(path).unwrap()));
        }
    }
}
