//! TLS for the gRPC port. This module reads the files, builds one [`TlsState`] from them, and
//! builds a new one when the files change.
//!
//! The server accepts mutual TLS only: TLS 1.2 or newer, AEAD cipher suites, ALPN `h2`.
//! It verifies each client certificate against the union of `root_cafile_path` and
//! `admin_root_cafile_path`. A second verification against the admin bundle alone tells
//! whether the chain ends there. If the leaf has an extended key usage extension, it must
//! allow client authentication. Revocation lists apply to every certificate of the chain.

mod algorithms;
mod bundle;
mod chain;
mod check;
mod client;
mod crl_age;
mod error;
mod file_contents;
mod item;
pub mod pem;
mod provider;
mod refusal;
mod reload;
mod revocation;
mod state;
mod verifier;

use std::path::PathBuf;

use rustls::pki_types::UnixTime;

pub(crate) use self::{
    algorithms::{
        SUPPORTED_KEYS, SUPPORTED_SIGNATURES, algorithm_name, is_supported_key, key_name,
    },
    bundle::add_anchor,
    file_contents::Paths,
    item::validity,
    provider::provider,
    refusal::{explain, explain_io, reason_of, reason_of_io},
    reload::load,
};
pub use self::{
    client::trusting,
    error::{FileError, Place, TlsError, Validity},
    reload::{Loaded, Reloader},
    revocation::CrlPolicy,
    state::{Expiry, TlsState},
};

/// The files that the settings of `[tls]` and `[rewrap].crl_files` name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// `identity_pemfile_path`: the server's chain, with the server's certificate first.
    pub certificate: PathBuf,
    /// `identity_keyfile_path`: the server's private key.
    pub key: PathBuf,
    /// `root_cafile_path`: CAs of service and machine certificates.
    pub root_ca: PathBuf,
    /// `admin_root_cafile_path`: CAs of admin certificates.
    pub admin_root_ca: Option<PathBuf>,
    /// `[rewrap].crl_files`: certificate revocation lists.
    pub crls: Vec<PathBuf>,
    /// `[rewrap].crl_policy`: how strictly revocation is checked.
    pub crl_policy: CrlPolicy,
}

/// Seconds since the epoch, in the type that x509-parser uses.
fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// A time as text, for messages.
pub(crate) fn spelled_time(time: UnixTime) -> String {
    format_time(seconds(time))
}

/// A time in seconds since the epoch as text, for messages.
fn format_time(timestamp: i64) -> String {
    let since = u64::try_from(timestamp).unwrap_or_default();
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(since));
    time.map_or_else(
        || "ever".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}
