//! rustls' verifier of client certificates, for what lists there are.

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

/// Verifies chains that end in one of `authorities`.
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

/// Verifiers, at least one, that differ in their revocation lists only. One that lets a
/// certificate in is enough, as long as no other may know that it is revoked.
#[derive(Debug)]
struct AnyCombination(Vec<Arc<dyn ClientCertVerifier>>);

impl AnyCombination {
    fn first(&self) -> &dyn ClientCertVerifier {
        &*self.0[0]
    }
}

impl ClientCertVerifier for AnyCombination {
    /// None, so that a client may send whatever certificate it has (RFC 8446, section 4.2.4;
    /// RFC 5246, section 7.4.4). A handshake can list 64 KiB of names, which the CAs of a
    /// large bundle exceed. And a client in Go sends nothing at all if its issuer is an
    /// intermediate, which is not on the list.
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
                    .filter(|_| is_of_a_signature(&error))
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

/// Whether the cause may be a signature that is not supported. Of several CAs of one name,
/// rustls tells of the one whose key fits worst, and only of that.
fn is_of_a_signature(error: &Error) -> bool {
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

/// The error for the first certificate with a signature that no key could have made for us to
/// verify.
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

/// The answer with the lowest counts. Lists of another key than the issuer's say that a
/// signature does not hold, and lists of its own that are over, or of another scope, say
/// so: with other lists the answer may be `Ok` all the same. With every other error it is
/// not. `Revoked` comes from a list that the issuer has signed. What any client can send
/// along puts another error in its place: webpki tells the worst of all ways that it tries,
/// such as by an expired certificate of the issuer's name, and gives up after too many.
fn rank(answer: &Result<ClientCertVerified, Error>) -> u8 {
    use CertificateError as E;
    match answer {
        Ok(_) => 1,
        Err(Error::InvalidCertificate(
            E::UnknownRevocationStatus
            | E::ExpiredRevocationList
            | E::ExpiredRevocationListContext { .. },
        )) => 2,
        // Of several errors of one rank webpki tells the first, which may be that the
        // certificate is not of this key either.
        Err(
            Error::InvalidCertRevocationList(_)
            | Error::InvalidCertificate(
                E::BadSignature | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
            ),
        ) => 3,
        Err(_) => 0,
    }
}
