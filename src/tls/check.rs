//! Parses and checks the contents of the TLS files. The start and every reload use the same
//! check.

use std::path::PathBuf;

use rustls::{
    pki_types::{CertificateDer, UnixTime},
    sign::CertifiedKey,
};

use super::{
    FileError, TlsError, Validity,
    bundle::{authorities, warning},
    chain::{order_warning, own_validity, pair_up},
    file_contents::{ADMIN_ROOT_CA, CERTIFICATE, CRLS, KEY, ROOT_CA, TlsFileContents, keep_error},
    item::Warning,
    revocation::{self, RevocationList},
};
use crate::tls::pem::PemFile;

/// The parsed contents of the files, all of them usable.
pub(super) struct Checked {
    pub(super) certified_key: CertifiedKey,
    /// The validity of the server's certificate.
    pub(super) validity: Validity,
    pub(super) root_cas: Vec<CertificateDer<'static>>,
    pub(super) admin_cas: Option<Vec<CertificateDer<'static>>>,
    pub(super) lists: Vec<RevocationList>,
    pub(super) contents: Vec<Content>,
}

/// What the log says about one file: the number of items by kind, and the warnings.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) setting: &'static str,
    pub(super) path: PathBuf,
    pub(super) certificates: Option<usize>,
    pub(super) keys: Option<usize>,
    pub(super) lists: Option<usize>,
    pub(super) warnings: Vec<Warning>,
}

/// Checks the contents of all files. `Ok(None)` if the setting of a required file is missing.
/// With `new_certificate`, the server's certificate must be valid now.
pub(super) fn check(
    file_contents: TlsFileContents,
    new_certificate: bool,
) -> Result<Option<Checked>, Vec<FileError>> {
    let mut errors = file_contents.errors;
    let mut contents = Vec::new();

    let chain = file_contents.certificate.as_ref().map(|file| {
        let chain = file.certificates().map_err(TlsError::from);
        let chain = chain.and_then(|chain| own_validity(file, &chain).map(|own| (chain, own)));
        chain.and_then(|(chain, validity)| {
            if new_certificate && !validity.contains(UnixTime::now()) {
                let path = file.path().to_owned();
                return Err(TlsError::OutsideValidity { path, validity });
            }
            Ok((chain, validity))
        })
    });
    let chain = chain.and_then(|chain| keep_error(&mut errors, CERTIFICATE, chain));
    let key = file_contents.key.as_ref().map(PemFile::private_key);
    let key = key.and_then(|key| keep_error(&mut errors, KEY, key));
    for (file, (chain, _)) in file_contents.certificate.iter().zip(&chain) {
        contents.push(Content {
            warnings: order_warning(chain).into_iter().collect(),
            ..content(CERTIFICATE, file, Some(chain.len()), None, None)
        });
    }
    for file in file_contents.key.iter().filter(|_| key.is_some()) {
        contents.push(content(KEY, file, None, Some(1), None));
    }
    let files = file_contents
        .certificate
        .as_ref()
        .zip(file_contents.key.as_ref());
    let pair = chain.zip(key).zip(files);
    let pair = pair.and_then(|(((chain, validity), key), files)| {
        let pair = pair_up(files, &chain, key);
        let pair = pair.map_err(|(setting, error)| errors.push(FileError { setting, error }));
        Some((pair.ok()?, validity))
    });

    let mut bundle = |setting, file: Option<&PemFile>| {
        let found = file.map(authorities)?;
        let found = keep_error(&mut errors, setting, found)?;
        contents.extend(file.map(|file| Content {
            warnings: found.iter().filter_map(warning).collect(),
            ..content(setting, file, Some(found.len()), None, None)
        }));
        Some(
            found
                .into_iter()
                .map(|located| located.item)
                .collect::<Vec<_>>(),
        )
    };
    let root_cas = bundle(ROOT_CA, file_contents.root_ca.as_ref());
    let admin_cas = bundle(ADMIN_ROOT_CA, file_contents.admin_root_ca.as_ref());
    let union = [&root_cas, &admin_cas].map(|cas| cas.as_deref().unwrap_or_default());
    let union = union.concat();

    let mut lists = Vec::new();
    for file in &file_contents.crls {
        if let Some(found) = keep_error(&mut errors, CRLS, revocation::lists(file, &union)) {
            contents.push(content(CRLS, file, None, None, Some(found.len())));
            lists.extend(found);
        }
    }
    let lists = keep_error(&mut errors, CRLS, revocation::in_order(lists));

    if !errors.is_empty() {
        return Err(errors);
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
        warnings: Vec::new(),
    }
}
