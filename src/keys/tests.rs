//! Helpers of the tests of secrets files.

use super::file::parse;

/// The base64 texts of two keys.
pub(super) const A: &str = "ERERERERERERERERERERERERERERERERERERERERERE=";
pub(super) const B: &str = "S0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0tLS0s=";

/// The ids of the keys in a secrets file.
pub(super) fn ids(text: &str) -> Vec<String> {
    let keks = parse(text).unwrap();
    keks.iter().map(|kek| kek.id().to_string()).collect()
}

/// The problems of a secrets file, one on a line.
pub(super) fn problems(text: &str) -> String {
    parse(text).unwrap_err().join("\n")
}
