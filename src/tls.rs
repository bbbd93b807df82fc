//! Server-side TLS: PEM files in, a rustls configuration out.
//!
//! Mutual TLS only, TLS 1.2 or newer, AEAD suites (all that rustls has), ALPN
//! `h2`. Client certificates are verified against the union of `root_cafile_path`
//! and `admin_root_cafile_path`; an extended key usage extension, if the leaf has
//! one, must allow client authentication.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use thiserror::Error;

use crate::pem::{self, PemError};

/// The files of `[tls]`.
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
    /// No client certificate could be verified.
    #[error("no usable CA certificate in {}", .0.display())]
    NoRoots(PathBuf),
}

/// Loads every file that is named, and gives the setting of each that is of no use.
pub(crate) fn check(
    certificate: Option<&Path>,
    key: Option<&Path>,
    root_ca: Option<&Path>,
    admin_root_ca: Option<&Path>,
) -> Vec<(&'static str, TlsError)> {
    let certificate = certificate.map(pem::certificates).transpose();
    let private_key = key.map(pem::private_key).transpose();
    let mut faults = Vec::new();
    match (certificate, private_key, key) {
        (Ok(Some(chain)), Ok(Some(private_key)), Some(path)) => {
            if let Err(error) = certified_key(chain, private_key, path) {
                faults.push(("tls.identity_keyfile_path", error));
            }
        }
        (certificate, private_key, _) => {
            if let Err(error) = certificate {
                faults.push(("tls.identity_pemfile_path", error.into()));
            }
            if let Err(error) = private_key {
                faults.push(("tls.identity_keyfile_path", error.into()));
            }
        }
    }
    let admin_root_ca = admin_root_ca.filter(|path| has_content(path));
    for (setting, path) in [
        ("tls.root_cafile_path", root_ca),
        ("tls.admin_root_cafile_path", admin_root_ca),
    ] {
        if let Some(path) = path
            && let Err(error) = add_roots(&mut RootCertStore::empty(), path)
        {
            faults.push((setting, error));
        }
    }
    faults
}

impl TlsFiles {
    /// Loads the files.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file that is of no use.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        add_roots(&mut roots, &self.root_ca)?;
        // The chart always sets the path, and has the file only if a bundle was given.
        match &self.admin_root_ca {
            Some(path) if has_content(path) => add_roots(&mut roots, path)?,
            Some(path) => tracing::warn!(
                file = %path.display(),
                "no admin bundle: [tls].admin_root_cafile_path is empty, or names an absent or empty file"
            ),
            None => {}
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_| TlsError::NoRoots(self.root_ca.clone()))?;

        let chain = pem::certificates(&self.certificate)?;
        let private_key = pem::private_key(&self.key)?;
        let certified_key = certified_key(chain, private_key, &self.key)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|source| refused(&self.key, "can't be served with", source))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified_key)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would bring back a certificate without verifying it again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    path: &Path,
) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(chain, key, &provider())
        .map_err(|source| refused(path, "is not the key of the certificate", source))
}

fn refused(path: &Path, what: &'static str, source: rustls::Error) -> TlsError {
    TlsError::Refused {
        path: path.to_owned(),
        what,
        source,
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Whether there is anything in the file; a file that can't be read has, so that
/// the reason comes to light.
fn has_content(path: &Path) -> bool {
    if path.as_os_str().is_empty() {
        return false;
    }
    match std::fs::read(path) {
        Ok(text) => !text.trim_ascii().is_empty(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsError> {
    for certificate in pem::certificates(path)? {
        roots.add(certificate).map_err(|source| {
            refused(
                path,
                "holds a certificate that is no CA certificate",
                source,
            )
        })?;
    }
    Ok(())
}
