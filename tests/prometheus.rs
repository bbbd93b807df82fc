//! The programs of the real Prometheus.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The path of the server.
pub(crate) fn server() -> PathBuf {
    std::env::var_os("PROMETHEUS").map_or_else(|| "prometheus".into(), PathBuf::from)
}

/// Runs promtool, which is in the same directory as the server. Panics with its output if it
/// fails.
pub(crate) fn promtool<A: AsRef<OsStr>>(args: &[A], input: &str) -> String {
    let mut tool = Command::new(server().with_file_name("promtool"));
    let tool = tool
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut tool = tool
        .spawn()
        .expect("no promtool: `make test` installs it; or set PROMETHEUS to the server");
    // An error means that promtool has ended early. Its exit code says so.
    let _ = tool.stdin.take().unwrap().write_all(input.as_bytes());
    let output = tool.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}
