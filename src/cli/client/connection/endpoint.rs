//! Addresses of servers.

use std::net::SocketAddr;

use tokio::{net::lookup_host, time::timeout};

use super::{super::problem::Problem, CONNECT_TIMEOUT};

/// The default port of `[rewrap].listen`.
const DEFAULT_PORT: u16 = 1179;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Endpoint {
    /// Parses a list such as `a.example:1179,[::1]:1179`.
    pub(super) fn parse_list(list: &str) -> Result<Vec<Self>, Problem> {
        let endpoints: Result<Vec<_>, _> = list
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .map(Self::parse)
            .collect();
        match endpoints {
            Ok(endpoints) if endpoints.is_empty() => Err(invalid(list)),
            endpoints => endpoints,
        }
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        if text.starts_with("http://") {
            return Err(Problem::config(format!(
                "--endpoint: {text:?} is an address without TLS, and the server needs TLS: remove http://"
            )));
        }
        let rest = text.strip_prefix("https://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(|| invalid(text))?;
                (host, port.strip_prefix(':'))
            }
            // An IPv6 address without brackets has no port.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Ok(DEFAULT_PORT), str::parse);
        let port = port.map_err(|_| invalid(text))?;
        if host.is_empty() || host.contains(['/', ' ', '@']) {
            return Err(invalid(text));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Every address of the host, each once.
    pub(super) async fn addresses(&self) -> Result<Vec<SocketAddr>, Problem> {
        let lookup = timeout(
            CONNECT_TIMEOUT,
            lookup_host((self.host.as_str(), self.port)),
        )
        .await;
        let problem = |error: &dyn std::fmt::Display| {
            Problem::broken(format!(
                "the name {:?} of --endpoint has no address ({error}): check the name and DNS",
                self.host
            ))
        };
        let found = match lookup {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(problem(&error)),
            Err(_) => return Err(problem(&"DNS did not answer")),
        };
        let mut addresses: Vec<SocketAddr> = found.collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(problem(&"none found"));
        }
        Ok(addresses)
    }
}

fn invalid(text: &str) -> Problem {
    Problem::config(format!(
        "--endpoint: {text:?} is not HOST or HOST:PORT, such as rewrap.example.com:1179 or [::1]:1179"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed() {
        let of = |text: &str| {
            let endpoints = Endpoint::parse_list(text).unwrap();
            endpoints
                .iter()
                .map(|e| format!("{} {}", e.host, e.port))
                .collect::<Vec<_>>()
        };
        assert_eq!(of("a.example"), ["a.example 1179"]);
        assert_eq!(of("https://a.example:9/"), ["a.example 9"]);
        assert_eq!(
            of("[::1]:7, ::1 ,10.0.0.1:8"),
            ["::1 7", "::1 1179", "10.0.0.1 8"]
        );
        for wrong in [
            "", ",", "a:b", "a:99999", "http://a", "[::1", ":1", "a/b", "u@h",
        ] {
            assert!(Endpoint::parse_list(wrong).is_err(), "{wrong}");
        }
    }
}
