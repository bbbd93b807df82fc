//! The reason of a refused handshake: a stable label for metrics, and a text for the log.

use rustls::{CertificateError, Error};

use super::algorithms::{SUPPORTED_SIGNATURES, algorithm_name};

/// The text for the log about a handshake that ended with `error`.
pub(crate) fn explain_io(error: &std::io::Error) -> String {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => explain(error),
        None => error.to_string(),
    }
}

/// The text for the log about an error of rustls. For an unsupported signature it names the
/// algorithms and says what to do, which the text of rustls does not.
pub(crate) fn explain(error: &Error) -> String {
    use CertificateError as E;
    let (signature, by) = match error {
        Error::InvalidCertificate(E::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id,
            ..
        }) => (signature_algorithm_id, String::new()),
        Error::InvalidCertificate(E::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id,
            public_key_algorithm_id,
        }) => {
            let key = algorithm_name(public_key_algorithm_id);
            (
                signature_algorithm_id,
                format!(" by a key of the kind {key}"),
            )
        }
        other => return other.to_string(),
    };
    let signature = algorithm_name(signature);
    format!(
        "a certificate of the client's chain is signed with {signature}{by}, which is not \
         supported: {SUPPORTED_SIGNATURES}"
    )
}

/// The label for a handshake that ended with `error`.
pub(crate) fn reason_of_io(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => reason_of(error),
        // The client closed or reset the connection.
        None => "closed",
    }
}

/// The label for an error of rustls.
pub(crate) fn reason_of(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(error) => reason_of_certificate(error),
        Error::InvalidCertRevocationList(_) => "crl_unusable",
        Error::NoApplicationProtocol => "no_h2",
        Error::PeerIncompatible(_) => "incompatible",
        // Most likely, the client refused the server's certificate.
        Error::AlertReceived(_) => "client_alert",
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::InvalidEncryptedClientHello(_)
        | Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => "protocol_error",
        // The remaining errors are the server's: no clock, no randomness, a bad configuration.
        _ => "internal",
    }
}

fn reason_of_certificate(error: &CertificateError) -> &'static str {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => "unknown_ca",
        E::Expired | E::ExpiredContext { .. } => "expired",
        E::NotValidYet | E::NotValidYetContext { .. } => "not_yet_valid",
        E::Revoked => "revoked",
        E::UnknownRevocationStatus => "crl_missing",
        E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => "crl_expired",
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => "bad_eku",
        E::UnsupportedSignatureAlgorithmContext { .. }
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => "unsupported_signature",
        // For example: malformed, a wrong signature, a CA as the leaf, a violated name constraint.
        _ => "bad_certificate",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{
        AlertDescription, CertRevocationListError, ExtendedKeyPurpose, InvalidMessage,
        PeerIncompatible, PeerMisbehaved, pki_types::UnixTime,
    };

    use super::*;
    use crate::telemetry;

    #[test]
    fn every_reason_has_its_label() {
        use CertificateError as C;
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1));
        let crl = |error| Error::InvalidCertRevocationList(error);
        let table = [
            (Error::NoCertificatesPresented, "no_certificate"),
            (C::UnknownIssuer.into(), "unknown_ca"),
            (C::Expired.into(), "expired"),
            (
                C::ExpiredContext {
                    time,
                    not_after: time,
                }
                .into(),
                "expired",
            ),
            (C::NotValidYet.into(), "not_yet_valid"),
            (
                C::NotValidYetContext {
                    time,
                    not_before: time,
                }
                .into(),
                "not_yet_valid",
            ),
            (C::Revoked.into(), "revoked"),
            (C::UnknownRevocationStatus.into(), "crl_missing"),
            (C::ExpiredRevocationList.into(), "crl_expired"),
            (
                C::ExpiredRevocationListContext {
                    time,
                    next_update: time,
                }
                .into(),
                "crl_expired",
            ),
            (crl(CertRevocationListError::BadSignature), "crl_unusable"),
            (
                crl(CertRevocationListError::IssuerInvalidForCrl),
                "crl_unusable",
            ),
            (C::InvalidPurpose.into(), "bad_eku"),
            (
                C::InvalidPurposeContext {
                    required: ExtendedKeyPurpose::ClientAuth,
                    presented: vec![],
                }
                .into(),
                "bad_eku",
            ),
            (
                C::UnsupportedSignatureAlgorithmContext {
                    signature_algorithm_id: vec![],
                    supported_algorithms: vec![],
                }
                .into(),
                "unsupported_signature",
            ),
            (
                C::UnsupportedSignatureAlgorithmForPublicKeyContext {
                    signature_algorithm_id: vec![],
                    public_key_algorithm_id: vec![],
                }
                .into(),
                "unsupported_signature",
            ),
            (C::BadEncoding.into(), "bad_certificate"),
            (C::BadSignature.into(), "bad_certificate"),
            (C::UnhandledCriticalExtension.into(), "bad_certificate"),
            (C::ApplicationVerificationFailure.into(), "bad_certificate"),
            (Error::NoApplicationProtocol, "no_h2"),
            (
                PeerIncompatible::NoCipherSuitesInCommon.into(),
                "incompatible",
            ),
            (
                PeerIncompatible::Tls12NotOfferedOrEnabled.into(),
                "incompatible",
            ),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                "client_alert",
            ),
            (
                PeerMisbehaved::TooMuchEarlyDataReceived.into(),
                "protocol_error",
            ),
            (InvalidMessage::InvalidContentType.into(), "protocol_error"),
            (Error::DecryptError, "protocol_error"),
            (Error::PeerSentOversizedRecord, "protocol_error"),
            (Error::FailedToGetCurrentTime, "internal"),
            (Error::FailedToGetRandomBytes, "internal"),
            (Error::General(String::new()), "internal"),
        ];
        for (error, label) in table {
            assert_eq!(reason_of(&error), label, "{error:?}");
            let is_counted = telemetry::CERTIFICATE_REASONS.contains(&label)
                || telemetry::HANDSHAKE_REASONS.contains(&label);
            assert!(
                is_counted,
                "{label} is not among the reasons of the metrics"
            );
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(reason_of_io(&error), label);
        }
        let gone = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(reason_of_io(&gone), "closed");
    }
}
