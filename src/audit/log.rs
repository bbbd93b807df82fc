//! Writes audit records to a file, or to standard error together with the log.
//!
//! The server appends each line to the file with one write. It flushes the two lines of a
//! call that may access the database, as the changes of such a call are durable, too. It does
//! not flush the records of refused calls, so that refused clients cannot slow down the disk.
//!
//! On standard error, a record is like a line of the log: no call waits for it, and the server
//! drops and counts it if standard error is not read. A site that needs every record must
//! configure a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::record::{Outcome, Record};
use crate::{regular_file, telemetry};

/// Time limit for writing a line, after which the line counts as not written. A write to an
/// unreachable file server, or to a full pipe, may never end.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// `[rewrap].audit_log` and `[rewrap].audit_required`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditOptions {
    /// The audit log file; `None` for standard error.
    pub file: Option<PathBuf>,
    /// Whether to refuse a call if its record cannot be written.
    pub required: bool,
}

/// The audit log is required and could not be written.
#[derive(Debug)]
pub(crate) struct NotRecorded;

/// The audit log. All clones write to the same file.
#[derive(Debug, Clone)]
pub struct AuditLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: Option<PathBuf>,
    required: bool,
    /// The mutex lets one line in at a time. `reopen` replaces the whole mutex, since a write
    /// that hangs would hold it.
    open: RwLock<Arc<Mutex<Open>>>,
}

#[derive(Debug)]
struct Open {
    /// `None` for standard error.
    file: Option<(PathBuf, File)>,
    /// Whether the last line was written only in part.
    torn: bool,
}

/// Checks that the file can be opened for appending. Creates it if it does not exist.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    open(path).map(|_| ())
}

impl AuditLog {
    /// Opens the file. Creates it with mode 0640 if it does not exist.
    ///
    /// # Errors
    ///
    /// If the file can't be opened for appending.
    pub fn open(options: &AuditOptions) -> io::Result<Self> {
        let file = options.file.as_deref().map(opened).transpose()?;
        Ok(Self(Arc::new(Inner {
            path: options.file.clone(),
            required: options.required,
            open: RwLock::new(Open::new(file)),
        })))
    }

    /// Reopens the file after a log rotation. If that fails, the log continues with the open
    /// file, as long as a file exists at the path.
    pub fn reopen(&self) {
        let Some(path) = &self.0.path else { return };
        match opened(path) {
            Ok(file) => {
                *self.0.open.write().unwrap_or_else(PoisonError::into_inner) =
                    Open::new(Some(file));
                tracing::info!(file = %path.display(), "audit log reopened");
            }
            Err(error) => {
                tracing::error!(
                    file = %path.display(),
                    %error,
                    "[rewrap].audit_log can't be reopened: records continue in the open file while a file exists at this path; correct the path or its permissions, then send SIGHUP"
                );
            }
        }
    }

    /// Writes the line `call started`, before the call accesses the database.
    ///
    /// # Errors
    ///
    /// [`NotRecorded`] if the log is required and cannot be written.
    pub(crate) async fn started(&self, record: &Record) -> Result<(), NotRecorded> {
        if self.0.path.is_none() {
            // On standard error, the log line `run started` serves this purpose.
            return Ok(());
        }
        record.begin();
        match self.append(record.started(), true).await {
            Err(()) if self.0.required => Err(NotRecorded),
            Ok(()) | Err(()) => Ok(()),
        }
    }

    /// Writes the record of a finished call, and logs the failures of its run.
    pub(crate) async fn ended(&self, record: Record, duration: Duration, outcome: &Outcome) {
        record.log_failures();
        telemetry::call_ended(outcome.name, record.identity_kind(), duration);
        let line = record.ended(duration, outcome);
        let written = self.append(line.clone(), record.has_begun()).await;
        if written.is_err() && self.0.path.is_some() {
            // The record must not be lost.
            let _ = telemetry::write_line(&line);
        }
    }

    /// Appends a line. Logs and counts an error.
    async fn append(&self, line: String, flush: bool) -> Result<(), ()> {
        let Err(error) = self.0.append(line, flush).await else {
            return Ok(());
        };
        telemetry::audit_failed();
        match &self.0.path {
            Some(_) => tracing::error!(
                %error,
                "can't write an audit record to [rewrap].audit_log: check the file and its disk"
            ),
            None => tracing::error!(%error, "can't write an audit record to standard error"),
        }
        Err(())
    }
}

impl Inner {
    fn open(&self) -> Arc<Mutex<Open>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.clone()
    }

    async fn append(&self, line: String, flush: bool) -> io::Result<()> {
        if self.path.is_none() {
            return telemetry::write_line(&line);
        }
        let open = self.open();
        let deadline = Instant::now() + WRITE_TIMEOUT;
        let written = timeout_at(deadline, async {
            // Waits for the lock here and not in the thread, so that at most one thread hangs.
            let mut open = open.lock_owned().await;
            tokio::task::spawn_blocking(move || open.append(&line, flush)).await
        });
        match written.await {
            Ok(written) => written.unwrap_or_else(|panicked| Err(io::Error::other(panicked))),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Open {
    fn new(file: Option<(PathBuf, File)>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { file, torn: false }))
    }

    fn append(&mut self, line: &str, flush: bool) -> io::Result<()> {
        let Some((path, file)) = &mut self.file else {
            return telemetry::write_line(line);
        };
        // Nobody can read a deleted file, so create it again. Checks the path, too: on NFS and
        // FUSE, a deleted file keeps its link count while it is open.
        if file.metadata()?.nlink() == 0 || !path.try_exists()? {
            *file = open(path)?;
            self.torn = false;
        }
        // Ends a line that a full disk cut off, so that this line stays readable.
        let line = if self.torn {
            format!("\n{line}")
        } else {
            line.to_owned()
        };
        self.torn = true;
        file.write_all(line.as_bytes())?;
        self.torn = false;
        if !flush {
            return Ok(());
        }
        match file.sync_data() {
            // A pipe or a device cannot be flushed.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            flushed => flushed,
        }
    }
}

fn opened(path: &Path) -> io::Result<(PathBuf, File)> {
    Ok((path.to_owned(), open(path)?))
}

/// Opens the file, with a time limit: its file server may be unreachable.
fn open(path: &Path) -> io::Result<File> {
    let file = path.to_owned();
    regular_file::bounded(path, WRITE_TIMEOUT, move || open_here(&file))
}

fn open_here(path: &Path) -> io::Result<File> {
    // Without this, opening a FIFO waits for a reader. With it, a FIFO without one is an error.
    let nonblocking = OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(nonblocking.bits().cast_signed())
        .open(path)
        .map_err(|error| explained(path, error))?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - nonblocking)?;
    Ok(file)
}

/// Adds the cause to the error, if the path is a FIFO without a reader or a socket: the
/// system's error text names neither.
fn explained(path: &Path, error: io::Error) -> io::Error {
    let file = std::fs::metadata(path).map(|metadata| metadata.file_type());
    let what = match file {
        Ok(file) if file.is_fifo() => "it is a FIFO, and no process reads it",
        Ok(file) if file.is_socket() => "it is a socket, not a regular file",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
