//! PEM files (RFC 7468): certificates, a private key, revocation lists.

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::regular_file;

/// In bytes: more than any bundle or revocation list of a site has. What is in memory
/// by mistake is not there for anything else.
const MAX_BYTES: u64 = 16 << 20;

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

/// What was in a file when it was read: what is checked is then what is used.
pub struct PemFile {
    path: PathBuf,
    bytes: Zeroizing<Vec<u8>>,
}

impl PemFile {
    /// Reads the whole file, whatever is in it.
    ///
    /// # Errors
    ///
    /// [`PemError::Unreadable`].
    pub fn read(path: &Path) -> Result<Self, PemError> {
        match regular_file::read(path, MAX_BYTES) {
            Ok(bytes) => Ok(Self {
                path: path.to_owned(),
                bytes,
            }),
            Err(error) => Err(PemError::Unreadable(path.to_owned(), error)),
        }
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All certificates, at least one.
    ///
    /// # Errors
    ///
    /// [`PemError::Lacks`].
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, PemError> {
        self.all("PEM certificate")
    }

    /// The private key: PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    ///
    /// [`PemError::Lacks`].
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, PemError> {
        PrivateKeyDer::from_pem_slice(&self.bytes)
            .map_err(|_| self.lacks("PEM private key (PKCS#8, PKCS#1 or SEC1)"))
    }

    /// All certificate revocation lists, at least one: PEM, or a single one in DER, which is
    /// how they are published (RFC 5280, section 4.2.1.13).
    ///
    /// # Errors
    ///
    /// [`PemError::Lacks`].
    pub fn revocation_lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
        // The tag of a SEQUENCE, which no text begins with.
        if self.bytes.first() == Some(&0x30) {
            return Ok(vec![self.bytes.to_vec().into()]);
        }
        self.all("certificate revocation list in PEM or DER")
    }

    fn all<T: PemObject>(&self, what: &'static str) -> Result<Vec<T>, PemError> {
        let items: Result<Vec<T>, pem::Error> = T::pem_slice_iter(&self.bytes).collect();
        match items {
            Ok(items) if !items.is_empty() => Ok(items),
            _ => Err(self.lacks(what)),
        }
    }

    fn lacks(&self, what: &'static str) -> PemError {
        PemError::Lacks(self.path.clone(), what)
    }
}
