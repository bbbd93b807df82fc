//! Certification authorities, bundles of them, and a look into certificates.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pki::{Cert, Strings};
use crate::process::run;

/// A certification authority.
#[derive(Clone, Debug)]
pub(crate) struct Ca {
    /// Its own certificate alone: what goes into a trust bundle.
    pub(crate) cert: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// PEM of this and the intermediates above it; nothing for a root.
    pub(crate) chain: String,
}

impl Ca {
    /// A self-signed root.
    pub(crate) fn root(subject: &str, strings: Strings) -> Self {
        let (_, key) = Self::cert(subject, strings).issue(None);
        Self {
            cert: key.with_file_name("cert.pem"),
            key,
            chain: String::new(),
        }
    }

    /// A CA below this one; the leaves it signs carry it in their chain.
    pub(crate) fn intermediate(&self, subject: &str, strings: Strings) -> Self {
        let (pem, key) = Self::cert(subject, strings).issue(Some(self));
        Self {
            cert: key.with_file_name("cert.pem"),
            key,
            chain: pem + &self.chain,
        }
    }

    fn cert(subject: &str, strings: Strings) -> Cert {
        Cert::new(subject)
            .strings(strings)
            .ca()
            .key_usage(Some("critical,keyCertSign,cRLSign"))
    }
}

/// What `openssl asn1parse` says about a certificate file: string types, extensions.
pub(crate) fn asn1(pem: &Path) -> String {
    run(Command::new("openssl").args(["asn1parse", "-in"]).arg(pem))
}
