//! A running server: the real binary.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::Supervised;
use crate::site::BINARY;

/// Time limit for a start, an exit or a log line on a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A running server. It is killed when this value is dropped or the test process ends.
pub(crate) struct Server {
    /// `127.0.0.1:port` of the gRPC listener.
    pub(crate) grpc: String,
    /// `127.0.0.1:port` of `/livez`, `/readyz`, `/metrics`.
    pub(crate) http: String,
    lines: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
    process: Mutex<Supervised>,
    /// The directory of the configuration, which is removed with the server.
    _dir: TempDir,
}

impl Server {
    /// Starts the binary and waits for the log line with its addresses.
    pub(crate) async fn spawn(
        dir: TempDir,
        args: &[String],
        env: &[(String, impl AsRef<OsStr>)],
    ) -> Self {
        let command = [&[BINARY.to_owned()], args].concat();
        Self::spawn_command(dir, &command, env).await
    }

    /// The same for a program and its arguments.
    pub(crate) async fn spawn_command(
        dir: TempDir,
        command: &[String],
        env: &[(String, impl AsRef<OsStr>)],
    ) -> Self {
        let (program, args) = command.split_first().unwrap();
        let mut process = Supervised::spawn(Path::new(program), args, "KILL", |command| {
            command
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default());
            let env = env.iter().map(|(name, value)| (name, value));
            command.envs(env).stderr(Stdio::piped());
        });
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(process.take_stderr());
        let sink = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                sink.lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        let mut server = Self {
            grpc: String::new(),
            http: String::new(),
            lines,
            reader,
            process: Mutex::new(process),
            _dir: dir,
        };
        let listening = server.wait_log("listening").await;
        let address = |name: &str| match field(&listening, name) {
            Some(Value::String(address)) => address.clone(),
            _ => panic!("no address {name} in {listening}"),
        };
        (server.grpc, server.http) = (address("grpc"), address("http"));
        server
    }

    /// Waits until `/readyz` answers 200.
    pub(crate) async fn wait_ready(&self) {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let (status, body) = self.get("/readyz").await;
            if status == 200 {
                return;
            }
            self.assert_running("ready");
            assert!(
                Instant::now() < deadline,
                "not ready: {status} {body}\n{}",
                self.log_text()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Status and body of a GET from the HTTP listener. Status 0 if there is no connection or no
    /// answer.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let ask = async {
            let mut stream = TcpStream::connect(&self.http).await?;
            // HTTP/1.0: the answer comes in one piece and ends with the connection.
            let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = match tokio::time::timeout(Duration::from_secs(10), ask).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => return (0, e.to_string()),
            Err(_) => return (0, "no answer within 10 seconds".to_owned()),
        };
        let Some((head, body)) = answer.split_once("\r\n\r\n") else {
            return (0, answer);
        };
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (status.unwrap_or(0), body.to_owned())
    }

    /// The answer of `/readyz` after the first attempt to reach the database.
    pub(crate) async fn readiness(&self) -> (u16, String) {
        loop {
            let answer = self.get("/readyz").await;
            let undecided = ["not ready: grpc", "connecting to it"];
            if !undecided.iter().any(|text| answer.1.contains(text)) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The text of `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        let (status, body) = self.get("/metrics").await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// The sum of all samples with this name and these labels. `None` if there is no such sample.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let metrics = self.metrics().await;
        let labels: Vec<_> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let sample = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let matches = rest.starts_with([' ', '{'])
                && labels.iter().all(|label| rest.contains(label.as_str()));
            rest.rsplit(' ')
                .next()?
                .parse::<f64>()
                .ok()
                .filter(|_| matches)
        };
        metrics.lines().filter_map(sample).reduce(|a, b| a + b)
    }

    /// The complete stderr so far.
    pub(crate) fn log_text(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Every log line so far, parsed as JSON or logfmt. A line in neither format is a string.
    pub(crate) fn logs(&self) -> Vec<Value> {
        let parse = |line: &String| {
            let json = serde_json::from_str(line).ok();
            json.or_else(|| logfmt(line))
                .unwrap_or_else(|| Value::String(line.clone()))
        };
        self.lines.lock().unwrap().iter().map(parse).collect()
    }

    /// The log lines with this message.
    pub(crate) fn logs_with(&self, message: &str) -> Vec<Value> {
        let mut logs = self.logs();
        logs.retain(|line| field(line, "message").is_some_and(|text| text == message));
        logs
    }

    /// Waits for a log line with this message. Returns the first one.
    pub(crate) async fn wait_log(&self, message: &str) -> Value {
        self.wait_logs(message, 1).await.swap_remove(0)
    }

    /// Waits for this many log lines with this message.
    pub(crate) async fn wait_logs(&self, message: &str, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let lines = self.logs_with(message);
            if lines.len() >= count {
                return lines;
            }
            self.assert_running(message);
            assert!(
                Instant::now() < deadline,
                "no log line {message:?}:\n{}",
                self.log_text()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the audit record of the first call and checks its outcome. Returns its
    /// `rows_updated`.
    pub(crate) async fn audited_rows(&self, outcome: &str) -> i64 {
        let record = self.wait_log("call").await;
        assert_eq!(field(&record, "outcome").unwrap(), outcome, "{record}");
        field(&record, "rows_updated").unwrap().as_i64().unwrap()
    }

    /// The process id, for access to `/proc`.
    pub(crate) fn pid(&self) -> u32 {
        self.process.lock().unwrap().pid()
    }

    /// Sends a signal by name: `TERM`, `INT`, `HUP`, `STOP`, `CONT`, `KILL`.
    pub(crate) fn signal(&self, name: &str) {
        self.process.lock().unwrap().signal(name);
    }

    /// Waits for the exit and the last log line. Returns the exit code; 128 + n after signal n.
    pub(crate) async fn wait_exit(&self) -> i32 {
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let code = self.process.lock().unwrap().try_wait();
            if let (Some(code), true) = (code, self.reader.is_finished()) {
                return code;
            }
            assert!(
                Instant::now() < deadline,
                "the server does not end:\n{}",
                self.log_text()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn terminate(&self) -> i32 {
        self.signal("TERM");
        self.wait_exit().await
    }

    fn assert_running(&self, waiting_for: &str) {
        let code = self.process.lock().unwrap().try_wait();
        assert!(
            code.is_none(),
            "exit code {code:?} before {waiting_for:?}:\n{}",
            self.log_text()
        );
    }
}

/// A field of a log line, flattened, below `fields` as in tracing-subscriber, or of the innermost
/// span.
pub(crate) fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line.get(name)
        .or_else(|| line.get("fields")?.get(name))
        .or_else(|| line.get("span")?.get(name))
}

/// Parses a line of `key=value` pairs, with every value as a string. `None` if the line has another
/// format or a key twice.
fn logfmt(line: &str) -> Option<Value> {
    let mut fields = serde_json::Map::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=')?;
        let quoted = value.strip_prefix('"');
        let (value, after) = match quoted {
            Some(text) => {
                let mut escaped = false;
                let end = text.find(|c| {
                    let is_end = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    is_end
                })?;
                (&text[..end], &text[end + 1..])
            }
            None => value.split_at(value.find(' ').unwrap_or(value.len())),
        };
        let odd = |c: char| c <= ' ' || c == '"';
        if key.is_empty() || key.contains(odd) || (quoted.is_none() && value.contains(odd)) {
            return None;
        }
        if fields.insert(key.into(), value.into()).is_some() {
            return None;
        }
        rest = match after.strip_prefix(' ') {
            Some(next) => next,
            None if after.is_empty() => after,
            None => return None,
        };
    }
    (!fields.is_empty()).then_some(Value::Object(fields))
}
