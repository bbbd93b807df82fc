//! Finds the blocks of a PEM file (RFC 7468), and refuses a file with text that looks like a
//! block but is not one.
//!
//! Common PEM readers ignore a block that they can't read. This module must not, because the
//! block may be the list that revokes a certificate. The rules are therefore strict. nico-api
//! reads the same files with a common reader, so a file that is accepted here should have the
//! same meaning there.

use thiserror::Error;

/// A block, from its BEGIN line to its END line.
pub(super) struct Block<'a> {
    /// The line number of the BEGIN line; the first line is 1.
    pub(super) line: usize,
    /// The text between `-----BEGIN ` and `-----`.
    pub(super) label: &'a [u8],
    /// The block with its BEGIN and END lines.
    pub(super) text: &'a [u8],
    /// Whether the block has header lines (RFC 1421), such as `Proc-Type: 4,ENCRYPTED`.
    pub(super) has_headers: bool,
}

/// Why a line makes a file unusable. The messages never quote the file, which may hold a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SyntaxError {
    /// The bytes EF BB BF before the text.
    #[error("the file begins with a byte order mark: save it as UTF-8 without one")]
    ByteOrderMark,
    /// NUL bytes, as in UTF-16.
    #[error("the file holds NUL bytes, so it is not a text file: save it as ASCII or UTF-8")]
    Nul,
    /// White space before a BEGIN or END line.
    #[error(
        "the BEGIN or END line is indented: remove the white space before it and before the other \
         lines of the block"
    )]
    Indented,
    /// Other text before a BEGIN or END line.
    #[error(
        "a BEGIN or END line starts in the middle of this line: put a line break before it (the \
         two characters \\n are not a line break)"
    )]
    Joined,
    /// A BEGIN or END line that does not end with its dashes.
    #[error(
        "the BEGIN or END line is malformed: it must look like -----BEGIN CERTIFICATE-----, with \
         five dashes at both ends and nothing after them"
    )]
    Boundary,
    /// The file ends, or another block begins, in the middle of a block.
    #[error("the block that begins here has no END line: the file is damaged or incomplete")]
    NoEnd,
    /// The END line has another label than the BEGIN line.
    #[error("the block that begins here has an END line with another label")]
    OtherEnd,
    /// An END line outside of any block.
    #[error("this END line has no BEGIN line: the file is damaged")]
    NoBegin,
    /// A line outside of any block looks like part of one.
    #[error(
        "this line looks like part of a block, but there is no BEGIN line such as \
         -----BEGIN CERTIFICATE----- before it"
    )]
    Outside,
}

/// Labels by which [`is_damaged_boundary`] recognizes a damaged BEGIN or END line.
const LABELS: [&[u8]; 6] = [
    b"CERTIFICATE",
    b"TRUSTED CERTIFICATE",
    b"X509 CERTIFICATE",
    b"X509 CRL",
    b"PRIVATE KEY",
    b"PKCS7",
];

const BEGIN: &[u8] = b"-----BEGIN";
const END: &[u8] = b"-----END";

/// All blocks of `bytes`, or the number of the first invalid line.
pub(super) fn blocks(bytes: &[u8]) -> Result<Vec<Block<'_>>, (usize, SyntaxError)> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err((1, SyntaxError::ByteOrderMark));
    }
    let mut blocks = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for line in lines(bytes) {
        let (number, text) = (line.number, line.text(bytes));
        let wrong = |error| Err((number, error));
        if text.contains(&0) {
            return wrong(SyntaxError::Nul);
        }
        if text.starts_with(BEGIN) {
            let label = label(text, BEGIN).map_err(|error| (number, error))?;
            if let Some(open) = open {
                return Err((open.line, SyntaxError::NoEnd));
            }
            open = Some(Block {
                line: number,
                label,
                text: &bytes[line.start..],
                has_headers: false,
            });
        } else if text.starts_with(END) {
            let label = label(text, END).map_err(|error| (number, error))?;
            let Some(mut block) = open.take() else {
                return wrong(SyntaxError::NoBegin);
            };
            if block.label != label {
                return Err((block.line, SyntaxError::OtherEnd));
            }
            let start = bytes.len() - block.text.len();
            block.text = &bytes[start..line.end];
            blocks.push(block);
        } else if contains(text, BEGIN) || contains(text, END) {
            let trimmed = text.trim_ascii_start();
            let is_first = trimmed.starts_with(BEGIN) || trimmed.starts_with(END);
            return wrong(if is_first {
                SyntaxError::Indented
            } else {
                SyntaxError::Joined
            });
        } else if let Some(block) = &mut open {
            block.has_headers |= text.contains(&b':');
        } else if is_base64(text) || is_damaged_boundary(text) {
            return wrong(SyntaxError::Outside);
        }
    }
    match open {
        Some(open) => Err((open.line, SyntaxError::NoEnd)),
        None => Ok(blocks),
    }
}

struct Line {
    number: usize,
    start: usize,
    end: usize,
}

impl Line {
    fn text<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start..self.end]
    }
}

/// Lines end with LF, CR LF, or CR alone.
fn lines(bytes: &[u8]) -> impl Iterator<Item = Line> {
    let (mut start, mut number) = (0, 0);
    std::iter::from_fn(move || {
        if start == bytes.len() {
            return None;
        }
        number += 1;
        let rest = &bytes[start..];
        let length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let length = length.unwrap_or(rest.len());
        let line = Line {
            number,
            start,
            end: start + length,
        };
        start = line.end
            + match &rest[length..] {
                [b'\r', b'\n', ..] => 2,
                [_, ..] => 1,
                [] => 0,
            };
        Some(line)
    })
}

/// The label of a line that starts with `prefix`.
fn label<'a>(line: &'a [u8], prefix: &[u8]) -> Result<&'a [u8], SyntaxError> {
    let rest = &line[prefix.len()..];
    if contains(rest, BEGIN) || contains(rest, END) {
        return Err(SyntaxError::Joined);
    }
    let end = rest
        .iter()
        .rposition(|byte| *byte != b' ')
        .map_or(0, |last| last + 1);
    let label = rest[..end]
        .strip_prefix(b" ")
        .and_then(|rest| rest.strip_suffix(b"-----"))
        .ok_or(SyntaxError::Boundary)?;
    if label.is_empty() || label.contains(&b'-') {
        return Err(SyntaxError::Boundary);
    }
    Ok(label)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Whether the line looks like base64 from the body of a block, whose lines have 64 or 76
/// characters. A long line without digits, or with letters of one case only, is something else:
/// a hexadecimal fingerprint, or a separator between two sections.
fn is_base64(line: &[u8]) -> bool {
    // Characters that surround base64 when it is quoted, commented out or part of a list.
    let quoting = |byte: &u8| b" \t\"'>#,|\\".contains(byte);
    let first = line.iter().position(|byte| !quoting(byte));
    let last = line.iter().rposition(|byte| !quoting(byte));
    let (Some(first), Some(last)) = (first, last) else {
        return false;
    };
    let text = line[first..=last].trim_ascii_end();
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let text = &text[..text.len() - padding.min(2)];
    let has = |class: fn(&u8) -> bool| text.iter().any(class);
    text.len() >= 60
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
        && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_digit)
}

/// Whether the line is a BEGIN or END line with a wrong number or kind of dashes, or with
/// letters in the wrong case.
fn is_damaged_boundary(line: &[u8]) -> bool {
    // In UTF-8, the bytes of other dashes than `-` are not ASCII.
    let dash = |byte: &u8| *byte == b'-' || !byte.is_ascii();
    if !line.iter().any(dash) {
        return false;
    }
    let edge = |byte: &u8| dash(byte) || byte.is_ascii_whitespace();
    let first = line.iter().position(|byte| !edge(byte));
    let last = line.iter().rposition(|byte| !edge(byte));
    let (Some(first), Some(last)) = (first, last) else {
        return false;
    };
    let text = line[first..=last].to_ascii_uppercase();
    let rest = [&b"BEGIN "[..], b"END "]
        .iter()
        .find_map(|word| text.strip_prefix(*word));
    rest.is_some_and(|rest| LABELS.contains(&rest) || rest.ends_with(b"PRIVATE KEY"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECES: [&str; 14] = [
        "-----BEGIN ",
        "-----END ",
        "X-----",
        "-----",
        "X",
        "-",
        "\n",
        "\n",
        "\r\n",
        "\r",
        " ",
        "AAAA",
        ":",
        "\u{feff}",
    ];

    proptest! {
        /// In an accepted file, every BEGIN and END line belongs to a block.
        #[test]
        fn every_begin_is_a_block(pieces in prop::collection::vec(0..PIECES.len(), 0..24)) {
            let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
            let twice = format!("{text}{BLOCK}");
            for text in [text, twice] {
                let begins = text.matches("-----BEGIN").count();
                let ends = text.matches("-----END").count();
                if let Ok(blocks) = blocks(text.as_bytes()) {
                    prop_assert_eq!((blocks.len(), blocks.len()), (begins, ends), "{:?}", text);
                }
            }
        }
    }

    const BLOCK: &str = "-----BEGIN X-----\nAAAA\n-----END X-----\n";

    fn found(text: &str) -> Result<Vec<(usize, String)>, (usize, SyntaxError)> {
        let text_of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let blocks = blocks(text.as_bytes())?;
        Ok(blocks
            .iter()
            .map(|block| (block.line, text_of(block.label)))
            .collect())
    }

    #[test]
    fn text_around_blocks_is_allowed() {
        let with = |between: &str| format!("{BLOCK}{between}{BLOCK}");
        let rule = "=".repeat(70);
        let hex = "0123456789abcdef".repeat(4);
        for between in [
            "",
            "\n\n",
            "# 2026, subject=CN = x -----\n",
            "Bag Attributes\n    localKeyID: 54 69\n",
            &format!("GlobalSign Root CA\n{rule}\n"),
            &format!("{hex}\n"),
            "--- begin of the list of CAs ---\n",
            "   30:45:02:21:00:AB\n",
        ] {
            let lines = between.matches('\n').count();
            let expected = vec![(1, "X".to_owned()), (4 + lines, "X".to_owned())];
            assert_eq!(found(&with(between)), Ok(expected), "{between:?}");
        }
        let endings = [BLOCK.replace('\n', "\r\n"), BLOCK.replace('\n', "\r")];
        for text in endings
            .iter()
            .chain([&BLOCK.replace("-----\n", "-----  \n")])
        {
            let twice = [&text[..], text].concat();
            assert_eq!(found(&twice).unwrap()[1].0, 4, "{text:?}");
        }
        assert_eq!(found(BLOCK.trim_end()).unwrap().len(), 1);
        assert!(found("").unwrap().is_empty());
    }

    #[test]
    fn text_that_looks_like_a_block_but_is_not_one_is_an_error() {
        use SyntaxError as E;
        let indented: String = BLOCK.lines().map(|line| format!("  {line}\n")).collect();
        let body = "MIIBszCCAVmgAwIBAgIUSGVsbG8wMTIzNDU2Nzg5YWJjZGVmMAoGCCqGSM49BAMCZ\n";
        let dashes = BLOCK.replace("X", "CERTIFICATE");
        for (text, line, error) in [
            (format!("\u{feff}{BLOCK}"), 1, E::ByteOrderMark),
            (format!("{BLOCK}\u{feff}{BLOCK}"), 4, E::Joined),
            (format!("{}{BLOCK}", BLOCK.trim_end()), 3, E::Joined),
            (format!("{BLOCK}{indented}"), 4, E::Indented),
            (format!("{BLOCK}\u{a0}{BLOCK}"), 4, E::Joined),
            (format!("{BLOCK}# {BLOCK}"), 4, E::Joined),
            (format!("{BLOCK}x\0y\n"), 4, E::Nul),
            (BLOCK.replace("N X-----", "N X----"), 1, E::Boundary),
            (BLOCK.replace("N X-----", "N X------"), 1, E::Boundary),
            (BLOCK.replace("N X-----", "N -----"), 1, E::Boundary),
            (BLOCK.replace("N X-----", "N-----"), 1, E::Boundary),
            (BLOCK.replace("X-----\nA", "X-----A"), 1, E::Boundary),
            (BLOCK.replace("A\n---", "A---"), 2, E::Joined),
            (BLOCK.replace('\n', "\\n"), 1, E::Joined),
            (BLOCK.replace("END X", "END Y"), 1, E::OtherEnd),
            (BLOCK.replace("-----END", "----END"), 1, E::NoEnd),
            (BLOCK.replace("-----BEGIN", "----BEGIN"), 3, E::NoBegin),
            (format!("{BLOCK}{}", &BLOCK[..23]), 4, E::NoEnd),
            (format!("{}{BLOCK}", &BLOCK[..23]), 1, E::NoEnd),
            (format!("{BLOCK}\n{body}"), 5, E::Outside),
            (format!("{BLOCK}> {body}"), 4, E::Outside),
            (dashes.replace("-----", "----"), 1, E::Outside),
            (dashes.replace("-----", "\u{2014}--"), 1, E::Outside),
            (dashes.to_lowercase(), 1, E::Outside),
        ] {
            assert_eq!(found(&text), Err((line, error)), "{text:?}");
        }
    }
}
