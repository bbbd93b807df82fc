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
fn the_page_names_the_variables_of_the_simulation_and_the_soak() {
    let page = read("docs/reliability.md");
    let sources = [files("tests/simulation", ".rs"), files("tests/soak", ".rs")];
    for source in sources.concat() {
        let text = read(&source);
        let variables = text.split("variable(\"").chain(text.split("env::var(\""));
        for variable in variables.filter(|text| text.starts_with("S")) {
            let name = variable.split('"').next().unwrap();
            assert!(page.contains(name), "{name}");
        }
    }
}

/// Every command of the page is a target of the Makefile, and every module of tests is compiled.
#[test]
fn the_commands_and_modules_of_the_page_exist() {
    let (page, makefile, main) = (
        read("docs/reliability.md"),
        read("Makefile"),
        read("tests/main.rs"),
    );
    let words = |text: &'static str| page.split(text).skip(1);
    let targets: BTreeSet<_> = words("`make ")
        .chain(words("$ make "))
        .map(|rest| rest.split([' ', '`', '\n']).next().unwrap())
        .collect();
    assert!(targets.len() > 5, "{targets:?}");
    for target in targets {
        assert!(makefile.contains(&format!("\n{target}: ")), "make {target}");
    }
    let quoted = page.split('`').skip(1).step_by(2);
    for name in quoted.filter(|text| text.contains("::") && !text.starts_with("domain::")) {
        let module = name.split("::").next().unwrap();
        assert!(main.contains(&format!("mod {module};\n")), "{name}");
    }
}
