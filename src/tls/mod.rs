//! Server-side TLS: files in, one [`TlsState`] out, and a new one when they change.
//!
//! Mutual TLS only, TLS 1.2 or newer, AEAD suites (all that rustls has), ALPN
//! `h2`. Client certificates are verified against the union of `root_cafile_path`
//! and `admin_root_cafile_path`, and against the latter alone once more: that tells
//! where a chain ends. An extended key usage extension, if the leaf has one, must
//! allow client authentication. Revocation lists hold for the whole chain.

mod algorithms;
mod bundle;
mod chain;
mod check;
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
    error::{Fault, Place, TlsError, Validity},
    reload::{Loaded, Reloader},
    revocation::CrlPolicy,
    state::{Expiry, TlsState},
};

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

/// Seconds since the epoch, as certificates count them.
fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// A time for people.
pub(crate) fn spelled_time(time: UnixTime) -> String {
    format_time(seconds(time))
}

/// A time for people, in seconds since the epoch.
fn format_time(timestamp: i64) -> String {
    let since = u64::try_from(timestamp).unwrap_or_default();
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(since));
    time.map_or_else(
        || "ever".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}
