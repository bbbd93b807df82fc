//! Everything in `proto/` has a comment: services, methods, messages, fields, oneofs, enums and
//! their values.

use std::path::Path;

use crate::documents::{files, read};

/// The name of what a line declares, if it declares something.
fn declared(line: &str) -> Option<String> {
    let line = line.trim();
    let word = line.split_whitespace().next()?;
    let is_block = ["service", "message", "enum", "oneof", "rpc"].contains(&word);
    // A field or a value of an enum: `type name = 1;` or `NAME = 1;`.
    let is_numbered = line.split(" = ").nth(1).is_some_and(|number| {
        let digits = number.trim_end_matches(';');
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    (is_block || is_numbered).then(|| line.to_owned())
}

#[test]
fn every_declaration_has_a_comment() {
    let mut count = 0;
    for file in files("proto", ".proto") {
        let text = read(&file);
        let mut before = "";
        for line in text.lines() {
            if let Some(declared) = declared(line) {
                count += 1;
                let has_comment = before.trim().starts_with("// ");
                assert!(has_comment, "{}: no comment: {declared}", file.display());
            }
            before = line;
        }
    }
    assert!(count > 150, "{count}");
}

#[test]
fn the_comments_of_our_proto_are_sentences() {
    let text = read(Path::new("proto/nico/rewrap/v1/rewrap.proto"));
    let mut before: Option<&str> = None;
    for line in text.lines().map(str::trim) {
        if let (Some(comment), false) = (before, line.starts_with("//")) {
            assert!(comment.ends_with(['.', ':']), "{comment}");
        }
        before = line.strip_prefix("// ");
    }
}
