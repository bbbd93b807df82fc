//! Why `database_url` cannot be used.

use thiserror::Error;

use crate::tls::pem;

/// Why `database_url` can't be used. The text never quotes the URL, which contains a
/// password.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// The URL does not have the form that the tools of Postgres accept.
    #[error("is not of the form postgres://user:password@host:5432/database ({0})")]
    Url(String),
    /// The URL names no host.
    #[error("names no host: write it as in postgres://user:password@host:5432/database")]
    NoHost,
    /// An unknown `sslmode`.
    #[error("sslmode must be one of disable, allow, prefer, require, verify-ca and verify-full")]
    SslMode,
    /// A verifying mode without a file to verify against.
    #[error("sslmode verify-ca and verify-full need sslrootcert=FILE in the URL")]
    NoRootCertificate,
    /// The file of `sslrootcert` can't be used.
    #[error("sslrootcert: {0}")]
    RootCertificate(#[from] pem::PemError),
    /// rustls refuses the certificates.
    #[error("sslrootcert: {0}")]
    Verifier(String),
}
