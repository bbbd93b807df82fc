//! `healthcheck`: queries the probe of a running server, for containers without an HTTP
//! client.

use std::{
    fmt::Display,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use super::{EX_CONFIG, fail};
use crate::config::{Environment, load_metrics_endpoint};

/// Time limit of the connection, and again of the answer. Together they stay below Docker's
/// default limit of 30 s for a health check.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Size limit of the answer in bytes. The body of a probe is one line.
const LONGEST_ANSWER: usize = 4096;

#[derive(Debug, Args)]
pub(super) struct Healthcheck {
    /// A site config file (TOML), the same as for `serve`. Without --config, the address comes
    /// from the environment or the default.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Query /livez instead of /readyz: check only that the server runs, not the database.
    #[arg(long)]
    live: bool,
}

impl Healthcheck {
    pub(super) fn run(self, environment: &Environment) -> ExitCode {
        let endpoint = match load_metrics_endpoint(&self.config, environment) {
            Ok(endpoint) => endpoint,
            Err(error) => return fail(&error, EX_CONFIG),
        };
        let path = if self.live { "/livez" } else { "/readyz" };
        let unhealthy = |what: &dyn Display| fail(&format!("http://{endpoint}{path}: {what}"), 1);
        let answer = connect(endpoint).and_then(|stream| ask(stream, endpoint, path));
        match answer {
            Ok(answer) if answer.status == "200" => ExitCode::SUCCESS,
            Ok(answer) => unhealthy(&format!("{} {}", answer.status, answer.body)),
            Err(error) => unhealthy(&error_text(&error)),
        }
    }
}

/// Connects to `endpoint`, or to loopback if the server listens on every address. For `[::]`,
/// IPv4 loopback is the fallback: a container may have no IPv6.
fn connect(endpoint: SocketAddr) -> io::Result<TcpStream> {
    let [v4, v6] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let to = |ip: IpAddr| TcpStream::connect_timeout(&(ip, endpoint.port()).into(), TIMEOUT);
    match endpoint.ip() {
        ip if !ip.is_unspecified() => to(ip),
        IpAddr::V4(_) => to(v4),
        IpAddr::V6(_) => to(v6).or_else(|_| to(v4)),
    }
}

/// The error text. The system's own texts for a timeout do not mention the time limit.
fn error_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("no answer within {} seconds", TIMEOUT.as_secs())
        }
        _ => error.to_string(),
    }
}

struct Answer {
    status: String,
    body: String,
}

/// Sends an HTTP/1.0 request. The connection closes after the answer, so that this needs no
/// client library.
fn ask(mut stream: TcpStream, endpoint: SocketAddr, path: &str) -> io::Result<Answer> {
    let deadline = Instant::now() + TIMEOUT;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // `write!` would send one packet for each part of the format string.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {endpoint}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; LONGEST_ANSWER];
    while answer.len() < LONGEST_ANSWER {
        let rest = deadline.saturating_duration_since(Instant::now());
        // A timeout of zero is an error.
        stream.set_read_timeout(Some(rest.max(Duration::from_millis(1))))?;
        match stream.read(&mut piece)? {
            0 => break,
            read => answer.extend_from_slice(&piece[..read]),
        }
        if rest.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    parse(&String::from_utf8_lossy(&answer))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.strip_prefix("HTTP/1.")?.split_ascii_whitespace();
    Some(Answer {
        status: words.nth(1)?.to_owned(),
        body: body.trim().to_owned(),
    })
}
