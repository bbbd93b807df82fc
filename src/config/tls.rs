//! Reads the TLS settings: `[tls]`, and the revocation lists of `[rewrap]`.

use std::path::PathBuf;

use super::Settings;
use crate::tls::{self, CrlPolicy, Loaded, Paths};

pub(super) fn read(settings: &mut Settings) -> Option<Loaded> {
    let mut path =
        |key: &str, what_to_do: &str| settings.required_string(key, what_to_do).map(PathBuf::from);
    let certificate = path(
        "tls.identity_pemfile_path",
        "set it to the file of the server's certificate chain",
    );
    let key = path(
        "tls.identity_keyfile_path",
        "set it to the file of the server's private key",
    );
    let root_ca = path(
        "tls.root_cafile_path",
        "set it to the file of the CA certificates that verify client certificates",
    );
    let admin_root_ca = settings
        .string("tls.admin_root_cafile_path")
        .map(PathBuf::from);
    let crls: Vec<_> = settings
        .non_empty_list("rewrap.crl_files")
        .into_iter()
        .map(PathBuf::from)
        .collect();
    let crl_policy = settings.one_of(
        "rewrap.crl_policy",
        [
            ("require_valid", CrlPolicy::RequireValid),
            ("allow_expired", CrlPolicy::AllowExpired),
            ("allow_unknown", CrlPolicy::AllowUnknown),
            (
                "allow_expired_and_unknown",
                CrlPolicy::AllowExpiredAndUnknown,
            ),
        ],
    );
    let paths = Paths {
        certificate,
        key,
        root_ca,
        admin_root_ca,
        crls,
        crl_policy,
    };
    match tls::load(&paths) {
        Ok(loaded) => loaded,
        Err(problems) => {
            for tls::FileError { setting, error } in problems {
                settings.problem(setting, error);
            }
            None
        }
    }
}
