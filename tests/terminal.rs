//! A pseudo-terminal, in which a program runs as an operator starts it.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::site::BINARY;

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The client in a terminal. It is killed when this value is dropped.
pub(crate) struct Terminal {
    process: Child,
    keyboard: File,
    output: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Starts the client with these arguments and variables in a terminal of a usual size.
    pub(crate) fn start(args: &[String], env: &[(&str, &str)]) -> Self {
        Self::sized(args, env, 50, 120)
    }

    /// The same in a terminal of this size.
    pub(crate) fn sized(args: &[String], env: &[(&str, &str)], rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::from(
            open(
                name.as_c_str(),
                OFlags::RDWR | OFlags::NOCTTY,
                Mode::empty(),
            )
            .unwrap(),
        );
        tcsetwinsize(&slave, size).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        // setsid makes the terminal the controlling one, so that Ctrl-C sends a signal.
        let process = Command::new("setsid")
            .args(["--ctty", BINARY])
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TERM", "xterm")
            .envs(env.iter().copied())
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let keyboard = File::from(master);
        let output = Arc::new(Mutex::new(Vec::new()));
        let (sink, mut written) = (output.clone(), keyboard.try_clone().unwrap());
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // An error means that the program has ended.
            while let Ok(read) = written.read(&mut piece) {
                if read == 0 {
                    break;
                }
                sink.lock().unwrap().extend_from_slice(&piece[..read]);
            }
        });
        Self {
            process,
            keyboard,
            output,
            reader: Some(reader),
        }
    }

    /// Everything that was written so far.
    pub(crate) fn screen(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// Waits until the screen has shown this text.
    pub(crate) async fn wait_for(&self, text: &str) {
        self.wait_after("", text).await;
    }

    /// Waits until the screen has shown this text after the last `start`.
    pub(crate) async fn wait_after(&self, start: &str, text: &str) {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let screen = self.screen();
            let from = screen.rfind(start).filter(|_| !start.is_empty());
            if screen[from.unwrap_or(0)..].contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "no {text:?}:\n{screen}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Types these characters.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the exit code.
    pub(crate) async fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                // What the program has written last.
                if let Some(reader) = self.reader.take() {
                    reader.join().unwrap();
                }
                return status.code().unwrap_or(-1);
            }
            assert!(
                Instant::now() < deadline,
                "does not end:\n{}",
                self.screen()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Errors are ignored: the program has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
