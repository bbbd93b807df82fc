//! Certificate authorities, CA bundles, and a function that dumps certificates.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pki::{Cert, Strings};
use crate::process::run;

/// A certificate authority.
#[derive(Clone, Debug)]
pub(crate) struct Ca {
    /// The certificate of the CA alone, for a trust bundle.
    pub(crate) cert: PathBuf,
    /// The private key of the CA.
    pub(crate) key: PathBuf,
    /// PEM of the intermediates from this CA upwards; empty for a root.
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

    /// An intermediate CA below this one. Its leaves carry it in their chain.
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

/// The output of `openssl asn1parse` for a certificate file: string types and extensions.
pub(crate) fn asn1(pem: &Path) -> String {
    run(Command::new("openssl").args(["asn1parse", "-in"]).arg(pem))
}
