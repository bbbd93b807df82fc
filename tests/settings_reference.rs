//! The table of settings in docs/reference/configuration.md is the schema of the program, and the
//! program reads every setting of the schema and no other.

use std::collections::BTreeSet;

use nico_rewrap::config::SETTINGS;

use crate::documents::{check_generated, quoted, read};

const PAGE: &str = "docs/reference/configuration.md";
const HEAD: &str = "| setting | default | meaning |\n| --- | --- | --- |\n";

/// The page with the table of the schema in the place of its own.
fn with_current_table(page: &str) -> String {
    let (before, table_and_rest) = page.split_once(HEAD).unwrap();
    let (_, rest) = table_and_rest.split_once("\n\n").unwrap();
    let rows: String = SETTINGS
        .iter()
        .map(|setting| {
            let cells = [
                format!("`{}`", setting.name),
                setting.default.markdown(),
                setting.meaning.to_owned(),
            ];
            format!("| {} |\n", cells.join(" | ")).replace("|  |", "| |")
        })
        .collect();
    format!("{before}{HEAD}{rows}\n{rest}")
}

#[test]
fn the_reference_has_the_settings_of_the_schema() {
    check_generated(PAGE, &with_current_table(&read(PAGE)), "settings_reference");
}

#[test]
fn the_program_reads_every_setting_of_the_schema_and_no_other() {
    let is_name = |name: &String| name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let read: BTreeSet<_> = quoted("rewrap.").into_iter().filter(is_name).collect();
    let schema: BTreeSet<_> = SETTINGS
        .iter()
        .map(|setting| setting.name.to_owned())
        .collect();
    assert_eq!(read, schema);
}
