//! What the files said at one time: all that handshakes and live connections are
//! measured by. Replaced as a whole or not at all.

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
    format_time,
    provider::provider,
    seconds,
    verifier::verifier,
};
use crate::auth::identity::Anchor;

/// A server configuration, and the verifiers that go with it.
pub struct TlsState {
    config: Arc<ServerConfig>,
    any: Arc<dyn ClientCertVerifier>,
    admin: Option<Arc<dyn ClientCertVerifier>>,
    expiry: Expiry,
    /// Of the server's own certificate.
    validity: Validity,
    contents: Vec<Content>,
}

/// When things end, in seconds since the epoch; of several, the first to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The server's own certificate.
    pub server: i64,
    /// The CAs of `root_cafile_path`.
    pub root_ca: i64,
    /// The CAs of `admin_root_cafile_path`.
    pub admin_root_ca: Option<i64>,
    /// nextUpdate of the revocation lists.
    pub crl: Option<i64>,
}

impl TlsState {
    /// Makes a server configuration of what the files hold; whether the server's own
    /// certificate is valid at this time is left to the caller.
    pub(super) fn new(checked: Checked, policy: CrlPolicy) -> Result<Self, TlsError> {
        let Checked {
            certified_key,
            validity,
            root_cas,
            admin_cas,
            lists,
            contents,
        } = checked;
        let union = [&root_cas[..], admin_cas.as_deref().unwrap_or_default()].concat();

        let any = verifier(&union, &lists, policy)?;
        let admin = admin_cas.as_ref().map(|cas| verifier(cas, &lists, policy));
        let admin = admin.transpose()?;
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
        // A resumed session would bring back a certificate without verifying it again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            any,
            admin,
            expiry,
            validity,
            contents,
        })
    }

    /// For handshakes.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// When what is in here ends.
    #[must_use]
    pub fn expiry(&self) -> &Expiry {
        &self.expiry
    }

    /// When the server's own certificate is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whether external users are bound to an admin bundle.
    #[must_use]
    pub fn has_admin_bundle(&self) -> bool {
        self.admin.is_some()
    }

    /// Verifies a client's chain, its leaf first, as a handshake does at this time, and
    /// finds out where it ends. What the client sends besides its leaf are suggestions
    /// for the path and no more: the end is a CA of the bundle, or the chain is none.
    ///
    /// # Errors
    ///
    /// What a handshake would fail with.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Anchor, rustls::Error> {
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        let now = UnixTime::now();
        self.any.verify_client_cert(leaf, intermediates, now)?;
        Ok(match &self.admin {
            None => Anchor::NoAdminBundle,
            Some(admin) => match admin.verify_client_cert(leaf, intermediates, now) {
                Ok(_) => Anchor::Admin,
                Err(_) => Anchor::RootOnly,
            },
        })
    }

    /// Says how much was read of each file, and what is odd about it but no reason not to use
    /// it.
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
        if let (Some(path), None) = (&files.admin_root_ca, &self.admin) {
            tracing::warn!(
                file = %path.display(),
                "no admin bundle: [tls].admin_root_cafile_path is empty, or names an absent or empty file"
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
        for content in &self.contents {
            for warning in &content.warnings {
                tracing::warn!(
                    setting = content.setting,
                    file = %content.path.display(),
                    line = warning.line,
                    subject = warning.subject,
                    "{}",
                    warning.problem
                );
            }
        }
        if let Some(end) = self.expiry.crl.filter(|end| *end < now) {
            tracing::warn!(
                next_update = format_time(end),
                bars_its_issuer = files.crl_policy.wants_current(),
                "a certificate revocation list of [rewrap].crl_files is out of date: publish a new one"
            );
        }
    }
}

impl fmt::Debug for TlsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
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
