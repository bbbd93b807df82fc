//! Verifies the server's certificate.
//!
//! This differs from the verifier of rustls in two ways. As in libpq, a certificate that
//! `sslrootcert` contains itself is trusted, even if it is self-signed and marked as a CA.
//! And without verification, a certificate may have a version other than 3, which webpki
//! cannot read.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::{
    asn1_rs::Any,
    prelude::{FromDer, X509Certificate, X509Version},
};

use super::problem::Problem;
use crate::{
    auth::distinguished_name::{Attribute, DistinguishedName},
    tls::{is_supported_key, key_name, validity},
};

/// What is checked in the server's certificate.
#[derive(Debug)]
pub(super) enum Check {
    Nothing,
    Chain(Trusted),
    ChainAndName(Trusted),
}

/// The certificates of `sslrootcert`.
#[derive(Debug)]
pub(super) struct Trusted {
    pub(super) certificates: Vec<CertificateDer<'static>>,
    pub(super) verifier: Arc<WebPkiServerVerifier>,
}

/// Verifies the server's certificate as `check` says. It always verifies that the server
/// holds the private key: otherwise channel binding (RFC 5929) would accept an attacker who
/// shows the certificate of the real server.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) check: Check,
    pub(super) provider: Arc<CryptoProvider>,
}

/// Signature schemes of unsupported keys. They are offered anyway. Otherwise such a server
/// would end the handshake before this program can see its certificate and report the
/// problem.
const UNSUPPORTED: [SignatureScheme; 5] = [
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED448,
    // rsa_pss_pss_sha256, _sha384 and _sha512 (RFC 8446, section 4.2.3).
    SignatureScheme::Unknown(0x0809),
    SignatureScheme::Unknown(0x080a),
    SignatureScheme::Unknown(0x080b),
];

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let certificate = parsed(end_entity)?;
        let key = certificate.public_key();
        if !is_supported_key(key) {
            return Err(problem(Problem::Key(key_name(key))));
        }
        let (trusted, with_name) = match &self.check {
            Check::Nothing => return Ok(ServerCertVerified::assertion()),
            Check::Chain(trusted) => (trusted, false),
            Check::ChainAndName(trusted) => (trusted, true),
        };
        if trusted.certificates.contains(end_entity) {
            let validity = validity(&certificate);
            if !validity.contains(now) {
                return Err(problem(Problem::OutsideValidity(validity)));
            }
            if with_name {
                names(&certificate, end_entity, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        if certificate.version() != X509Version::V3 {
            return Err(problem(Problem::Version));
        }
        if certificate.is_ca() {
            return Err(problem(Problem::Authority));
        }
        let verified = trusted.verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // rustls checks the name last. An error about the name means that the chain is
            // valid.
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !with_name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let certificate = parsed(cert)?;
        let key = certificate.public_key();
        let algorithm = algorithm(key.raw).ok_or(CertificateError::BadEncoding)?;
        let algorithms = &self.provider.signature_verification_algorithms.mapping;
        // In TLS 1.2, the signature scheme does not tell the curve.
        let verifies = algorithms
            .iter()
            .filter(|(scheme, _)| *scheme == dss.scheme)
            .flat_map(|(_, algorithms)| *algorithms)
            .find(|known| known.public_key_alg_id().as_ref() == algorithm)
            .is_some_and(|known| {
                let key = &key.subject_public_key.data;
                known
                    .verify_signature(key, message, dss.signature())
                    .is_ok()
            });
        if verifies {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let certificate = parsed(cert)?;
        let key = certificate.public_key().raw.into();
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let mut schemes = algorithms.supported_schemes();
        schemes.extend(UNSUPPORTED);
        schemes
    }
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    let parsed = X509Certificate::from_der(der);
    parsed
        .map(|(_, certificate)| certificate)
        .map_err(|_| CertificateError::BadEncoding.into())
}

/// The content of the AlgorithmIdentifier of a SubjectPublicKeyInfo (RFC 5280, section
/// 4.1).
fn algorithm(key: &[u8]) -> Option<&[u8]> {
    let (_, key) = Any::from_der(key).ok()?;
    let (_, algorithm) = Any::from_der(key.data).ok()?;
    Some(algorithm.data)
}

/// Whether a certificate that is itself trusted names the host. As in libpq, the common
/// name is used if there is no subject alternative name.
fn names(
    certificate: &X509Certificate<'_>,
    der: &CertificateDer<'_>,
    host: &ServerName<'_>,
) -> Result<(), TlsError> {
    if !matches!(certificate.subject_alternative_name(), Ok(None)) {
        return verify_server_name(&ParsedCertificate::try_from(der)?, host);
    }
    let subject = DistinguishedName::new(certificate.subject());
    let common_name = subject.last(Attribute::CommonName).unwrap_or_default();
    let host = host.to_str();
    let below_wildcard = common_name.strip_prefix('*').is_some_and(|domain| {
        let rest = host.split_once('.').map(|(_, rest)| rest);
        rest.zip(domain.strip_prefix('.'))
            .is_some_and(|(rest, domain)| rest.contains('.') && rest.eq_ignore_ascii_case(domain))
    });
    if common_name.eq_ignore_ascii_case(&host) || below_wildcard {
        return Ok(());
    }
    Err(problem(Problem::CommonName(host.into_owned())))
}

fn problem(problem: Problem) -> TlsError {
    CertificateError::Other(OtherError(Arc::new(problem))).into()
}
