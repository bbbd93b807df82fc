//! Child processes and directories that end with the test process, even if it is killed.
//!
//! Rust drops no statics, and a killed process drops nothing. A small `sh` therefore does the
//! cleanup: it reads from a pipe, which closes when the test process ends for any reason. The
//! shells have their own process groups, so that a Ctrl-C for the tests does not reach them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Waits for the end of its input, then removes `$1`. Repeats this, since a server that is shutting
/// down may still write there.
const REMOVE: &str = r#"
cat >/dev/null
for _ in $(seq 100); do
    rm -rf "$1" 2>/dev/null && exit
    sleep 0.2
done
"#;

/// Runs a command and prints its process id. Each line of input is a signal to send. At the end of
/// the input, it sends the signal `$1`.
const SUPERVISE: &str = r#"
last=$1
shift
exec 3<&0 4>&1 </dev/null >&2
"$@" 3<&- 4>&- &
pid=$!
echo "$pid" >&4
exec 4>&-
{
    while read -r signal; do kill -s "$signal" "$pid"; done <&3
    kill -s "$last" "$pid"
    # A test may have stopped it: then only KILL would arrive.
    kill -s CONT "$pid"
} >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait "$pid"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"#;

struct Scratch {
    path: PathBuf,
    _remover: Child,
}

static SCRATCH: LazyLock<Scratch> = LazyLock::new(|| {
    let path = tempfile::Builder::new()
        .prefix("rewrap-it-")
        .tempdir()
        .unwrap()
        .keep();
    // Postgres runs as another user when the tests run as root, and has its directory in here.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o711)).unwrap();
    let remover = Command::new("/bin/sh")
        .args(["-c", REMOVE, "remove"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("cannot run /bin/sh");
    Scratch {
        path,
        _remover: remover,
    }
});

/// A new directory that exists until the test process ends.
pub(crate) fn lasting_dir(prefix: &str) -> PathBuf {
    temp_dir(prefix).keep()
}

/// A new directory that exists until the returned value is dropped or the test process ends.
pub(crate) fn temp_dir(prefix: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{prefix}-"))
        .tempdir_in(&SCRATCH.path)
        .unwrap()
}

/// A running program. It gets a last signal when this value is dropped or the test process ends.
pub(crate) struct Supervised {
    shell: Child,
    signals: Option<ChildStdin>,
    pid: u32,
}

impl Supervised {
    /// Starts `program` with an empty stdin. Its stdout goes to its stderr. `configure` sets the
    /// environment, directory, user and stderr.
    pub(crate) fn spawn<A: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = A>,
        last_signal: &str,
        configure: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new("/bin/sh");
        configure(&mut command);
        let mut shell = command
            .args(["-c", SUPERVISE, "supervise", last_signal])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("cannot run /bin/sh");
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().unwrap())
            .read_line(&mut pid)
            .unwrap();
        let pid = pid
            .trim()
            .parse()
            .expect("the supervising shell tells the process id");
        let signals = shell.stdin.take();
        Self {
            shell,
            signals,
            pid,
        }
    }

    /// The process id of the program itself.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The program's stderr, if `configure` asked for a pipe. Can be called once.
    pub(crate) fn take_stderr(&mut self) -> std::process::ChildStderr {
        self.shell
            .stderr
            .take()
            .expect("stderr is piped and not taken yet")
    }

    /// Sends a signal by name (`TERM`, `HUP`, `STOP`, …). Does nothing if the program has ended.
    pub(crate) fn signal(&mut self, name: &str) {
        if let Some(signals) = &mut self.signals {
            let _ = writeln!(signals, "{name}");
        }
    }

    /// The exit status if the program has ended; 128 + n after signal n.
    pub(crate) fn try_wait(&mut self) -> Option<i32> {
        let status = self.shell.try_wait().unwrap()?;
        Some(status.code().unwrap_or(-1))
    }

    /// Blocks until the program ends. Panics after `at_most`.
    pub(crate) fn wait(&mut self, at_most: Duration) -> i32 {
        let deadline = Instant::now() + at_most;
        loop {
            if let Some(code) = self.try_wait() {
                return code;
            }
            assert!(
                Instant::now() < deadline,
                "process {} still runs after {at_most:?}",
                self.pid
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        drop(self.signals.take());
        let _ = self.shell.wait();
    }
}

/// Sends a signal by name to these processes.
pub(crate) fn signal(pids: &[u32], name: &str) {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    let kill = format!("kill -s {name} {}", pids.join(" "));
    run(Command::new("/bin/sh").args(["-c", &kill]));
}

/// Runs a short command to its end. Panics with its stderr if it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}\n{}: {stderr}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
