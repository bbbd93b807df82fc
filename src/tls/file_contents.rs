//! The contents of the TLS files. Each file is read once, so that the bytes that were checked
//! are the bytes in use.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{CrlPolicy, FileError, TlsError, TlsFiles};
use crate::tls::pem::{PemError, PemFile};

/// The settings that name files. A required setting may be missing.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) root_ca: Option<PathBuf>,
    pub(crate) admin_root_ca: Option<PathBuf>,
    pub(crate) crls: Vec<PathBuf>,
    pub(crate) crl_policy: CrlPolicy,
}

impl Paths {
    /// `None` if a required setting is missing.
    pub(super) fn complete(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            certificate: self.certificate.clone()?,
            key: self.key.clone()?,
            root_ca: self.root_ca.clone()?,
            admin_root_ca: self.admin_root_ca.clone(),
            crls: self.crls.clone(),
            crl_policy: self.crl_policy,
        })
    }
}

impl From<TlsFiles> for Paths {
    fn from(files: TlsFiles) -> Self {
        Self {
            certificate: Some(files.certificate),
            key: Some(files.key),
            root_ca: Some(files.root_ca),
            admin_root_ca: files.admin_root_ca,
            crls: files.crls,
            crl_policy: files.crl_policy,
        }
    }
}

pub(super) const CERTIFICATE: &str = "tls.identity_pemfile_path";
pub(super) const KEY: &str = "tls.identity_keyfile_path";
pub(super) const ROOT_CA: &str = "tls.root_cafile_path";
pub(super) const ADMIN_ROOT_CA: &str = "tls.admin_root_cafile_path";
pub(super) const CRLS: &str = "rewrap.crl_files";

/// The contents of the files of [`Paths`], without those that can't be read.
pub(super) struct TlsFileContents {
    pub(super) certificate: Option<PemFile>,
    pub(super) key: Option<PemFile>,
    pub(super) root_ca: Option<PemFile>,
    /// `None` also if there is no admin bundle.
    pub(super) admin_root_ca: Option<PemFile>,
    pub(super) crls: Vec<PemFile>,
    /// One error for each file that can't be read.
    pub(super) errors: Vec<FileError>,
}

impl TlsFileContents {
    pub(super) fn read(paths: &Paths) -> Self {
        let mut errors = Vec::new();
        let mut read = |setting, path: Option<&Path>| {
            let file = path.map(PemFile::read)?;
            keep_error(&mut errors, setting, file)
        };
        let certificate = read(CERTIFICATE, paths.certificate.as_deref());
        let key = read(KEY, paths.key.as_deref());
        let root_ca = read(ROOT_CA, paths.root_ca.as_deref());
        let crls = paths.crls.iter();
        let crls = crls.filter_map(|path| read(CRLS, Some(path))).collect();
        let admin_root_ca = paths.admin_root_ca.as_deref().map(read_bundle);
        let admin_root_ca =
            admin_root_ca.and_then(|file| keep_error(&mut errors, ADMIN_ROOT_CA, file));
        Self {
            certificate,
            key,
            root_ca,
            admin_root_ca: admin_root_ca.flatten(),
            crls,
            errors,
        }
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let one = [&self.certificate, &self.key, &self.root_ca];
        let all = one
            .into_iter()
            .map(Option::as_ref)
            .chain([self.admin_root_ca.as_ref()]);
        let mut hash = Sha256::new();
        for file in all.chain(self.crls.iter().map(Some)) {
            hash.update(Sha256::digest(file.map_or(&[][..], PemFile::bytes)));
        }
        let certificate = self.certificate.as_ref().map_or(&[][..], PemFile::bytes);
        Fingerprint {
            certificate: Sha256::digest(certificate).into(),
            all: hash.finalize().into(),
        }
    }
}

/// Returns the value of `result`, or adds its error to `errors`.
pub(super) fn keep_error<T, E: Into<TlsError>>(
    errors: &mut Vec<FileError>,
    setting: &'static str,
    result: Result<T, E>,
) -> Option<T> {
    result
        .map_err(|error| {
            let error = error.into();
            errors.push(FileError { setting, error });
        })
        .ok()
}

/// A hash of the contents of all files, which tells whether a file changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    /// The hash of the server's chain alone.
    pub(super) certificate: [u8; 32],
    all: [u8; 32],
}

/// The admin bundle, if there is one. nico-api's chart always sets the path, and creates the
/// file only if the site has a bundle.
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
