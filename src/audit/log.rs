//! Where records go: a file of their own, or standard error along with the log.
//!
//! A line is one write to a file that is opened for appending. The line before a
//! call touches anything, and the last one of such a call, are flushed to the disk:
//! what they tell of is durable too, and such calls are few. Refusals are not, or
//! whoever is refused would set the pace of the disk.
//!
//! On standard error a record is a line like those of the log: nobody waits for it, and it is
//! dropped and counted if standard error is not read. A site that needs every record
//! configures a file.

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

/// How long a disk may take for a line before it counts as not written. A file server
/// that is gone, or a pipe that nobody empties, takes for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// `[rewrap].audit_log` and `[rewrap].audit_required`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditOptions {
    /// The file; `None` for standard error.
    pub file: Option<PathBuf>,
    /// Whether calls are refused that the file can't take a record of.
    pub required: bool,
}

/// The audit log is required and took no line.
#[derive(Debug)]
pub(crate) struct NotRecorded;

/// The audit log. Clones write to the same one.
#[derive(Debug, Clone)]
pub struct AuditLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: Option<PathBuf>,
    required: bool,
    /// One line at a time. Replaced as a whole, as the last line may be stuck.
    open: RwLock<Arc<Mutex<Open>>>,
}

#[derive(Debug)]
struct Open {
    /// `None` for standard error.
    file: Option<(PathBuf, File)>,
    /// The last line was written in part.
    torn: bool,
}

/// Whether the file can be written to; it is created if it is not there.
pub(crate) fn check(path: &Path) -> io::Result<()> {
    open(path).map(|_| ())
}

impl AuditLog {
    /// Opens the file, or creates it for its owner and group to read.
    ///
    /// # Errors
    ///
    /// When it can't be opened for appending.
    pub fn open(options: &AuditOptions) -> io::Result<Self> {
        let file = options.file.as_deref().map(opened).transpose()?;
        Ok(Self(Arc::new(Inner {
            path: options.file.clone(),
            required: options.required,
            open: RwLock::new(Open::new(file)),
        })))
    }

    /// Opens the file again, which somebody may have renamed; where that fails, goes on
    /// with the one that is open, for as long as there is something at the path.
    pub fn reopen(&self) {
        let Some(path) = &self.0.path else { return };
        match opened(path) {
            Ok(file) => {
                *self.0.open.write().unwrap_or_else(PoisonError::into_inner) =
                    Open::new(Some(file));
                tracing::info!(file = %path.display(), "audit log opened again");
            }
            Err(error) => {
                tracing::error!(
                    file = %path.display(),
                    %error,
                    "[rewrap].audit_log can't be opened again: records go on to the file that is open, if it is still at its path"
                );
            }
        }
    }

    /// A call is about to touch the database.
    ///
    /// # Errors
    ///
    /// [`NotRecorded`] if the log is required, and takes no line.
    pub(crate) async fn started(&self, record: &Record) -> Result<(), NotRecorded> {
        if self.0.path.is_none() {
            // The log has a line of its own for this.
            return Ok(());
        }
        record.begin();
        match self.append(record.started(), true).await {
            Err(()) if self.0.required => Err(NotRecorded),
            Ok(()) | Err(()) => Ok(()),
        }
    }

    /// A call ended: writes its record, and the failures of the run to the log.
    pub(crate) async fn ended(&self, record: Record, duration: Duration, outcome: &Outcome) {
        record.log_failures();
        telemetry::call_ended(outcome.name, record.identity_kind(), duration);
        let line = record.ended(duration, outcome);
        let written = self.append(line.clone(), record.has_begun()).await;
        if written.is_err() && self.0.path.is_some() {
            // Better there than nowhere.
            let _ = telemetry::write_line(&line);
        }
    }

    /// What goes wrong is told in the log, and counted.
    async fn append(&self, line: String, flush: bool) -> Result<(), ()> {
        let Err(error) = self.0.append(line, flush).await else {
            return Ok(());
        };
        telemetry::audit_failed();
        match &self.0.path {
            Some(_) => tracing::error!(%error, "[rewrap].audit_log can't be written to"),
            None => tracing::error!(%error, "a record can't be written to standard error"),
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
            // Waited for here, so that no more than one thread is ever stuck.
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
        // Deleted, and nobody would ever read the line. The path is asked as well: a
        // deleted file keeps its link over NFS and on FUSE while it is open.
        if file.metadata()?.nlink() == 0 || !path.try_exists()? {
            *file = open(path)?;
            self.torn = false;
        }
        // A line that a full disk cut off ends here, and spoils no other.
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
            // Nothing to flush: a pipe, or a device.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            flushed => flushed,
        }
    }
}

fn opened(path: &Path) -> io::Result<(PathBuf, File)> {
    Ok((path.to_owned(), open(path)?))
}

/// Bounded in time: the file may be on a server that is gone.
fn open(path: &Path) -> io::Result<File> {
    let file = path.to_owned();
    regular_file::bounded(path, WRITE_TIMEOUT, move || open_here(&file))
}

fn open_here(path: &Path) -> io::Result<File> {
    // A pipe that nobody reads is then an error, and would be waited for otherwise.
    let waits_not = OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(waits_not.bits().cast_signed())
        .open(path)
        .map_err(|error| explained(path, error))?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - waits_not)?;
    Ok(file)
}

/// The system's words for a FIFO without a reader, or a socket, say nothing of either.
fn explained(path: &Path, error: io::Error) -> io::Error {
    let file = std::fs::metadata(path).map(|metadata| metadata.file_type());
    let what = match file {
        Ok(file) if file.is_fifo() => "it is a FIFO, and no process reads it",
        Ok(file) if file.is_socket() => "it is a socket, not a regular file",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
