//! Helpers for the certificates, keys and revocation lists of a file.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Place, TlsError, Validity};
use crate::{
    auth::distinguished_name::DistinguishedName,
    tls::pem::{Located, PemFile},
};

/// The certificates of a file, in its order.
pub(super) type Certificates = Vec<Located<CertificateDer<'static>>>;

/// A problem of a certificate that does not make its file unusable.
#[derive(Debug, Clone)]
pub(super) struct Warning {
    pub(super) line: Option<usize>,
    pub(super) subject: String,
    pub(super) problem: String,
}

/// When the certificate is valid.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Validity {
    Validity {
        from: certificate.validity().not_before.timestamp(),
        to: certificate.validity().not_after.timestamp(),
    }
}

/// Parses the certificate. Fails if bytes are left over.
pub(super) fn readable<'a>(
    file: &PemFile,
    located: &'a Located<CertificateDer<'_>>,
) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(&located.item) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(item(file, located.line, "this is not an X.509 certificate")),
    }
}

/// The subject of a certificate, for messages.
pub(super) fn subject(der: &CertificateDer<'_>) -> String {
    let parsed = X509Certificate::from_der(der);
    let name = parsed.map(|(_, parsed)| DistinguishedName::new(parsed.subject()).to_string());
    match name {
        Ok(name) if !name.is_empty() => name,
        _ => "an empty subject".to_owned(),
    }
}

/// The error for a certificate, key or revocation list that can't be used.
pub(super) fn item(file: &PemFile, line: Option<usize>, problem: &str) -> TlsError {
    TlsError::Item {
        place: Place {
            path: file.path().to_owned(),
            line,
        },
        problem: problem.to_owned(),
    }
}
