//! Bundles of CA certificates.

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
};
use x509_parser::{
    certificate::BasicExtension,
    extensions::KeyUsage,
    prelude::{FromDer, X509Certificate, X509Version},
};

use super::{
    TlsError,
    algorithms::{is_supported_key, key_name},
    format_time,
    item::{Certificates, Warning, item, readable, subject, validity},
    seconds,
};
use crate::tls::pem::{Located, PemFile};

/// A problem of a CA certificate that does not make the bundle unusable.
pub(super) fn warning(located: &Located<CertificateDer<'_>>) -> Option<Warning> {
    let (_, certificate) = X509Certificate::from_der(&located.item).ok()?;
    let key = certificate.public_key();
    let end = validity(&certificate).to;
    let problem = if !is_supported_key(key) {
        format!(
            "a CA of the bundle has a key of the kind {}, which is not supported: the server \
             refuses the certificates that this CA issued",
            key_name(key)
        )
    } else if end < seconds(UnixTime::now()) {
        format!(
            "a CA of the bundle has expired at {} and is still trusted: remove it from the bundle",
            format_time(end)
        )
    } else {
        return None;
    };
    Some(Warning {
        line: located.line,
        subject: subject(&located.item),
        problem,
    })
}

/// The certificates of a bundle. Each of them is usable as a trust anchor.
pub(super) fn authorities(file: &PemFile) -> Result<Certificates, TlsError> {
    let certificates = file.certificates()?;
    for located in &certificates {
        if let Some(problem) = authority_problem(&readable(file, located)?) {
            let problem = format!("the certificate of {} {problem}", subject(&located.item));
            return Err(item(file, located.line, &problem));
        }
        add_anchor(&mut RootCertStore::empty(), file, located)?;
    }
    Ok(certificates)
}

/// Adds the certificate to `roots`.
pub(crate) fn add_anchor(
    roots: &mut RootCertStore,
    file: &PemFile,
    located: &Located<CertificateDer<'static>>,
) -> Result<(), TlsError> {
    readable(file, located)?;
    roots.add(located.item.clone()).map_err(|error| {
        let subject = subject(&located.item);
        let problem =
            format!("the certificate of {subject} can't be a trust anchor ({error}): remove it");
        item(file, located.line, &problem)
    })
}

/// Checks basicConstraints and key usage (RFC 5280, 4.2.1.9 and 4.2.1.3). rustls accepts any
/// certificate as an anchor, even a service's certificate that got into the bundle by mistake.
/// X.509 versions 1 and 2 have no extensions, so there is nothing to check.
fn authority_problem(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    let issues = |usage: Option<BasicExtension<&KeyUsage>>| {
        usage.is_none_or(|usage| usage.value.key_cert_sign())
    };
    if certificate.version() != X509Version::V3 {
        return None;
    }
    if !certificate.is_ca() {
        return Some(
            "is not a CA certificate, because it lacks basicConstraints CA:TRUE: remove it, since \
             the holder of its key could issue certificates that this server trusts",
        );
    }
    if !certificate.key_usage().is_ok_and(issues) {
        return Some(
            "is not a CA certificate, because its key usage lacks keyCertSign: remove it, or issue \
             it again with keyCertSign",
        );
    }
    None
}
