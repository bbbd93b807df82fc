//! The programs of the real Prometheus.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use crate::pg_host::free_port;
use crate::process::{Supervised, temp_dir};

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

/// A running Prometheus that scrapes one server every second.
pub(crate) struct Prometheus {
    address: String,
    _dir: TempDir,
    _process: Supervised,
}

impl Prometheus {
    /// Starts it. The job of the server is `job`.
    pub(crate) fn scraping(target: &str, job: &str) -> Self {
        let dir = temp_dir("prometheus");
        let config = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: {job}\n    \
             static_configs:\n      - targets: [\"{target}\"]\n"
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        // Another process may take the port first, hence more than one try.
        for _ in 0..10 {
            let address = format!("127.0.0.1:{}", free_port());
            let args = [
                "--config.file=prometheus.yml".to_owned(),
                "--storage.tsdb.path=data".to_owned(),
                "--log.level=warn".to_owned(),
                format!("--web.listen-address={address}"),
            ];
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let mut process = Supervised::spawn(&server(), args, "KILL", |command| {
                command.current_dir(dir.path()).stderr(log);
            });
            let deadline = Instant::now() + Duration::from_secs(60);
            while process.try_wait().is_none() && Instant::now() < deadline {
                if get(&address, "/-/ready").is_some_and(|answer| answer.contains(" 200 ")) {
                    let server = Self {
                        address,
                        _dir: dir,
                        _process: process,
                    };
                    // An event before the first scrape increases nothing.
                    while server.range("up == 1", 5).is_empty() {
                        assert!(Instant::now() < deadline, "{target} is not scraped");
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    return server;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let log = std::fs::read_to_string(dir.path().join("log"));
        panic!("no Prometheus: `make test` installs it; or set PROMETHEUS to it. {log:?}")
    }

    /// The series of an expression over the last `minutes`. Panics if the expression has an error.
    pub(crate) fn range(&self, expr: &str, minutes: u64) -> Vec<Value> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let query = utf8_percent_encode(expr, NON_ALPHANUMERIC);
        let path = format!(
            "/api/v1/query_range?query={query}&start={}&end={}&step=1",
            now.as_secs() - 60 * minutes,
            now.as_secs()
        );
        let answer = get(&self.address, &path).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let answer: Value = serde_json::from_str(body).unwrap();
        assert_eq!(answer["status"], "success", "{expr}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }
}

/// The answer to a GET. `None` if there is no connection.
fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
