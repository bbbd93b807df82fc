//! `healthcheck`: asks a running server's own probe, for containers that hold no
//! other program that could.

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

/// For the connection, and again for the answer. Well below the 30 s after which Docker gives a
/// health check up.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A probe's answer is one line; nothing else is worth reading to its end.
const LONGEST_ANSWER: usize = 4096;

#[derive(Debug, Args)]
pub(super) struct Healthcheck {
    /// A site config (TOML), as `serve` has it. Without any, the environment and the
    /// default tell the address.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Ask /livez instead of /readyz: is it running, whatever the database does?
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
            Err(error) => unhealthy(&in_words(&error)),
        }
    }
}

/// Who listens on every address is asked on loopback. That of IPv4 will do for `[::]`
/// too: a container may have no IPv6 and take `[::]` all the same.
fn connect(endpoint: SocketAddr) -> io::Result<TcpStream> {
    let [v4, v6] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let to = |ip: IpAddr| TcpStream::connect_timeout(&(ip, endpoint.port()).into(), TIMEOUT);
    match endpoint.ip() {
        ip if !ip.is_unspecified() => to(ip),
        IpAddr::V4(_) => to(v4),
        IpAddr::V6(_) => to(v6).or_else(|_| to(v4)),
    }
}

/// The system has several names for a wait that is over, none of which says so.
fn in_words(error: &io::Error) -> String {
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

/// HTTP/1.0, whose answer ends with the connection: no client library is needed.
fn ask(mut stream: TcpStream, endpoint: SocketAddr, path: &str) -> io::Result<Answer> {
    let deadline = Instant::now() + TIMEOUT;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // In one piece: `write!` would send one packet for each of its parts.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {endpoint}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; LONGEST_ANSWER];
    while answer.len() < LONGEST_ANSWER {
        let rest = deadline.saturating_duration_since(Instant::now());
        // Nothing at all would mean no limit.
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
