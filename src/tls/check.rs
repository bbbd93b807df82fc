//! What is in the files, taken apart and checked: once, for the start and for every reload.

use std::path::PathBuf;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    sign::CertifiedKey,
};
use x509_parser::{
    certificate::BasicExtension,
    extensions::KeyUsage,
    prelude::{FromDer, X509Certificate, X509Version},
};

use super::{
    Fault, Place, TlsError, Validity,
    algorithms::{SUPPORTED_KEYS, is_supported_key, key_name},
    material::{ADMIN_ROOT_CA, CERTIFICATE, CRLS, KEY, Material, ROOT_CA, fault},
    provider::provider,
    revocation::{self, RevocationList},
};
use crate::{
    distinguished_name::DistinguishedName,
    pem::{Located, PemFile},
};

type Certificates = Vec<Located<CertificateDer<'static>>>;

/// What the files hold, all of it usable.
pub(super) struct Checked {
    pub(super) certified_key: CertifiedKey,
    /// Of the server's own certificate.
    pub(super) validity: Validity,
    pub(super) root_cas: Vec<CertificateDer<'static>>,
    pub(super) admin_cas: Option<Vec<CertificateDer<'static>>>,
    pub(super) lists: Vec<RevocationList>,
    pub(super) contents: Vec<Content>,
}

/// How much was read from a file.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) setting: &'static str,
    pub(super) path: PathBuf,
    pub(super) certificates: Option<usize>,
    pub(super) keys: Option<usize>,
    pub(super) lists: Option<usize>,
    /// Of a bundle: the certificates and when they end.
    pub(super) ends: Vec<End>,
}

/// When the certificate of a CA ends.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) line: Option<usize>,
    pub(super) subject: String,
    pub(super) time: i64,
}

/// Checks everything that was read. `Ok(None)` if a file is missing for which there is no
/// setting. `new_certificate`: the server's certificate must be valid now.
pub(super) fn check(
    material: Material,
    new_certificate: bool,
) -> Result<Option<Checked>, Vec<Fault>> {
    let mut faults = material.faults;
    let mut contents = Vec::new();

    let chain = material.certificate.as_ref().map(|file| {
        let chain = file.certificates().map_err(TlsError::from);
        let chain = chain.and_then(|chain| own_chain(file, &chain).map(|own| (chain, own)));
        chain.and_then(|(chain, validity)| {
            if new_certificate && !validity.contains(UnixTime::now()) {
                let path = file.path().to_owned();
                return Err(TlsError::NotNow { path, validity });
            }
            Ok((chain, validity))
        })
    });
    let chain = chain.and_then(|chain| fault(&mut faults, CERTIFICATE, chain));
    let key = material.key.as_ref().map(PemFile::private_key);
    let key = key.and_then(|key| fault(&mut faults, KEY, key));
    for file in material.certificate.iter().filter(|_| chain.is_some()) {
        let certificates = chain.as_ref().map(|(chain, _)| chain.len());
        contents.push(content(CERTIFICATE, file, certificates, None, None));
    }
    for file in material.key.iter().filter(|_| key.is_some()) {
        contents.push(content(KEY, file, None, Some(1), None));
    }
    let files = material.certificate.as_ref().zip(material.key.as_ref());
    let pair = chain.zip(key).zip(files);
    let pair = pair.and_then(|(((chain, validity), key), files)| {
        let pair = pair_up(files, &chain, key);
        let pair = pair.map_err(|(setting, error)| faults.push(Fault { setting, error }));
        Some((pair.ok()?, validity))
    });

    let mut bundle = |setting, file: Option<&PemFile>| {
        let found = file.map(authorities)?;
        let found = fault(&mut faults, setting, found)?;
        contents.extend(file.map(|file| Content {
            ends: found.iter().filter_map(end).collect(),
            ..content(setting, file, Some(found.len()), None, None)
        }));
        Some(
            found
                .into_iter()
                .map(|located| located.item)
                .collect::<Vec<_>>(),
        )
    };
    let root_cas = bundle(ROOT_CA, material.root_ca.as_ref());
    let admin_cas = bundle(ADMIN_ROOT_CA, material.admin_root_ca.as_ref());
    let union = [&root_cas, &admin_cas].map(|cas| cas.as_deref().unwrap_or_default());
    let union = union.concat();

    let mut lists = Vec::new();
    for file in &material.crls {
        if let Some(found) = fault(&mut faults, CRLS, revocation::lists(file, &union)) {
            contents.push(content(CRLS, file, None, None, Some(found.len())));
            lists.extend(found);
        }
    }
    let lists = fault(&mut faults, CRLS, revocation::in_order(lists));

    if !faults.is_empty() {
        return Err(faults);
    }
    let complete = pair.zip(root_cas).zip(lists);
    Ok(complete.map(|((pair, root_cas), lists)| {
        let (certified_key, validity) = pair;
        Checked {
            certified_key,
            validity,
            root_cas,
            admin_cas,
            lists,
            contents,
        }
    }))
}

fn content(
    setting: &'static str,
    file: &PemFile,
    certificates: Option<usize>,
    keys: Option<usize>,
    lists: Option<usize>,
) -> Content {
    Content {
        setting,
        path: file.path().to_owned(),
        certificates,
        keys,
        lists,
        ends: Vec::new(),
    }
}

fn end(located: &Located<CertificateDer<'_>>) -> Option<End> {
    let (_, certificate) = X509Certificate::from_der(&located.item).ok()?;
    Some(End {
        line: located.line,
        subject: subject(&located.item),
        time: validity(&certificate).to,
    })
}

/// The validity of the server's own certificate, which is the first of its chain. Every
/// certificate of the chain can be read.
fn own_chain(file: &PemFile, chain: &Certificates) -> Result<Validity, TlsError> {
    let mut own = None;
    for located in chain {
        let certificate = readable(file, located)?;
        own.get_or_insert(validity(&certificate));
    }
    // The file holds at least one.
    Ok(own.unwrap_or(Validity { from: 0, to: 0 }))
}

/// When the certificate is valid.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> Validity {
    Validity {
        from: certificate.validity().not_before.timestamp(),
        to: certificate.validity().not_after.timestamp(),
    }
}

fn readable<'a>(
    file: &PemFile,
    located: &'a Located<CertificateDer<'_>>,
) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(&located.item) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(item(file, located.line, "this is not an X.509 certificate")),
    }
}

/// The server's chain with its key; the error names the setting that is wrong.
fn pair_up(
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
             install that key. If it is one, it may have explicit curve parameters: convert it \
             with openssl ec -in FILE -param_enc named_curve -out NEW_FILE"
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
            // Also finds what clients refuse to read, such as X.509 version 1.
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

/// The certificates of a bundle, every one of which can be a trust anchor.
fn authorities(file: &PemFile) -> Result<Certificates, TlsError> {
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

/// RFC 5280, 4.2.1.9 and 4.2.1.3. rustls takes whatever it is given for an anchor, a
/// service's certificate that got into a bundle too. A version before the third has no
/// extension to say it with.
fn authority_problem(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    let issues = |usage: Option<BasicExtension<&KeyUsage>>| {
        usage.is_none_or(|usage| usage.value.key_cert_sign())
    };
    if certificate.version() != X509Version::V3 {
        return None;
    }
    if !certificate.is_ca() {
        return Some(
            "is not a CA certificate, because it lacks basicConstraints CA:TRUE: remove it, or \
             whoever has its key could issue certificates",
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

/// The subject of a certificate, for messages.
fn subject(der: &CertificateDer<'_>) -> String {
    let parsed = X509Certificate::from_der(der);
    let name = parsed.map(|(_, parsed)| DistinguishedName::new(parsed.subject()).to_string());
    match name {
        Ok(name) if !name.is_empty() => name,
        _ => "an empty subject".to_owned(),
    }
}

/// A certificate, key or list of a file is of no use.
pub(super) fn item(file: &PemFile, line: Option<usize>, problem: &str) -> TlsError {
    TlsError::Item {
        place: Place {
            path: file.path().to_owned(),
            line,
        },
        problem: problem.to_owned(),
    }
}
