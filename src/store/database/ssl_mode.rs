//! libpq's `sslmode`.

use std::str::FromStr;

use super::error::DatabaseError;

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
