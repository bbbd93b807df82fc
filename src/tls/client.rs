//! TLS of a client of other servers of the site.

use std::path::Path;

use rustls::{ClientConfig, RootCertStore};

use super::{TlsError, add_anchor, pem::PemFile, provider};

/// Builds the TLS configuration that trusts the CAs of the file.
///
/// # Errors
///
/// What is wrong with the file.
pub fn trusting(ca_file: &Path) -> Result<ClientConfig, TlsError> {
    let file = PemFile::read(ca_file)?;
    let mut roots = RootCertStore::empty();
    for located in &file.certificates()? {
        add_anchor(&mut roots, &file, located)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configuration)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
