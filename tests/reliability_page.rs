//! The tests that `docs/reliability.md` names exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::documents::{files, read};

/// The code of a test module, or of a module of `src/` for a path that begins there.
fn module(path: &[&str]) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (top, rest) = path.split_first()?;
    if *top == "domain" {
        let file = root.join("src/domain").join(rest.first()?);
        return ["mod.rs", "tests.rs"]
            .map(|name| fs::read_to_string(file.join(name)).ok())
            .into_iter()
            .flatten()
            .reduce(|all, next| all + &next)
            .or_else(|| fs::read_to_string(file.with_extension("rs")).ok());
    }
    let file = root.join("tests").join(top);
    fs::read_to_string(file.with_extension("rs"))
        .or_else(|_| fs::read_to_string(file.join("mod.rs")))
        .ok()
}

#[test]
fn every_test_that_the_page_names_exists() {
    let page = read("docs/reliability.md");
    let quoted = page.split('`').skip(1).step_by(2);
    let named: BTreeSet<_> = quoted.filter(|text| text.contains("::")).collect();
    assert!(named.len() > 50, "{}", named.len());
    for name in named {
        let parts: Vec<_> = name.split("::").collect();
        let (test, path) = parts.split_last().unwrap();
        let code = module(path).unwrap_or_else(|| panic!("no module {name}"));
        let exists = test.is_empty() || code.contains(&format!("fn {test}("));
        assert!(exists, "no test {name}");
    }
}

#[test]
fn the_page_names_the_settings_of_the_simulation() {
    let page = read("docs/reliability.md");
    for source in files("tests/simulation", ".rs") {
        let text = read(&source);
        for seed in text.split("variable(\"").skip(1) {
            let name = seed.split('"').next().unwrap();
            assert!(page.contains(name), "{name}");
        }
    }
}
