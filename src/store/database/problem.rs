//! Why there is no TLS to the database, in words for the operator.

use std::{error::Error, io};

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use thiserror::Error;

use crate::tls::{SUPPORTED_KEYS, SUPPORTED_SIGNATURES, Validity, algorithm_name, spelled_time};

/// What our own verifier finds.
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
        "the server's certificate is marked as that of a CA, and is not in sslrootcert: put the \
         certificate itself into sslrootcert, or issue one with basicConstraints=CA:FALSE"
    )]
    Authority,
    #[error(
        "the server's certificate is of X.509 version 1, which can't be verified here: issue one of \
         version 3 with a subjectAltName, or put the certificate itself into sslrootcert"
    )]
    Version,
    #[error(
        "the server's certificate is not for the host {0:?} of database_url: it has no \
         subjectAltName, and its common name is another one"
    )]
    CommonName(String),
}

/// What went wrong with TLS, if the error of the driver comes from there.
pub(crate) fn tls_problem(error: &tokio_postgres::Error) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(|error| error.get_ref())
            .and_then(|inner| inner.downcast_ref::<TlsError>());
        if let Some(error) = inner {
            return Some(format!("TLS with the server failed: {}", words(error)));
        }
        cause = error.source();
    }
    None
}

fn words(error: &TlsError) -> String {
    use CertificateError as E;
    let error = match error {
        TlsError::InvalidCertificate(error) => error,
        TlsError::AlertReceived(AlertDescription::HandshakeFailure) => {
            return format!(
                "the server has no key or cipher in common with this program. For the server's \
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
                     {host:?} of database_url. Its common name does not count"
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
            "the server's certificate can't be read: issue it again, as X.509 version 3".to_owned()
        }
        other => format!("the server's certificate can't be verified ({other})"),
    }
}
