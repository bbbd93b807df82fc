//! The files' contents, read once and taken apart.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use x509_parser::{
    certificate::BasicExtension,
    extensions::KeyUsage,
    prelude::{FromDer, X509Certificate, X509Version},
};

use super::{TlsError, TlsFiles, revocation, seconds, spelled};
use crate::pem::{PemError, PemFile};

/// Every file of [`TlsFiles`], as it was at one time.
pub(super) struct Material {
    pub(super) certificate: PemFile,
    pub(super) key: PemFile,
    pub(super) root_ca: PemFile,
    /// `None` where there is no admin bundle.
    pub(super) admin_root_ca: Option<PemFile>,
    pub(super) crls: Vec<PemFile>,
}

impl Material {
    pub(super) fn read(files: &TlsFiles) -> Result<Self, PemError> {
        let admin_root_ca = match &files.admin_root_ca {
            Some(path) => read_bundle(path)?,
            None => None,
        };
        let crls = files.crls.iter().map(|path| PemFile::read(path));
        Ok(Self {
            certificate: PemFile::read(&files.certificate)?,
            key: PemFile::read(&files.key)?,
            root_ca: PemFile::read(&files.root_ca)?,
            admin_root_ca,
            crls: crls.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let one = [&self.certificate, &self.key, &self.root_ca];
        let all = one
            .into_iter()
            .map(Some)
            .chain([self.admin_root_ca.as_ref()]);
        let mut hash = Sha256::new();
        for file in all.chain(self.crls.iter().map(Some)) {
            hash.update(Sha256::digest(file.map_or(&[][..], PemFile::bytes)));
        }
        Fingerprint {
            certificate: Sha256::digest(self.certificate.bytes()).into(),
            all: hash.finalize().into(),
        }
    }
}

/// The same for the same contents, and for no others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// Of the server's chain.
    pub(super) certificate: [u8; 32],
    all: [u8; 32],
}

/// The admin bundle, if there is one: nico-api's chart always sets the path, and has
/// the file only if a bundle was given.
fn read_bundle(path: &Path) -> Result<Option<PemFile>, PemError> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    match PemFile::read(path) {
        Ok(file) => Ok(Some(file).filter(|file| !file.bytes().trim_ascii().is_empty())),
        Err(PemError::Unreadable(_, error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Loads every file that is named, and gives the setting of each that is of no use.
pub(crate) fn check(
    certificate: Option<&Path>,
    key: Option<&Path>,
    root_ca: Option<&Path>,
    admin_root_ca: Option<&Path>,
    crls: &[PathBuf],
) -> Vec<(&'static str, TlsError)> {
    let mut faults = Vec::new();
    let mut fault = |setting, error| faults.push((setting, error));
    let certificate = certificate.map(|path| PemFile::read(path).map_err(TlsError::from));
    let key = key.map(|path| PemFile::read(path).map_err(TlsError::from));
    match (certificate, key) {
        (Some(Ok(certificate)), Some(Ok(key))) => {
            for (setting, error) in check_pair(&certificate, &key) {
                fault(setting, error);
            }
        }
        (certificate, key) => {
            let certificate = certificate.map(|file| file.and_then(|file| valid_now(&file)));
            if let Some(Err(error)) = certificate {
                fault("tls.identity_pemfile_path", error);
            }
            let key = key.map(|file| file.and_then(|file| Ok(file.private_key()?)));
            if let Some(Err(error)) = key {
                fault("tls.identity_keyfile_path", error);
            }
        }
    }
    let mut cas = Vec::new();
    let root_ca = root_ca.map(|path| PemFile::read(path).map(Some));
    let admin_root_ca = admin_root_ca.map(read_bundle);
    for (setting, file) in [
        ("tls.root_cafile_path", root_ca),
        ("tls.admin_root_cafile_path", admin_root_ca),
    ] {
        match file {
            Some(Ok(Some(file))) => match authorities(&file) {
                Ok(found) => cas.extend(found),
                Err(error) => fault(setting, error),
            },
            Some(Err(error)) => fault(setting, error.into()),
            Some(Ok(None)) | None => {}
        }
    }
    for path in crls {
        let lists = PemFile::read(path)
            .map_err(TlsError::from)
            .and_then(|file| revocation::lists(&file, &cas));
        if let Err(error) = lists {
            fault("rewrap.crl_files", error);
        }
    }
    faults
}

fn check_pair(certificate: &PemFile, key: &PemFile) -> Vec<(&'static str, TlsError)> {
    let mut faults = Vec::new();
    if let Err(error) = valid_now(certificate) {
        faults.push(("tls.identity_pemfile_path", error));
    }
    if let Err(error) = key.private_key() {
        faults.push(("tls.identity_keyfile_path", error.into()));
    }
    if faults.is_empty()
        && let Err(error) = certified_key(certificate, key)
    {
        faults.push(("tls.identity_keyfile_path", error));
    }
    faults
}

/// The server's own certificate is valid now, and its chain can be read.
pub(super) fn valid_now(file: &PemFile) -> Result<(), TlsError> {
    let chain = chain(file)?;
    let own = readable(file, &chain[0])?;
    let validity = own.validity();
    let period = validity.not_before.timestamp()..=validity.not_after.timestamp();
    if period.contains(&seconds(UnixTime::now())) {
        return Ok(());
    }
    Err(TlsError::NotNow {
        path: file.path().to_owned(),
        from: spelled(*period.start()),
        to: spelled(*period.end()),
    })
}

/// The server's chain, every certificate of which can be read.
fn chain(file: &PemFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = file.certificates()?;
    for der in &chain {
        readable(file, der)?;
    }
    Ok(chain)
}

fn readable<'a>(
    file: &PemFile,
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, TlsError> {
    let parsed = X509Certificate::from_der(der);
    parsed
        .map(|(_, certificate)| certificate)
        .map_err(|_| unusable(file, "holds a certificate that can't be read"))
}

/// The server's chain with its key.
pub(super) fn certified_key(
    certificate: &PemFile,
    key: &PemFile,
) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(chain(certificate)?, key.private_key()?, &provider())
        .map_err(|source| refused(key, "is not the key of the certificate", source))
}

/// The certificates of a bundle, every one of which can be a trust anchor.
pub(super) fn authorities(file: &PemFile) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = file.certificates()?;
    for certificate in &certificates {
        let added = RootCertStore::empty().add(certificate.clone());
        added.map_err(|source| {
            let what = "holds a certificate that is no CA certificate";
            refused(file, what, source)
        })?;
        if !is_authority(certificate) {
            let what = "holds a certificate that is no CA certificate: take it out, or whoever \
                        has its key could issue others";
            return Err(unusable(file, what));
        }
    }
    Ok(certificates)
}

/// RFC 5280, 4.2.1.9 and 4.2.1.3. rustls takes whatever it is given for an anchor, a
/// service's certificate that got into a bundle too. A version before the third has no
/// extension to say it with.
fn is_authority(der: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return false;
    };
    let issues = |usage: Option<BasicExtension<&KeyUsage>>| {
        usage.is_none_or(|usage| usage.value.key_cert_sign())
    };
    certificate.version() != X509Version::V3
        || (certificate.is_ca() && certificate.key_usage().is_ok_and(issues))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn refused(file: &PemFile, what: &'static str, source: rustls::Error) -> TlsError {
    TlsError::Refused {
        path: file.path().to_owned(),
        what,
        source,
    }
}

pub(super) fn unusable(file: &PemFile, what: &'static str) -> TlsError {
    TlsError::Unusable {
        path: file.path().to_owned(),
        what,
    }
}
