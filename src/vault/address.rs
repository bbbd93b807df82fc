//! The address of Vault, `VAULT_ADDR`.

use std::{fmt, net::IpAddr};

use hyper::Uri;
use thiserror::Error;

/// The address of a server: `https://host:port`, possibly with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub(super) is_https: bool,
    /// A name or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of the `Host` header.
    pub(super) authority: String,
    /// A path before that of every request, without `/` at its end.
    pub(super) path: String,
}

/// A text that is not an address of Vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("must be an address like https://vault.example:8200")]
pub struct InvalidAddress;

impl Address {
    /// Parses the value of `VAULT_ADDR`.
    ///
    /// # Errors
    ///
    /// [`InvalidAddress`].
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let uri: Uri = text.trim().parse().map_err(|_| InvalidAddress)?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(InvalidAddress),
        };
        let authority = uri.authority().ok_or(InvalidAddress)?;
        // A password in the address would show up in messages.
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(InvalidAddress);
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(InvalidAddress);
        }
        Ok(Self {
            is_https,
            host,
            port: authority
                .port_u16()
                .unwrap_or(if is_https { 443 } else { 80 }),
            authority: authority.to_string(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Whether tokens and keys travel unencrypted.
    #[must_use]
    pub fn is_http(&self) -> bool {
        !self.is_https
    }

    /// Whether the host is this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .host
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_and_a_host() {
        for (text, host, port, path) in [
            ("https://vault.example", "vault.example", 443, ""),
            (" https://vault:8200/\n", "vault", 8200, ""),
            ("http://127.0.0.1:8200", "127.0.0.1", 8200, ""),
            ("https://[::1]:8200/a/b/", "::1", 8200, "/a/b"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(
                (&*address.host, address.port, &*address.path),
                (host, port, path)
            );
        }
        for text in [
            "",
            "vault:8200",
            "vault.example",
            "ftp://vault",
            "https://",
            "https://user:password@vault",
            "https://vault?a=b",
            "unix:///run/vault.sock",
        ] {
            assert_eq!(Address::parse(text), Err(InvalidAddress), "{text}");
        }
    }
}
