//! Maps libpq's `sslmode` to a TLS configuration.

use std::{path::PathBuf, sync::Arc};

use rustls::{ClientConfig, RootCertStore, client::WebPkiServerVerifier};

use super::{
    error::DatabaseError,
    ssl_mode::SslMode,
    verifier::{Check, Trusted, Verifier},
};
use crate::tls::{add_anchor, pem::PemFile, provider};

/// The TLS settings of a connection.
pub(super) struct Tls {
    pub(super) config: ClientConfig,
    /// The file of `sslrootcert`, and the number of certificates in it.
    pub(super) root_certificates: Option<(PathBuf, usize)>,
}

/// Builds the TLS settings for `ssl_mode`.
pub(super) fn client_config(
    ssl_mode: SslMode,
    root_certificate: Option<PathBuf>,
) -> Result<Tls, DatabaseError> {
    let provider = provider();
    let mut root_certificates = None;
    let check = match (ssl_mode, root_certificate) {
        (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
            return Err(DatabaseError::NoRootCertificate);
        }
        (SslMode::Disable | SslMode::Prefer, _) | (SslMode::Require, None) => Check::Nothing,
        (mode, Some(path)) => {
            let trusted = trusted(&PemFile::read(&path)?)?;
            root_certificates = Some((path, trusted.certificates.len()));
            if mode == SslMode::VerifyFull {
                Check::ChainAndName(trusted)
            } else {
                // In libpq, `require` with a root certificate means `verify-ca`.
                Check::Chain(trusted)
            }
        }
    };
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| DatabaseError::Verifier(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { check, provider }))
        .with_no_client_auth();
    Ok(Tls {
        config,
        root_certificates,
    })
}

fn trusted(file: &PemFile) -> Result<Trusted, DatabaseError> {
    let certificates = file.certificates()?;
    let mut roots = RootCertStore::empty();
    for located in &certificates {
        add_anchor(&mut roots, file, located)
            .map_err(|error| DatabaseError::Verifier(error.to_string()))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| DatabaseError::Verifier(error.to_string()))?;
    Ok(Trusted {
        certificates: certificates
            .into_iter()
            .map(|located| located.item)
            .collect(),
        verifier,
    })
}
