//! Errors in the TLS files.

use std::{fmt, path::PathBuf};

use rustls::pki_types::UnixTime;
use thiserror::Error;

use super::format_time;
use crate::tls::pem::PemError;

/// Why a TLS file can't be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file can't be read, or is not a PEM file.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate, key or revocation list can't be used.
    #[error("{place}: {problem}")]
    Item {
        /// Where the item is.
        place: Place,
        /// What is wrong with the item, and what to do.
        problem: String,
    },
    /// The private key does not belong to the server's certificate.
    #[error(
        "{} is not the key of the certificate in {}: install the two together",
        key.display(),
        certificate.display()
    )]
    OtherKey {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// The server's certificate is not valid now.
    #[error("{} is {validity}: renew it, or set the clock", path.display())]
    OutsideValidity {
        /// The file.
        path: PathBuf,
        /// When the certificate is valid.
        validity: Validity,
    },
    /// rustls can't build a verifier from the files.
    #[error("no verifier of client certificates can be built from the files ({0})")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// rustls can't build a server configuration from the files.
    #[error("no TLS configuration can be built from the files ({0})")]
    Configuration(rustls::Error),
    /// Several issuers have lists of several keys each.
    #[error(
        "[rewrap].crl_files has lists of too many keys under the same issuer names: remove the \
         lists of keys that are no longer in use"
    )]
    TooManyKeys,
    /// Two lists of one key, and neither is newer than the other.
    #[error(
        "[rewrap].crl_files has two different lists of {0} with the same thisUpdate and cRLNumber, \
         so nico-rewrap can't tell which one is newer: remove the outdated one"
    )]
    SameAge(String),
    /// A list is older than the loaded one of the same key.
    #[error(
        "[rewrap].crl_files has a list of {issuer} ({found}) that is older than the loaded one \
         ({loaded}), so it may lack revocations: install the newest list, or restart nico-rewrap \
         to use the older one"
    )]
    OlderCrl {
        /// The issuer's name.
        issuer: String,
        /// The age of the list on disk.
        found: String,
        /// The age of the loaded list.
        loaded: String,
    },
    /// Several lists of one key cover different certificates.
    #[error(
        "[rewrap].crl_files has lists of one issuer for different distribution points: use one \
         complete list of the issuer instead"
    )]
    PartitionedCrl,
}

/// A place in a file.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line on which the block begins. `None` for a DER file, or for the file as a whole.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, " line {line}"))
    }
}

/// The period in which a certificate is valid, in seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// notBefore.
    pub from: i64,
    /// notAfter.
    pub to: i64,
}

impl Validity {
    /// Whether the period contains `time`.
    #[must_use]
    pub fn contains(self, time: UnixTime) -> bool {
        (self.from..=self.to).contains(&super::seconds(time))
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (format_time(self.from), format_time(self.to));
        write!(f, "valid from {from} to {to} only")
    }
}

/// An error in the file that a setting names.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct FileError {
    /// The key, such as `tls.root_cafile_path`.
    pub setting: &'static str,
    /// What is wrong.
    pub error: TlsError,
}
