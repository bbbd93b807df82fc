//! Standard error, which may be a pipe that nobody reads.
//!
//! A writer puts its line into a bounded queue and never waits. A separate thread writes the
//! queue to standard error. If the queue is full, lines are dropped and counted.

use std::{
    fs::File,
    io::{self, Write},
    mem,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

/// The maximum number of bytes in the queue. It has room for all failures of one report.
const MAX_QUEUED: usize = 8 << 20;

/// The maximum number of bytes of one write, unless a single line is longer. A write of this
/// size to a pipe is atomic (`PIPE_BUF` on Linux), so other processes can't split our lines.
const MAX_WRITE: usize = 4096;

/// The pause before the thread retries a write, when standard error is non-blocking and full.
const RETRY: Duration = Duration::from_millis(20);

/// The queue of this process. It does not exist before logging starts.
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Lines that wait to be written to standard error.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    /// Bytes that the thread has taken but not written yet.
    being_written: usize,
    /// Lines dropped since the last call of [`Queue::take_dropped`].
    dropped: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic can't leave the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line, or drops it if there is no room.
    fn push(&self, line: &[u8]) -> Result<(), Full> {
        let mut state = self.lock();
        if state.lines.len() + state.being_written + line.len() > MAX_QUEUED {
            state.dropped += 1;
            drop(state);
            super::log_lines_dropped(1);
            return Err(Full);
        }
        state.lines.extend_from_slice(line);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for lines, and takes all of them.
    fn take(&self) -> Vec<u8> {
        let mut state = self.lock();
        while state.lines.is_empty() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let lines = mem::take(&mut state.lines);
        state.being_written = lines.len();
        lines
    }

    fn written(&self, bytes: usize) {
        self.lock().being_written -= bytes;
        self.changed.notify_all();
    }

    /// How many lines were dropped since the last call.
    fn take_dropped(&self) -> u64 {
        mem::take(&mut self.lock().dropped)
    }

    /// Waits until everything is written, at most for `limit`.
    fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.lines.is_empty() || state.being_written > 0 {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else {
                return;
            };
            state = self
                .changed
                .wait_timeout(state, rest)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The error for a line that the queue has no room for.
struct Full;

/// Starts the thread that writes to standard error.
///
/// # Errors
///
/// If the system can't create another thread or file descriptor.
pub(super) fn start() -> io::Result<StandardError> {
    // The thread uses its own descriptor. With the standard library's handle it would hold that
    // handle's lock while a write is stuck, and every panic message needs the lock.
    let mut stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Arc::<Queue>::default();
    let source = queue.clone();
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || drain(&source, &mut stderr))?;
    Ok(StandardError(QUEUE.get_or_init(|| queue).clone()))
}

/// Writes a line that is not an event of `tracing`, such as an audit record.
///
/// # Errors
///
/// `WouldBlock` if the queue has no room. The line is then dropped.
pub(crate) fn write_line(line: &str) -> io::Result<()> {
    match QUEUE.get() {
        Some(queue) => queue
            .push(line.as_bytes())
            .map_err(|Full| io::ErrorKind::WouldBlock.into()),
        None => io::stderr().write_all(line.as_bytes()),
    }
}

/// Waits until all lines are written, at most for `limit`.
pub(super) fn flush(limit: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.flush(limit);
    }
}

/// Writes the final message of a command to standard error. Waits at most `limit`, because
/// nobody may read the pipe.
pub(super) fn write_message(text: String, limit: Duration) {
    let (done, is_done) = mpsc::channel();
    let write = move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = done.send(());
    };
    match thread::Builder::new().spawn(write.clone()) {
        Ok(_) => {
            let _ = is_done.recv_timeout(limit);
        }
        Err(_) => write(),
    }
}

fn drain(queue: &Queue, stderr: &mut File) {
    let mut is_torn = false;
    loop {
        let lines = queue.take();
        let mut failed = 0;
        for piece in pieces(&lines) {
            match write_piece(stderr, piece, is_torn) {
                Ok(()) => is_torn = false,
                Err(torn) => {
                    is_torn = torn;
                    failed += piece.iter().filter(|byte| **byte == b'\n').count();
                }
            }
            queue.written(piece.len());
        }
        if failed > 0 {
            super::log_lines_dropped(failed as u64);
        }
        let dropped = queue.take_dropped();
        if dropped > 0 {
            tracing::warn!(
                lines = dropped,
                "log lines were dropped: standard error was not read fast enough"
            );
        }
    }
}

/// Splits `lines` into pieces for one write each. A piece consists of whole lines.
fn pieces(mut lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let line_end = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n');
        let end = if lines.len() <= MAX_WRITE {
            lines.len()
        } else {
            let last = lines[..MAX_WRITE].iter().rposition(|byte| *byte == b'\n');
            last.or_else(|| line_end(lines))
                .map_or(lines.len(), |at| at + 1)
        };
        let (piece, rest) = lines.split_at(end);
        lines = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Writes whole lines. The error is `true` if the last line was written only in part. With
/// `is_torn`, the previous write ended in the middle of a line, so a line break comes first.
fn write_piece(stderr: &mut File, piece: &[u8], is_torn: bool) -> Result<(), bool> {
    let mut rest = piece;
    let mut is_torn = is_torn;
    if is_torn {
        write_all(stderr, &mut b"\n".as_slice()).map_err(|_| true)?;
        is_torn = false;
    }
    write_all(stderr, &mut rest).map_err(|_| {
        let written = &piece[..piece.len() - rest.len()];
        written.last().map_or(is_torn, |last| *last != b'\n')
    })
}

/// Writes all of `rest`. After an error, `rest` holds the bytes that were not written.
fn write_all(stderr: &mut File, rest: &mut &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match stderr.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => *rest = &rest[bytes..],
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => thread::sleep(RETRY),
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// The destination of the `tracing` layers.
pub(super) struct StandardError(Arc<Queue>);

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// The writer for one line. A layer writes a line with one call of `write`.
pub(super) struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // `push` counts a dropped line. The layer can't do more.
        let _ = self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_drops_lines_and_counts_them() {
        let queue = Queue::default();
        let line = vec![b'x'; MAX_QUEUED / 4];
        let kept = (0..6).filter(|_| queue.push(&line).is_ok()).count();
        assert_eq!(
            (kept, queue.take_dropped(), queue.take_dropped()),
            (4, 2, 0)
        );
        // Lines that are taken but not written yet still count.
        let taken = queue.take();
        assert!(queue.push(b"x").is_err());
        queue.written(taken.len());
        assert!(queue.push(b"x").is_ok());
    }

    #[test]
    fn a_flush_ends_when_everything_is_written_or_the_time_is_over() {
        let queue = Queue::default();
        queue.flush(Duration::from_secs(60));
        assert!(queue.push(b"x\n").is_ok());
        let start = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(start.elapsed() >= Duration::from_millis(50));
        let taken = queue.take();
        queue.written(taken.len());
        queue.flush(Duration::from_secs(60));
    }

    #[test]
    fn pieces_are_whole_lines() {
        let short = b"0123456789abcde\n".repeat(1000);
        let long = [vec![b'x'; 3 * MAX_WRITE], b"\n".to_vec()].concat();
        let lines = [short.clone(), long.clone(), short].concat();
        let pieces: Vec<_> = pieces(&lines).collect();
        assert!(pieces.iter().all(|piece| piece.ends_with(b"\n")));
        let too_long: Vec<_> = pieces.iter().filter(|p| p.len() > MAX_WRITE).collect();
        assert_eq!(too_long, [&long.as_slice()]);
        assert_eq!(pieces.concat(), lines);
    }
}
