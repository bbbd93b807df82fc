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

use super::{
    CrlPolicy, TlsError,
    material::provider,
    revocation::{RevocationList, selections},
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
    let selections = selections(lists)?;
    let (first, others) = match &selections[..] {
        [] => (of(&[])?, Vec::new()),
        [first, others @ ..] => {
            let others: Result<_, _> = others.iter().map(|lists| of(lists)).collect();
            (of(first)?, others?)
        }
    };
    if others.is_empty() {
        return Ok(first);
    }
    Ok(Arc::new(AnyOf { first, others }))
}

/// Verifiers that differ in their revocation lists only, one of which is enough.
#[derive(Debug)]
struct AnyOf {
    first: Arc<dyn ClientCertVerifier>,
    others: Vec<Arc<dyn ClientCertVerifier>>,
}

impl ClientCertVerifier for AnyOf {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.first.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verify = |verifier: &Arc<dyn ClientCertVerifier>| {
            verifier.verify_client_cert(end_entity, intermediates, now)
        };
        let mut result = verify(&self.first);
        for other in &self.others {
            let Err(error) = &result else { break };
            // All but the one with the right lists say that a signature does not hold.
            match verify(other) {
                Err(Error::InvalidCertRevocationList(_)) => {}
                Err(_) if *error == Error::InvalidCertificate(CertificateError::Revoked) => {}
                better => result = better,
            }
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.first.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.first.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.first.supported_verify_schemes()
    }
}
