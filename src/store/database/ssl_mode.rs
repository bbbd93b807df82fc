//! libpq's `sslmode`.

use std::{fmt, str::FromStr};

use super::{error::DatabaseError, server::Server};

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server supports it. Its certificate is not verified.
    Prefer,
    /// TLS. The certificate is verified only if `sslrootcert` is given.
    Require,
    /// TLS with a certificate that chains to `sslrootcert`.
    VerifyCa,
    /// The same, and the certificate must name the host.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = DatabaseError;

    fn from_str(text: &str) -> Result<Self, DatabaseError> {
        match text {
            "disable" => Ok(Self::Disable),
            // libpq's `allow` uses TLS only if the server insists. `prefer` uses TLS in
            // that case too.
            "prefer" | "allow" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            _ => Err(DatabaseError::SslMode),
        }
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

/// The `sslmode` in use, and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChosenSslMode {
    pub(super) mode: SslMode,
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Setting,
    Url,
    Default,
}

impl ChosenSslMode {
    /// The setting wins over the URL. Without both, only connections that stay on this
    /// machine may do without TLS.
    pub(super) fn of(setting: Option<SslMode>, url: Option<SslMode>, servers: &[Server]) -> Self {
        let (mode, source) = match (setting, url) {
            (Some(mode), _) => (mode, Source::Setting),
            (None, Some(mode)) => (mode, Source::Url),
            (None, None) if servers.iter().all(Server::is_local) => {
                (SslMode::Prefer, Source::Default)
            }
            (None, None) => (SslMode::Require, Source::Default),
        };
        Self { mode, source }
    }
}

/// As in `sslmode=require of database_url`.
impl fmt::Display for ChosenSslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode;
        match self.source {
            Source::Setting => write!(f, "[rewrap].database_sslmode = \"{mode}\""),
            Source::Url => write!(f, "sslmode={mode} of database_url"),
            Source::Default => write!(f, "sslmode={mode}, the default for remote hosts,"),
        }
    }
}
