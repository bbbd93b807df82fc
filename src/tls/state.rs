//! The loaded TLS files: the server configuration for handshakes, and the verifiers for open
//! connections. A reload replaces the whole state or nothing.

use std::{fmt, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, UnixTime},
    server::{NoServerSessionStorage, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    CrlPolicy, TlsError, TlsFiles, Validity,
    check::{Checked, Content},
    crl_age::Ages,
    format_time,
    provider::provider,
    revocation::{self, RevocationList},
    seconds,
    verifier::verifier,
};
use crate::auth::identity::Anchor;

/// A server configuration, and the verifiers that go with it.
pub struct TlsState {
    config: Arc<ServerConfig>,
    /// Verifies against the CAs of both bundles.
    any: Arc<dyn ClientCertVerifier>,
    admin: Admin,
    /// The ages of the revocation lists.
    pub(super) crl_ages: Ages,
    /// The revocation lists, the newest first.
    pub(super) lists: Vec<RevocationList>,
    /// The issuers of lists that the files no longer have.
    kept: Vec<String>,
    expiry: Expiry,
    /// The validity of the server's certificate.
    validity: Validity,
    contents: Vec<Content>,
}

/// The verifier of the admin bundle.
enum Admin {
    /// `admin_root_cafile_path` is not set.
    NotConfigured,
    /// `admin_root_cafile_path` is set, but its file is absent or empty.
    Missing,
    /// Verifies against the admin bundle alone.
    Bundle(Arc<dyn ClientCertVerifier>),
}

/// Expiry times, in seconds since the epoch. Of several certificates or lists, the earliest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The server's certificate.
    pub server: i64,
    /// The CAs of `root_cafile_path`.
    pub root_ca: i64,
    /// The CAs of `admin_root_cafile_path`.
    pub admin_root_ca: Option<i64>,
    /// The nextUpdate of the revocation lists.
    pub crl: Option<i64>,
}

impl TlsState {
    /// Builds the state from the checked files. The caller decides whether the server's
    /// certificate must be valid now. `wants_admin_bundle`: `admin_root_cafile_path` is set.
    /// `loaded` are the lists in use, which stay in use if the files no longer have them.
    pub(super) fn new(
        checked: Checked,
        policy: CrlPolicy,
        wants_admin_bundle: bool,
        loaded: &[RevocationList],
    ) -> Result<Self, TlsError> {
        let Checked {
            certified_key,
            validity,
            root_cas,
            admin_cas,
            mut lists,
            contents,
        } = checked;
        let kept = revocation::keep_missing(&mut lists, loaded);
        let lists = revocation::in_order(lists)?;
        let union = [&root_cas[..], admin_cas.as_deref().unwrap_or_default()].concat();

        let any = verifier(&union, &lists, policy)?;
        let admin = match &admin_cas {
            Some(cas) => Admin::Bundle(verifier(cas, &lists, policy)?),
            None if wants_admin_bundle => Admin::Missing,
            None => Admin::NotConfigured,
        };
        let expiry = Expiry {
            server: validity.to,
            root_ca: earliest_expiry(&root_cas),
            admin_root_ca: admin_cas.as_deref().map(earliest_expiry),
            crl: lists.iter().map(|list| list.next_update).min(),
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Configuration)?
            .with_client_cert_verifier(any.clone())
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified_key)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the verification of the client's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            any,
            admin,
            crl_ages: revocation::ages(&lists),
            lists,
            kept,
            expiry,
            validity,
            contents,
        })
    }

    /// The configuration for handshakes.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// The expiry times of the certificates and lists.
    #[must_use]
    pub fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    /// When the server's certificate is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whether there is an admin bundle, which the chains of external users must end in.
    #[must_use]
    pub fn has_admin_bundle(&self) -> bool {
        matches!(self.admin, Admin::Bundle(_))
    }

    /// Verifies a client's chain, leaf first, in the same way as a handshake, and returns which
    /// bundle it ends in. The other certificates that the client sends only help to find a path:
    /// the path must end in a CA of a bundle.
    ///
    /// # Errors
    ///
    /// The error that a handshake would end with.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Anchor, rustls::Error> {
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = UnixTime::now();
        self.any.verify_client_cert(leaf, intermediates, now)?;
        Ok(match &self.admin {
            Admin::NotConfigured => Anchor::NoAdminBundle,
            Admin::Missing => Anchor::AdminBundleMissing,
            Admin::Bundle(admin) => match admin.verify_client_cert(leaf, intermediates, now) {
                Ok(_) => Anchor::Admin,
                Err(_) => Anchor::RootOnly,
            },
        })
    }

    /// Logs what was read from each file, and warnings about contents that are usable but suspect.
    pub(super) fn log(&self, files: &TlsFiles) {
        for content in &self.contents {
            tracing::info!(
                setting = content.setting,
                file = %content.path.display(),
                certificates = content.certificates,
                keys = content.keys,
                revocation_lists = content.lists,
                "TLS file read"
            );
        }
        let now = seconds(UnixTime::now());
        if let (Some(path), Admin::Missing) = (&files.admin_root_ca, &self.admin) {
            tracing::warn!(
                file = %path.display(),
                "no admin bundle: [tls].admin_root_cafile_path is empty, or names an absent or \
                 empty file. Only the issuers of [rewrap].admin_issuers_in_root_ca make \
                 administrators"
            );
        }
        if self.expiry.server < now {
            tracing::warn!(
                expired = format_time(self.expiry.server),
                "the server's certificate of [tls].identity_pemfile_path has expired: renew it"
            );
        }
        if now < self.validity.from {
            tracing::warn!(
                valid_from = format_time(self.validity.from),
                "the server's certificate of [tls].identity_pemfile_path is not valid yet: set the clock, or renew it"
            );
        }
        for issuer in &self.kept {
            tracing::warn!(
                %issuer,
                "[rewrap].crl_files no longer has the list of this issuer and key: the loaded list \
                 stays in use until a restart. Put the list back, or restart nico-rewrap"
            );
        }
        for content in &self.contents {
            for warning in &content.warnings {
                let problem = &warning.problem;
                tracing::warn!(
                    setting = content.setting,
                    file = %content.path.display(),
                    line = warning.line,
                    subject = warning.subject,
                    "{problem}"
                );
            }
        }
        if let Some(end) = self.expiry.crl.filter(|end| *end < now) {
            tracing::warn!(
                next_update = format_time(end),
                refuses_its_certificates = files.crl_policy.wants_current(),
                "a certificate revocation list of [rewrap].crl_files is out of date: publish a new one"
            );
        }
    }
}

impl fmt::Debug for TlsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsState")
            .field("expiry", &self.expiry)
            .finish_non_exhaustive()
    }
}

fn earliest_expiry(certificates: &[CertificateDer<'_>]) -> i64 {
    let parsed = certificates
        .iter()
        .map(|der| X509Certificate::from_der(der));
    let ends = parsed
        .flatten()
        .map(|(_, certificate)| certificate.validity().not_after.timestamp());
    ends.min().unwrap_or_default()
}
