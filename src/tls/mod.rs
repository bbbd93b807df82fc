//! Server-side TLS: files in, one [`Snapshot`] out, and a new one when they change.
//!
//! Mutual TLS only, TLS 1.2 or newer, AEAD suites (all that rustls has), ALPN
//! `h2`. Client certificates are verified against the union of `root_cafile_path`
//! and `admin_root_cafile_path`, and against the latter alone once more: that tells
//! where a chain ends. An extended key usage extension, if the leaf has one, must
//! allow client authentication. Revocation lists hold for the whole chain.

mod material;
mod refusal;
mod reload;
mod revocation;
mod snapshot;
mod verifier;

use std::path::PathBuf;

use rustls::pki_types::UnixTime;
use thiserror::Error;

pub(crate) use self::{
    material::check,
    refusal::{reason_of, reason_of_io},
};
pub use self::{
    reload::Reloader,
    revocation::CrlPolicy,
    snapshot::{Expiry, Snapshot},
};
use crate::pem::PemError;

/// The files of `[tls]`, and the revocation lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `identity_pemfile_path`: the server's chain, its own certificate first.
    pub certificate: PathBuf,
    /// `identity_keyfile_path`.
    pub key: PathBuf,
    /// `root_cafile_path`: CAs of service and machine certificates.
    pub root_ca: PathBuf,
    /// `admin_root_cafile_path`: CAs of admin certificates.
    pub admin_root_ca: Option<PathBuf>,
    /// `[rewrap].crl_files`.
    pub crls: Vec<PathBuf>,
    /// `[rewrap].crl_policy`.
    pub crl_policy: CrlPolicy,
}

/// Why there is no TLS to be had from the files.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file can't be used.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// rustls refuses what is in a file.
    #[error("{} {what} ({source})", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// rustls' words.
        source: rustls::Error,
    },
    /// What is in a file is of no use.
    #[error("{} {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The server's certificate is not valid at this time.
    #[error("{} is valid from {from} to {to} only: renew it, or set the clock", path.display())]
    NotNow {
        /// The file.
        path: PathBuf,
        /// notBefore.
        from: String,
        /// notAfter.
        to: String,
    },
    /// rustls makes no verifier of what is in the files.
    #[error("client certificates can't be verified ({0})")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// Several keys of several issuers.
    #[error(
        "[rewrap].crl_files has lists of too many keys under the same names: take out those of \
         keys that are not in use any more"
    )]
    TooManyKeys,
    /// Several lists of one key that are not for the same certificates.
    #[error(
        "[rewrap].crl_files has lists of one issuer for different distribution points: name its one \
         whole list instead"
    )]
    Parts,
    /// A file is there and gives nothing.
    #[error("reading the files takes too long: is what they are on still there?")]
    Stuck,
    /// A bug.
    #[error("loading the files panicked: this is a bug")]
    Panicked,
    /// An admin bundle was there and is not any more.
    #[error(
        "{} has no admin bundle any more, and without one admins would be bound to none: put it \
         back, or restart without it",
        .0.display()
    )]
    AdminBundleGone(PathBuf),
}

/// Seconds since the epoch, as certificates count them.
fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// A time for people.
fn spelled(timestamp: i64) -> String {
    let since = u64::try_from(timestamp).unwrap_or_default();
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(since));
    time.map_or_else(
        || "ever".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}
