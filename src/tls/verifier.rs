//! The verifier of client certificates.
//!
//! rustls uses only the first revocation list of an issuer name. If an issuer has lists of
//! several keys, this module builds one rustls verifier for each combination of lists, and
//! decides from all their results.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use x509_parser::{
    asn1_rs::ToDer,
    prelude::{FromDer, X509Certificate},
};

use super::{
    CrlPolicy, TlsError,
    algorithms::is_supported_signature,
    provider::provider,
    revocation::{RevocationList, crl_combinations},
};

/// A verifier for chains that end in one of `authorities`.
pub(super) fn verifier(
    authorities: &[CertificateDer<'static>],
    lists: &[RevocationList],
    policy: CrlPolicy,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    let roots = Arc::new(roots);
    let of = |lists: &[&RevocationList]| {
        let builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        Ok::<_, TlsError>(policy.apply(builder, lists).build()?)
    };
    let crl_combinations = crl_combinations(lists)?;
    let verifiers = crl_combinations.iter().map(|lists| of(lists));
    let verifiers: Vec<_> = verifiers.collect::<Result<_, _>>()?;
    Ok(Arc::new(AnyCombination(verifiers)))
}

/// One or more verifiers that differ in their revocation lists only. A certificate is accepted
/// if one verifier accepts it and no other gives an error of rank 0: see [`rank`].
#[derive(Debug)]
struct AnyCombination(Vec<Arc<dyn ClientCertVerifier>>);

impl AnyCombination {
    fn first(&self) -> &dyn ClientCertVerifier {
        &*self.0[0]
    }
}

impl ClientCertVerifier for AnyCombination {
    /// An empty list, so that a client may send any certificate (RFC 8446, section 4.2.4;
    /// RFC 5246, section 7.4.4). A handshake can hold 64 KiB of names, and the names of a large
    /// bundle may exceed that. Also, a Go client sends no certificate if its issuer is not
    /// listed, and the issuer may be an intermediate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let answers = self
            .0
            .iter()
            .map(|verifier| verifier.verify_client_cert(end_entity, intermediates, now));
        answers
            .min_by_key(rank)
            .unwrap_or(Err(CertificateError::UnknownRevocationStatus.into()))
            .map_err(|error| {
                let chain = std::iter::once(end_entity).chain(intermediates);
                unsupported(chain)
                    .filter(|_| may_be_unsupported(&error))
                    .unwrap_or(error)
            })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.first().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.first().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.first().supported_verify_schemes()
    }
}

/// Whether an unsupported signature may be the cause. If several CAs have one name, rustls
/// reports the error for one of them only, which may not be the CA that signed.
fn may_be_unsupported(error: &Error) -> bool {
    use CertificateError as E;
    matches!(
        error,
        Error::InvalidCertificate(
            E::BadSignature
                | E::UnsupportedSignatureAlgorithmContext { .. }
                | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        )
    )
}

/// The error for the first certificate whose signature algorithm the provider does not support
/// with any key.
fn unsupported<'a>(chain: impl Iterator<Item = &'a CertificateDer<'a>>) -> Option<Error> {
    chain
        .filter_map(|der| X509Certificate::from_der(der).ok())
        .map(|(_, certificate)| certificate.signature_algorithm)
        .find(|algorithm| !is_supported_signature(algorithm, None))
        .and_then(|algorithm| {
            Some(
                CertificateError::UnsupportedSignatureAlgorithmContext {
                    signature_algorithm_id: algorithm.algorithm.to_der_vec().ok()?,
                    supported_algorithms: Vec::new(),
                }
                .into(),
            )
        })
}

/// The rank of a result. The result with the lowest rank decides.
///
/// * Rank 0: `Revoked`, and every error that does not depend on the lists. The certificate is
///   refused, even if other combinations accept it. The other errors rank as high as `Revoked`,
///   because a client can make webpki report one of them instead. For example, it sends an
///   expired certificate with the issuer's name, or very many certificates: webpki tries all
///   paths, reports the worst error, and gives up after too many attempts.
/// * Rank 1: `Ok`.
/// * Ranks 2 and 3: the list is missing or has expired, covers other certificates, or is of
///   another key than the issuer's. Another combination may give `Ok`.
fn rank(answer: &Result<ClientCertVerified, Error>) -> u8 {
    use CertificateError as E;
    match answer {
        Ok(_) => 1,
        Err(Error::InvalidCertificate(
            E::UnknownRevocationStatus
            | E::ExpiredRevocationList
            | E::ExpiredRevocationListContext { .. },
        )) => 2,
        // webpki reports the first of several errors that it ranks equally. Perhaps this key
        // did not sign the certificate, and another combination gives `Ok`.
        Err(
            Error::InvalidCertRevocationList(_)
            | Error::InvalidCertificate(
                E::BadSignature | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
            ),
        ) => 3,
        Err(_) => 0,
    }
}
