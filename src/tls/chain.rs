//! The server's certificate chain and its private key.

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    TlsError, Validity,
    algorithms::{SUPPORTED_KEYS, is_supported_key, key_name},
    file_contents::{CERTIFICATE, KEY},
    item::{Certificates, Warning, item, readable, subject, validity},
    provider::provider,
};
use crate::tls::pem::{Located, PemFile};

/// The validity of the server's certificate, the first of its chain. Fails if any certificate
/// of the chain can't be parsed.
pub(super) fn own_validity(file: &PemFile, chain: &Certificates) -> Result<Validity, TlsError> {
    let mut own = None;
    for located in chain {
        let certificate = readable(file, located)?;
        own.get_or_insert(validity(&certificate));
    }
    // A chain has at least one certificate.
    Ok(own.unwrap_or(Validity { from: 0, to: 0 }))
}

/// A warning about the first certificate that did not issue the certificate before it.
pub(super) fn order_warning(chain: &Certificates) -> Option<Warning> {
    chain.windows(2).find_map(|pair| {
        let (_, issued) = X509Certificate::from_der(&pair[0].item).ok()?;
        let (_, issuer) = X509Certificate::from_der(&pair[1].item).ok()?;
        (issued.issuer().as_raw() != issuer.subject().as_raw()).then(|| Warning {
            line: pair[1].line,
            subject: subject(&pair[1].item),
            problem:
                "this certificate of the server's chain did not issue the certificate before it, \
                 so some clients may refuse the chain: put each certificate before its issuer's"
                    .to_owned(),
        })
    })
}

/// The server's chain with its private key. The error names the setting that is wrong.
pub(super) fn pair_up(
    (certificate, key): (&PemFile, &PemFile),
    chain: &Certificates,
    der: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, (&'static str, TlsError)> {
    let own = readable(certificate, &chain[0]).map_err(|error| (CERTIFICATE, error))?;
    let name = key_name(own.public_key());
    let of_certificate = |i: usize, problem: &str| {
        let located: &Located<CertificateDer<'_>> = &chain[i];
        let problem = format!("the certificate of {} {problem}", subject(&located.item));
        (CERTIFICATE, item(certificate, located.line, &problem))
    };
    if !is_supported_key(own.public_key()) {
        let problem =
            format!("has a key of the kind {name}, which is not supported: {SUPPORTED_KEYS}");
        return Err(of_certificate(0, &problem));
    }
    let signer = provider().key_provider.load_private_key(der);
    let signer = signer.map_err(|_| {
        let problem = format!(
            "the private key can't be loaded. The certificate has a key of the kind {name}: \
             install that key. If the file already holds it, it may have explicit curve \
             parameters: convert it with openssl ec -in FILE -param_enc named_curve -out NEW_FILE"
        );
        (KEY, item(key, None, &problem))
    })?;
    let is_key_of = |der: &CertificateDer<'_>| {
        let Some(public) = signer.public_key() else {
            return false;
        };
        X509Certificate::from_der(der)
            .is_ok_and(|(_, certificate)| *public == *certificate.public_key().raw)
    };
    let ders = chain.iter().map(|located| located.item.clone());
    match ders.clone().position(|der| is_key_of(&der)) {
        Some(0) => {
            let pair = CertifiedKey::new(ders.collect(), signer);
            // This also rejects certificates that clients can't parse, such as X.509 version 1.
            pair.keys_match().map_err(|error| {
                let problem = format!("can't be served ({error}): issue it again");
                of_certificate(0, &problem)
            })?;
            Ok(pair)
        }
        Some(place) => Err(of_certificate(
            place,
            "belongs to the private key, but is not the first in the file: put it first, then the \
             certificate of its issuer, then that of the next issuer",
        )),
        None => Err((
            KEY,
            TlsError::OtherKey {
                key: key.path().to_owned(),
                certificate: certificate.path().to_owned(),
            },
        )),
    }
}
