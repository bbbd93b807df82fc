//! Reads whole files: configuration, keys, certificates, policies.
//!
//! A file that is not a regular file can block its reader forever: a FIFO waits for a
//! writer, and a terminal waits for input. Such a file is refused before it is opened. A
//! regular file on a dead server blocks in the kernel, where nothing can interrupt the
//! reader. So every file is read in its own thread, and after [`READ_TIMEOUT`] the caller
//! stops waiting for that thread.

use std::{
    collections::HashMap,
    fs::{FileType, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Time limit for reading one file.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a stuck thread prevents further reads of the same file. The pause doubles with
/// each stuck thread up to [`LONGEST_PAUSE`], so that a server that is gone for days does
/// not cost a thread at every reload.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Stack size of a thread that only reads.
const STACK_BYTES: usize = 128 << 10;

/// Reads the whole file at `path`. It must be a regular file of at most `max_bytes`.
///
/// # Errors
///
/// The error of the system, or one that says what kind of file it is.
/// [`io::ErrorKind::TimedOut`] after [`READ_TIMEOUT`]. The text does not contain the path.
pub(crate) fn read(path: &Path, max_bytes: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = path.to_owned();
    bounded(path, READ_TIMEOUT, move || read_here(&file, max_bytes))
}

/// Reads the file as text.
///
/// # Errors
///
/// As [`read`], and [`io::ErrorKind::InvalidData`] if the file is not UTF-8.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> io::Result<Zeroizing<String>> {
    let bytes = read(path, max_bytes)?;
    match std::str::from_utf8(&bytes) {
        // This copies the text once, so that `bytes` still wipes its own copy.
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not UTF-8",
        )),
    }
}

/// Runs `work` on the file at `path` in its own thread, and waits at most `limit` for the
/// result.
///
/// # Errors
///
/// The error of `work`, or [`io::ErrorKind::TimedOut`].
pub(crate) fn bounded<T: Send + 'static>(
    path: &Path,
    limit: Duration,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if hung_threads().get(path).is_some_and(HungThreads::must_wait) {
        return Err(timed_out(limit));
    }
    let (sender, receiver) = mpsc::sync_channel(0);
    let file = path.to_owned();
    let thread = std::thread::Builder::new()
        .name("file".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let result = work();
            // If the caller no longer waits, the file system has answered late.
            if sender.send(result).is_err() {
                HungThreads::end(&file);
            }
        })?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            drop(thread);
            Err(io::Error::other("reading it panicked: this is a bug"))
        }
        Err(mpsc::RecvTimeoutError::Timeout) => {
            HungThreads::begin(path);
            // The thread may have ended in the meantime.
            match receiver.try_recv() {
                Ok(result) => {
                    HungThreads::end(path);
                    result
                }
                Err(_) => Err(timed_out(limit)),
            }
        }
    }
}

/// Makes the next read of every file an attempt, even if threads are stuck.
pub(crate) fn try_again() {
    for stuck in hung_threads().values_mut() {
        stuck.not_before = Instant::now();
    }
}

fn read_here(path: &Path, max_bytes: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // Check before opening too: opening a FIFO wakes the process that writes to it, and
    // opening a device can have side effects.
    let metadata = std::fs::metadata(path)?;
    check(&metadata)?;
    let not_blocking = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(not_blocking.bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    check(&metadata)?;
    if metadata.len() > max_bytes {
        return Err(too_large(max_bytes));
    }
    // One more byte than the size, to notice a file that grows. A buffer that grows would
    // leave copies of a key in memory.
    let capacity = usize::try_from(metadata.len()).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    (&mut file).take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(max_bytes));
    }
    Ok(bytes)
}

fn check(metadata: &Metadata) -> io::Result<()> {
    let what = kind(metadata.file_type());
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {what}, not a regular file"),
    ))
}

fn kind(file: FileType) -> &'static str {
    if file.is_dir() {
        "a directory"
    } else if file.is_fifo() {
        "a FIFO"
    } else if file.is_socket() {
        "a socket"
    } else if file.is_char_device() || file.is_block_device() {
        "a device"
    } else {
        "something else"
    }
}

fn too_large(max_bytes: u64) -> io::Error {
    let mib = max_bytes >> 20;
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("it is larger than {mib} MiB"),
    )
}

/// The text is the same for a new time-out and for a thread that is still stuck, so that
/// the log shows it once.
fn timed_out(limit: Duration) -> io::Error {
    let text = format!(
        "its file system did not answer within {}: check that it is available",
        humantime::format_duration(limit)
    );
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// Threads that are stuck, by their file.
static HUNG_THREADS: LazyLock<Mutex<HashMap<PathBuf, HungThreads>>> = LazyLock::new(Mutex::default);

struct HungThreads {
    threads: usize,
    pause: Duration,
    not_before: Instant,
}

fn hung_threads() -> MutexGuard<'static, HashMap<PathBuf, HungThreads>> {
    HUNG_THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HungThreads {
    fn must_wait(&self) -> bool {
        Instant::now() < self.not_before
    }

    fn begin(path: &Path) {
        let mut all = hung_threads();
        let stuck = all.entry(path.to_owned()).or_insert(Self {
            threads: 0,
            pause: FIRST_PAUSE / 2,
            not_before: Instant::now(),
        });
        stuck.threads += 1;
        stuck.pause = (stuck.pause * 2).min(LONGEST_PAUSE);
        stuck.not_before = Instant::now() + stuck.pause;
    }

    /// A stuck thread has ended. The file system answers again, so the next read need not
    /// wait.
    fn end(path: &Path) {
        let mut all = hung_threads();
        if let Some(stuck) = all.get_mut(path) {
            stuck.threads -= 1;
            stuck.not_before = Instant::now();
            if stuck.threads == 0 {
                all.remove(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::net::UnixListener};

    use super::*;

    const MAX: u64 = 1 << 20;

    fn refused(path: &Path) -> String {
        let began = Instant::now();
        let error = read(path, MAX).unwrap_err();
        assert!(began.elapsed() < READ_TIMEOUT, "{error}");
        error.to_string()
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        assert_eq!(**read(&at("link"), MAX).unwrap(), *b"text");

        let made = std::process::Command::new("mkfifo")
            .arg(at("fifo"))
            .status();
        assert!(made.unwrap().success());
        std::os::unix::fs::symlink(at("fifo"), at("link to fifo")).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        for (path, what) in [
            (at("fifo"), "it is a FIFO, not a regular file"),
            (at("link to fifo"), "it is a FIFO, not a regular file"),
            (at("socket"), "it is a socket, not a regular file"),
            (at("."), "it is a directory, not a regular file"),
            ("/dev/zero".into(), "it is a device, not a regular file"),
        ] {
            assert_eq!(refused(&path), what, "{}", path.display());
        }
        assert!(refused(&at("missing")).contains("No such file"));
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let max = usize::try_from(MAX).unwrap();
        fs::write(&path, vec![b'x'; max]).unwrap();
        assert_eq!(read(&path, MAX).unwrap().len(), max);
        fs::write(&path, vec![b'x'; max + 1]).unwrap();
        assert_eq!(refused(&path), "it is larger than 1 MiB");
        // A file whose size the system does not report.
        assert!(
            !read(Path::new("/proc/self/status"), MAX)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_read_that_hangs_times_out_and_is_tried_again() {
        let path = Path::new("/a file of this test");
        let soon = Duration::from_millis(20);
        let (release, released) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = released.recv();
            Ok(1)
        };
        let error = bounded(path, soon, hangs).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(
            error.to_string().contains("did not answer within 20ms"),
            "{error}"
        );

        // No second thread is started yet, unless `try_again` is called.
        let again = bounded(path, soon, || Ok(2)).unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
        assert_eq!(bounded(Path::new("/another"), soon, || Ok(3)).unwrap(), 3);
        try_again();
        assert_eq!(bounded(path, READ_TIMEOUT, || Ok(4)).unwrap(), 4);

        // The file system answers again, so the entry is removed.
        drop(release);
        let deadline = Instant::now() + READ_TIMEOUT;
        while hung_threads().contains_key(path) {
            assert!(Instant::now() < deadline);
            std::thread::sleep(soon);
        }
        assert_eq!(bounded(path, READ_TIMEOUT, || Ok(5)).unwrap(), 5);
    }
}
