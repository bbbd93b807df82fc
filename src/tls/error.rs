//! What can be wrong with the files of TLS.

use std::{fmt, path::PathBuf};

use rustls::pki_types::UnixTime;
use thiserror::Error;

use super::format_time;
use crate::tls::pem::PemError;

/// Why a file of TLS can't be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file can't be read, or is not a PEM file.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A certificate, key or list can't be used.
    #[error("{place}: {problem}")]
    Item {
        /// Where it is.
        place: Place,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The private key is not that of the server's certificate.
    #[error(
        "{} is not the key of the certificate in {}: install the two together",
        key.display(),
        certificate.display()
    )]
    OtherKey {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The server's certificate is not valid at this time.
    #[error("{} is {validity}: renew it, or set the clock", path.display())]
    OutsideValidity {
        /// The file.
        path: PathBuf,
        /// When it is valid.
        validity: Validity,
    },
    /// rustls makes no verifier of what is in the files.
    #[error("client certificates can't be verified ({0})")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// rustls makes no server of what is in the files.
    #[error("there is no TLS configuration to be had ({0})")]
    Configuration(rustls::Error),
    /// Several keys of several issuers.
    #[error(
        "[rewrap].crl_files has lists of too many keys under the same names: take out those of \
         keys that are not in use any more"
    )]
    TooManyKeys,
    /// Two lists of one key, neither of which is the newer one.
    #[error(
        "[rewrap].crl_files has two different lists of {0} with the same thisUpdate and cRLNumber, \
         so that nobody knows which one counts: take out the older one"
    )]
    SameAge(String),
    /// Several lists of one key that are not for the same certificates.
    #[error(
        "[rewrap].crl_files has lists of one issuer for different distribution points: name its one \
         whole list instead"
    )]
    PartitionedCrl,
}

/// A place in a file.
#[derive(Debug, Clone)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line on which the block begins; `None` for a file in DER, or the file as a whole.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, " line {line}"))
    }
}

/// When a certificate is valid, in seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// notBefore.
    pub from: i64,
    /// notAfter.
    pub to: i64,
}

impl Validity {
    /// Whether `time` is in it.
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

/// What is wrong with the value of a setting.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Fault {
    /// The key, such as `tls.root_cafile_path`.
    pub setting: &'static str,
    /// What is wrong.
    pub error: TlsError,
}
