//! The address of a collector.

use std::fmt;

use hyper::Uri;
use thiserror::Error;

/// The port of OTLP over gRPC.
const DEFAULT_PORT: u16 = 4317;

/// The address of a collector: `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    is_https: bool,
    /// A name or an address without brackets.
    host: String,
    port: u16,
}

/// A text that is not the address of a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("must be the address of an OTLP collector for gRPC, like http://collector:4317")]
pub struct InvalidEndpoint;

impl Endpoint {
    /// Parses an address.
    ///
    /// # Errors
    ///
    /// [`InvalidEndpoint`], also for an address with a path: then it is one of OTLP over HTTP.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        let uri: Uri = text.trim().parse().map_err(|_| InvalidEndpoint)?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(InvalidEndpoint),
        };
        let authority = uri.authority().ok_or(InvalidEndpoint)?;
        // A password in the address would show up in messages.
        if authority.as_str().contains('@') || uri.query().is_some() || uri.path() != "/" {
            return Err(InvalidEndpoint);
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(InvalidEndpoint);
        }
        // `http` accepts any text after the colon as an authority.
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            Some(0) => return Err(InvalidEndpoint),
            Some(port) => port,
            None if has_port => return Err(InvalidEndpoint),
            None => DEFAULT_PORT,
        };
        Ok(Self {
            is_https,
            host,
            port,
        })
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        let (host, port) = (&self.host, self.port);
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_a_host_and_no_path() {
        for (text, wanted) in [
            ("http://collector", "http://collector:4317"),
            (" http://collector:4317/\n", "http://collector:4317"),
            ("https://127.0.0.1:1", "https://127.0.0.1:1"),
            ("http://[::1]:4317", "http://[::1]:4317"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), wanted);
        }
        for text in [
            "",
            "collector:4317",
            "collector",
            "grpc://collector:4317",
            "http://",
            "http://:4317",
            "http://collector:0",
            "http://collector:65536",
            "http://collector:",
            "http://user:password@collector:4317",
            "http://collector:4318/v1/traces",
            "http://collector:4317?a=b",
        ] {
            assert_eq!(Endpoint::parse(text), Err(InvalidEndpoint), "{text}");
        }
    }
}
