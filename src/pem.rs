//! PEM files (RFC 7468): certificates and a private key.

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use thiserror::Error;

/// A PEM file that can't be used.
#[derive(Debug, Error)]
pub enum PemError {
    /// The file is not there, or not for us to read.
    #[error("{path} can't be read ({source})", path = .0.display(), source = .1)]
    Unreadable(PathBuf, std::io::Error),
    /// The file has no PEM section of the kind that is needed, or a broken one.
    #[error("{path} holds no {what}", path = .0.display(), what = .1)]
    Lacks(PathBuf, &'static str),
}

/// All certificates of a file, at least one.
///
/// # Errors
///
/// [`PemError`] for a file that can't be read, is not PEM, or has none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let text = read(path)?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(PemError::Lacks(path.to_owned(), "PEM certificate")),
    }
}

/// The private key of a file: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
///
/// [`PemError`] for a file that can't be read or has no such key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| PemError::Lacks(path.to_owned(), "PEM private key (PKCS#8, PKCS#1 or SEC1)"))
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, PemError> {
    std::fs::read(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|error| PemError::Unreadable(path.to_owned(), error))
}
