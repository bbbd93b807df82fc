//! The file to which receipts are appended, one line for each.
//!
//! The lines form a chain of their own: the file has only the receipts of this instance, while
//! the chain in the schema `nico_rewrap` has those of all instances.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::receipt::{Receipt, sha256};

/// Number of bytes at the end of the file that are read first to find the last line. A receipt has
/// a few kilobytes, or more with very many keys.
const FIRST_READ: u64 = 64 << 10;

/// Appends a receipt after the last one in the file. If this fails, the file keeps its content. A
/// part of a line at its end, from a process that was killed, is removed.
///
/// # Errors
///
/// If the file cannot be opened or written.
pub fn append(path: &Path, receipt: &Receipt) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true).mode(0o600);
    let mut file = options.open(path)?;
    // Another process may append to the same file.
    file.lock()?;
    let (length, last) = last_line(&mut file)?;
    if length < file.metadata()?.len() {
        tracing::warn!(
            file = %path.display(),
            "the last line of [rewrap].receipt_log is not complete, so it is removed"
        );
        file.set_len(length)?;
    }
    let previous = last.map_or_else(String::new, |line| sha256(&line));
    let (document, _) = receipt.seal(&previous);
    let written = file
        .write_all(format!("{document}\n").as_bytes())
        .and_then(|()| file.sync_data());
    if written.is_err() {
        // A part of the line may be in the file. If it stays, the next receipt removes it.
        let _ = file.set_len(length);
    }
    written
}

/// The total length of the complete lines of the file, and the last complete line.
fn last_line(file: &mut File) -> io::Result<(u64, Option<String>)> {
    let length = file.metadata()?.len();
    let mut read = FIRST_READ;
    loop {
        let start = length.saturating_sub(read);
        file.seek(SeekFrom::Start(start))?;
        let mut end = Vec::new();
        (&*file).take(length - start).read_to_end(&mut end)?;
        let feeds = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n');
        if let Some(last) = feeds(&end) {
            let before = feeds(&end[..last]);
            if before.is_some() || start == 0 {
                let line = &end[before.map_or(0, |feed| feed + 1)..last];
                let line = String::from_utf8_lossy(line).into_owned();
                return Ok((start + last as u64 + 1, Some(line)));
            }
        } else if start == 0 {
            return Ok((0, None));
        }
        read *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(content: &[u8]) -> (u64, Option<String>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        last_line(&mut file).unwrap()
    }

    #[test]
    fn the_last_complete_line_is_found_at_any_length() {
        let some = |line: &str| Some(line.to_owned());
        assert_eq!(found(b""), (0, None));
        assert_eq!(found(b"part"), (0, None));
        assert_eq!(found(b"one\n"), (4, some("one")));
        assert_eq!(found(b"one\ntwo\npart"), (8, some("two")));
        let long = "x".repeat(3 * FIRST_READ as usize);
        assert_eq!(
            found(format!("one\n{long}\npart").as_bytes()),
            (long.len() as u64 + 5, some(&long))
        );
        assert_eq!(found(format!("one\n{long}").as_bytes()), (4, some("one")));
    }
}
