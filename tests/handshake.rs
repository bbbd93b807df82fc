//! TLS handshakes by the real `openssl`. grpcurl does not report why a server refuses a
//! certificate: in TLS 1.3, the client's handshake ends before the server checks the certificate.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::certs;
use crate::pki::Leaf;
use crate::server::Server;

/// A handshake with TLS 1.2, or with the `options` of `openssl s_client`. The error is the line
/// with the alert, such as `alert certificate required`, or the complete stderr.
pub(crate) async fn handshake(
    server: &Server,
    leaf: Option<&Leaf>,
    options: &[&str],
) -> Result<String, String> {
    let mut command = s_client(server, leaf);
    command.args(["-alpn", "h2"]).args(if options.is_empty() {
        &["-tls1_2"]
    } else {
        options
    });
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(stderr
        .lines()
        .find(|line| line.contains(" alert "))
        .map_or(stderr.clone(), str::to_owned))
}

/// The HTTP/2 preface and an empty SETTINGS frame.
pub(crate) const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The server's SETTINGS frame that acknowledges ours.
pub(crate) const ACKNOWLEDGED: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";

/// A connection that `openssl` keeps open. It sends what the test asks for and never answers a
/// frame.
pub(crate) struct Connection {
    openssl: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    seen: Vec<u8>,
}

impl Connection {
    /// Connects with these options of `openssl s_client`, ALPN among them.
    pub(crate) fn open(server: &Server, leaf: Option<&Leaf>, options: &[&str]) -> Self {
        let mut command = s_client(server, leaf);
        // Neither the end of stdin nor a line that begins with Q ends it.
        command.args(options).arg("-ign_eof");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut openssl = command.stderr(Stdio::null()).spawn().unwrap();
        Self {
            stdin: openssl.stdin.take().unwrap(),
            stdout: openssl.stdout.take().unwrap(),
            openssl,
            seen: Vec::new(),
        }
    }

    /// Starts HTTP/2. Returns false if the server closes the connection instead.
    pub(crate) async fn greet(&mut self) -> bool {
        // Fails if the server has ended the connection already.
        let _ = self.stdin.write_all(GREETING).await;
        self.read_until(ACKNOWLEDGED).await
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stdin.write_all(bytes).await.unwrap();
    }

    /// Sends bytes. Returns whether that succeeded.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stdin.write_all(bytes).await.is_ok()
    }

    /// Waits until the server closes the connection. Returns everything that `openssl` printed.
    pub(crate) async fn closed(mut self) -> String {
        assert!(!self.read_until(b"never sent by anyone").await);
        self.openssl.wait().await.unwrap();
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    async fn read_until(&mut self, wanted: &[u8]) -> bool {
        let reading = async {
            while !self.seen.windows(wanted.len()).any(|found| found == wanted) {
                if self.stdout.read_buf(&mut self.seen).await.unwrap() == 0 {
                    return false;
                }
            }
            true
        };
        let reading = tokio::time::timeout(Duration::from_secs(60), reading);
        reading.await.expect("the server neither answers nor ends")
    }
}

fn s_client(server: &Server, leaf: Option<&Leaf>) -> Command {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &server.grpc])
        .args(["-verify_return_error", "-CAfile"])
        .arg(&certs::root_ca().cert);
    if let Some(leaf) = leaf {
        command
            .arg("-cert")
            .arg(&leaf.cert_chain)
            .arg("-cert_chain")
            .arg(&leaf.cert_chain)
            .arg("-key")
            .arg(&leaf.key);
    }
    command.kill_on_drop(true);
    command
}
