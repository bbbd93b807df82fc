//! TLS handshakes by the real `openssl`. What a server says about a certificate it refuses gets lost in grpcurl: in
//! TLS 1.3 the client is done before the server looks.

use std::process::Stdio;

use crate::certs;
use crate::pki::Leaf;
use crate::server::Server;

/// A handshake in TLS 1.2, or as `options` of `openssl s_client` say. The error is the line that names the alert,
/// such as `alert certificate required`, or all of stderr.
pub(crate) async fn handshake(
    server: &Server,
    leaf: Option<&Leaf>,
    options: &[&str],
) -> Result<String, String> {
    let mut command = tokio::process::Command::new("openssl");
    command.args([
        "s_client",
        "-connect",
        &server.grpc,
        "-alpn",
        "h2",
        "-verify_return_error",
        "-CAfile",
    ]);
    command
        .arg(&certs::root_ca().cert)
        .args(if options.is_empty() {
            &["-tls1_2"]
        } else {
            options
        });
    if let Some(leaf) = leaf {
        command
            .arg("-cert")
            .arg(&leaf.cert_chain)
            .arg("-cert_chain")
            .arg(&leaf.cert_chain)
            .arg("-key")
            .arg(&leaf.key);
    }
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(stderr
        .lines()
        .find(|line| line.contains(" alert "))
        .map_or(stderr.clone(), str::to_owned))
}
