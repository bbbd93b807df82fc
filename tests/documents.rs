//! Checks the documents: every link and anchor exists, the README stays short, and the Debian
//! package has every page. The reference has every metric, reason and failure of the
//! program.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Checks that a page has its generated text. With `UPDATE_REFERENCE`, writes it instead.
/// `module` is the name of the test module, for the message.
pub(crate) fn check_generated(page: &str, current: &str, module: &str) {
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        std::fs::write(path, current).unwrap();
        return;
    }
    let written = read(page);
    let lines: std::collections::HashSet<_> = written.lines().collect();
    let new: Vec<_> = current
        .lines()
        .filter(|line| !lines.contains(line))
        .collect();
    assert!(
        written == current,
        "{page} is not up to date: run `UPDATE_REFERENCE=1 cargo test {module}`. New lines: {new:#?}"
    );
}

/// The files below a folder with this extension, as paths from the root of the repository.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path, ending));
        } else if path.ends_with(ending) {
            found.push(path.into());
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files("docs", ".md");
    pages.extend(["README.md", "SECURITY.md"].map(PathBuf::from));
    pages
}

/// The page without its code blocks, which contain neither links nor headings.
fn prose(page: &str) -> String {
    let pieces = page.split("```").step_by(2);
    pieces.collect::<Vec<_>>().join("\n")
}

/// The anchors that GitHub derives from the headings.
pub(crate) fn anchors(page: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(page).lines().filter(|line| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor = kept.collect::<String>().replace(' ', "-");
        assert!(anchors.insert(anchor), "two headings are {line:?}");
    }
    anchors
}

/// The targets of the links and pictures of a page.
fn links(page: &str) -> Vec<String> {
    let text = prose(page);
    let targets = text.split("](").skip(1);
    targets
        .map(|rest| rest.split(')').next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_link_and_every_anchor_exists() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        for link in links(&text) {
            if link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let from = page.display();
            let target = match path {
                "" => root().join(&page),
                path => root().join(page.parent().unwrap()).join(path),
            };
            assert!(target.exists(), "{from}: no file {link}");
            if !anchor.is_empty() {
                let anchors = anchors(&fs::read_to_string(&target).unwrap());
                assert!(anchors.contains(anchor), "{from}: no anchor {link}");
            }
        }
    }
    assert!(count > 150, "{count}");
}

#[test]
fn links_in_the_source_and_in_files_to_install_exist() {
    let mut count = 0;
    let mut sources = files("src", ".rs");
    sources.extend(files("deploy", ""));
    sources.extend(files("scripts", ".sh"));
    sources.extend(["Dockerfile", "Makefile", "Cargo.toml"].map(PathBuf::from));
    for source in sources {
        let text = read(&source);
        for rest in text.split("docs/").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"/._-#".contains(c));
            let link = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            // A pattern of the package.
            if !path.ends_with(".md") {
                continue;
            }
            count += 1;
            let page = read(Path::new("docs").join(path));
            let exists = anchor.is_empty() || anchors(&page).contains(anchor);
            assert!(exists, "{}: docs/{link}", source.display());
        }
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn the_readme_stays_short() {
    assert!(read("README.md").lines().count() <= 120);
}

#[test]
fn every_step_of_the_run_book_has_a_way_back() {
    let page = read("docs/rotate.md");
    let is_step = |section: &&str| section.starts_with(|c: char| c.is_ascii_digit());
    let steps: Vec<_> = page.split("\n## ").filter(is_step).collect();
    assert_eq!(steps.len(), 8);
    for step in steps {
        assert!(step.contains("\n**Way back:** "), "{step}");
    }
}

#[test]
fn every_page_can_be_reached_from_the_readme() {
    let mut reached = BTreeSet::new();
    let mut open = vec![root().join("README.md")];
    while let Some(page) = open.pop() {
        let page = page.canonicalize().unwrap();
        if !reached.insert(page.clone()) {
            continue;
        }
        let links = links(&fs::read_to_string(&page).unwrap());
        let paths = links.iter().map(|link| link.split('#').next().unwrap());
        let paths = paths.filter(|path| path.ends_with(".md") && !path.starts_with("https://"));
        open.extend(paths.map(|path| page.parent().unwrap().join(path)));
    }
    for page in pages() {
        let page = root().join(page).canonicalize().unwrap();
        assert!(reached.contains(&page), "{}", page.display());
    }
}

/// The first cells of the table rows in a section, split into the parts between backticks.
pub(crate) fn first_cells(page: &str, section: &str) -> BTreeSet<String> {
    let section = page.split(&format!("# {section}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    rows.flat_map(|row| {
        row.split(" | ")
            .next()
            .unwrap()
            .split('`')
            .skip(1)
            .step_by(2)
    })
    .map(str::to_owned)
    .collect()
}

/// The texts in the program's source, without its tests, between this prefix and the next quote.
pub(crate) fn quoted(prefix: &str) -> BTreeSet<String> {
    let opening = format!("\"{prefix}");
    let mut found = BTreeSet::new();
    for source in files("src", ".rs") {
        let text = read(&source);
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let pieces = code.split(&opening).skip(1);
        found.extend(pieces.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    found
}

/// The names of the metrics in the source.
pub(crate) fn metrics() -> BTreeSet<String> {
    let catalog = read("src/telemetry/catalog.rs");
    let texts = catalog.split('"').skip(1).step_by(2);
    let is_name = |text: &&str| text.contains('_') && !text.contains(' ');
    let names: BTreeSet<_> = texts.filter(is_name).map(str::to_owned).collect();
    // The second prefix is that of nico-api's own metrics.
    let prefixes = ["nico_rewrap_", "carbide_machine_identity_"];
    for name in &names {
        assert!(prefixes.iter().any(|prefix| name.starts_with(prefix)));
    }
    names
}

#[test]
fn the_reference_has_every_metric_and_no_other() {
    let page = read("docs/reference/metrics.md");
    let cells = first_cells(&page, "Metrics").into_iter();
    let documented: BTreeSet<_> = cells
        .map(|cell| cell.split('{').next().unwrap().to_owned())
        .collect();
    let metrics = metrics();
    assert!(metrics.len() > 35, "{metrics:?}");
    assert_eq!(documented, metrics);
}

/// The texts between quotes that are reasons, in the code of a source file before `end`.
fn upper_case_texts(source: &str, end: &str) -> BTreeSet<String> {
    let text = read(source);
    let code = text.split(end).next().unwrap();
    let is_reason = |piece: &&str| {
        let letters = |c: char| c.is_ascii_uppercase() || c == '_';
        piece.len() > 4 && piece.chars().all(letters)
    };
    let pieces = code.split('"').filter(is_reason);
    pieces.map(str::to_owned).collect()
}

/// The reasons of errors of calls and runs in the source.
fn reasons() -> BTreeSet<String> {
    let calls = upper_case_texts("src/api/error/reasons.rs", "#[cfg(test)]");
    let runs = upper_case_texts("src/run/silent.rs", "#[cfg(test)]");
    &calls | &runs
}

/// The reasons of failures in the source.
pub(crate) fn failure_reasons() -> BTreeSet<String> {
    let sources = [
        "src/domain/rewrap/mod.rs",
        "src/domain/verify/mod.rs",
        "src/store/error.rs",
    ];
    let found = sources.map(|source| upper_case_texts(source, "#[cfg(test)]"));
    found.into_iter().flatten().collect()
}

/// A section of a page, up to the next heading of the same or a higher level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let rest = page.split(&format!("\n### {heading}\n")).nth(1);
    let rest = rest.unwrap_or_else(|| panic!("no section {heading}"));
    rest.split("\n## ")
        .next()
        .unwrap()
        .split("\n### ")
        .next()
        .unwrap()
}

fn assert_says_what_to_do(section: &str, heading: &str) {
    for word in ["* **Symptom:**", "* **Cause:**", "* **Command:**"] {
        assert!(section.contains(word), "{heading}: no {word}");
    }
}

#[test]
fn every_reason_is_in_the_reference_and_has_a_section_in_troubleshooting() {
    let (errors, troubleshooting) = (
        read("docs/reference/errors.md"),
        read("docs/troubleshooting.md"),
    );
    let reasons = reasons();
    assert!(reasons.len() > 20, "{reasons:?}");
    for reason in &reasons {
        let anchor = reason.to_lowercase();
        let linked = format!("[`{reason}`](../troubleshooting.md#{anchor})");
        assert!(errors.contains(&linked), "{reason}");
        assert_says_what_to_do(section(&troubleshooting, reason), reason);
    }
    assert_eq!(
        headings(&troubleshooting, "Errors of calls and runs"),
        reasons
    );
}

/// The headings of a part of a page.
fn headings(page: &str, part: &str) -> BTreeSet<String> {
    let part = page.split(&format!("\n## {part}\n")).nth(1).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let headings = part.lines().filter_map(|line| line.strip_prefix("### "));
    headings.map(str::to_owned).collect()
}

#[test]
fn every_failure_reason_is_in_the_reference_and_has_a_section_in_troubleshooting() {
    let (errors, troubleshooting) = (
        read("docs/reference/errors.md"),
        read("docs/troubleshooting.md"),
    );
    let table = errors.split("\n## Failures\n").nth(1).unwrap();
    let rows: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let mut linked = BTreeSet::new();
    for row in rows {
        let mut quoted = row.split('`').skip(1).step_by(2);
        let (text, reason) = (quoted.next().unwrap(), quoted.next().unwrap());
        let anchor = reason.to_lowercase();
        let link = format!("[`{reason}`](../troubleshooting.md#{anchor})");
        assert!(row.contains(&link), "{row}");
        let section = section(&troubleshooting, reason);
        assert_says_what_to_do(section, reason);
        let text = text.split('…').next().unwrap().trim_end();
        assert!(
            section.replace("\n  ", " ").contains(&format!("`{text}")),
            "{reason}: not about {text}"
        );
        linked.insert(reason.to_owned());
    }
    let parts = ["Failures in a report", "Failures of a verify"];
    let parts = parts.map(|part| headings(&troubleshooting, part));
    assert_eq!(&parts[0] | &parts[1], linked);
    assert_eq!(linked, failure_reasons());
}

#[test]
fn the_debian_package_has_every_page_and_picture() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array();
    let assets: Vec<_> = assets
        .unwrap()
        .iter()
        .filter_map(toml::Value::as_array)
        .collect();
    let mut documents = pages();
    for ending in [".svg", ".png"] {
        documents.extend(files("docs/pictures", ending));
    }
    for document in documents {
        let (folder, ending) = (document.parent().unwrap(), document.extension().unwrap());
        let pattern = folder.join("*").with_extension(ending);
        let sources = [document.clone(), pattern];
        let target = Path::new("usr/share/doc/nico-rewrap").join(folder);
        let packed = assets.iter().any(|asset| {
            let (source, to) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
            sources.contains(&source.into())
                && to.trim_end_matches('/') == target.to_str().unwrap().trim_end_matches('/')
        });
        assert!(packed, "{}", document.display());
    }
}

#[test]
fn pictures_have_a_description_and_colours_for_a_dark_page() {
    for picture in files("docs/pictures", ".svg") {
        let text = read(&picture);
        for part in ["<title id=", "<desc id=", "prefers-color-scheme: dark"] {
            assert!(text.contains(part), "{}: no {part}", picture.display());
        }
    }
}
