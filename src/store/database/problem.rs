//! Explains to the operator why TLS with the database failed.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use thiserror::Error;

use crate::tls::{SUPPORTED_KEYS, SUPPORTED_SIGNATURES, Validity, algorithm_name, spelled_time};

/// Problems that this program's own verifier finds.
#[derive(Debug, Error)]
pub(super) enum Problem {
    #[error(
        "the server's certificate has a key of the kind {0}, which is not supported here: \
         {SUPPORTED_KEYS}"
    )]
    Key(String),
    #[error("the server's certificate is {0}: renew it, or set the clock")]
    OutsideValidity(Validity),
    #[error(
        "the server's certificate is marked as a CA certificate and is not in sslrootcert: put the \
         certificate itself into sslrootcert, or issue one with basicConstraints=CA:FALSE"
    )]
    Authority,
    #[error(
        "the server's certificate has X.509 version 1, which can't be verified here: issue one with \
         version 3 and a subjectAltName, or put the certificate itself into sslrootcert"
    )]
    Version,
    #[error(
        "the server's certificate is not for the host {0:?} of database_url: it has no \
         subjectAltName, and its common name differs"
    )]
    CommonName(String),
}

/// The TLS problem behind an error of the driver, if there is one.
pub(crate) fn tls_problem(error: &tokio_postgres::Error) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(|error| error.get_ref())
            .and_then(|inner| inner.downcast_ref::<TlsError>());
        if let Some(error) = inner {
            return Some(format!("TLS with the server failed: {}", describe(error)));
        }
        cause = error.source();
    }
    None
}

/// True if the server has answered that it does not support TLS. The driver has no other
/// mark for this error than its text.
pub(super) fn offers_no_tls(error: &tokio_postgres::Error) -> bool {
    let source = error.source().map(ToString::to_string);
    source.as_deref() == Some("server does not support TLS")
}

fn describe(error: &TlsError) -> String {
    use CertificateError as E;
    let error = match error {
        TlsError::InvalidCertificate(error) => error,
        TlsError::AlertReceived(AlertDescription::HandshakeFailure) => {
            return format!(
                "the server and this program have no key type or cipher in common. For the server's \
                 certificate, {SUPPORTED_KEYS}"
            );
        }
        other => return other.to_string(),
    };
    match error {
        E::Other(other) if other.0.is::<Problem>() => other.0.to_string(),
        E::UnknownIssuer => "the server's certificate is not issued by a CA of sslrootcert: name \
                             the file with the right CA in sslrootcert"
            .to_owned(),
        E::NotValidForNameContext {
            expected,
            presented,
        } => {
            let host = expected.to_str();
            if presented.is_empty() {
                format!(
                    "the server's certificate has no subjectAltName: issue one with the host \
                     {host:?} of database_url. Its common name is ignored"
                )
            } else {
                let names = presented.join(", ");
                format!(
                    "the server's certificate is not for the host {host:?} of database_url. It is \
                     for {names}: use one of these names, or issue the certificate again"
                )
            }
        }
        E::ExpiredContext { not_after, .. } => format!(
            "the server's certificate, or one of its CAs, expired at {}: renew it, or set the clock",
            spelled_time(*not_after)
        ),
        E::NotValidYetContext { not_before, .. } => format!(
            "the server's certificate, or one of its CAs, is not valid before {}: set the clock",
            spelled_time(*not_before)
        ),
        E::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id,
            ..
        } => format!(
            "the server's certificate is signed with {}, which is not supported here: \
             {SUPPORTED_SIGNATURES}",
            algorithm_name(signature_algorithm_id)
        ),
        E::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id,
            public_key_algorithm_id,
        } => format!(
            "the server's certificate is signed with {} by a key of the kind {}, which is not \
             supported here: {SUPPORTED_SIGNATURES}",
            algorithm_name(signature_algorithm_id),
            algorithm_name(public_key_algorithm_id)
        ),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the server's certificate is not for TLS servers: its extended key usage lacks \
             serverAuth"
                .to_owned()
        }
        E::BadEncoding => {
            "the server's certificate can't be read: issue it again with X.509 version 3".to_owned()
        }
        other => format!("the server's certificate can't be verified ({other})"),
    }
}
