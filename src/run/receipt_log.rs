//! The file to which receipts are appended, one line for each.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::receipt::{Receipt, sha256};

/// How far from the end of the file its last line is searched. A receipt has a few
/// kilobytes, more with very many keys.
const LAST_LINE_BYTES: u64 = 1 << 20;

/// Appends a line that is already part of a chain.
///
/// # Errors
///
/// If the file cannot be opened for appending or written.
pub fn append(path: &Path, document: &str) -> io::Result<()> {
    let mut file = open(path)?;
    file.write_all(format!("{document}\n").as_bytes())?;
    file.sync_data()
}

/// Appends a receipt after the last one in the file.
///
/// # Errors
///
/// As [`append`].
pub fn append_to_chain(path: &Path, receipt: &Receipt) -> io::Result<()> {
    let previous = last_line(path)?.map_or_else(String::new, |line| sha256(&line));
    let (document, _) = receipt.seal(&previous);
    append(path, &document)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600).open(path)
}

/// The last complete line of the file. `None` if there is no file or no line.
fn last_line(path: &Path) -> io::Result<Option<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINE_BYTES)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let text = String::from_utf8_lossy(&end);
    Ok(text.lines().last().map(str::to_owned))
}
