//! Certificate revocation lists (RFC 5280, section 5): which are there, and how
//! strictly they are wanted.

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer},
    server::{ClientCertVerifierBuilder, WebPkiClientVerifier},
};
use x509_parser::{
    error::X509Error,
    prelude::{CertificateRevocationList, FromDer, X509Certificate},
};

use super::{
    TlsError,
    material::{provider, unusable},
};
use crate::pem::PemFile;

/// What a chain needs, once there are revocation lists at all. A certificate that an
/// applicable list names is refused under every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrlPolicy {
    /// Every issuer in the chain has a list, and its nextUpdate is not over.
    RequireValid,
    /// Every issuer in the chain has a list, however old.
    AllowExpired,
    /// An issuer without a list is believed; a list that is there must be current.
    AllowUnknown,
    /// An issuer without a list is believed, and so is an old list.
    AllowExpiredAndUnknown,
}

impl CrlPolicy {
    /// Whether a list counts for nothing, and bars its issuer, after its nextUpdate.
    #[must_use]
    pub fn wants_current(self) -> bool {
        matches!(self, Self::RequireValid | Self::AllowUnknown)
    }

    /// Sets up `builder` with `lists` for this policy; rustls checks nothing without any.
    pub(super) fn apply(
        self,
        builder: ClientCertVerifierBuilder,
        lists: &[RevocationList],
    ) -> ClientCertVerifierBuilder {
        let mut builder = builder.with_crls(lists.iter().map(|list| list.der.clone()));
        if self.wants_current() {
            builder = builder.enforce_revocation_expiration();
        }
        if matches!(self, Self::AllowUnknown | Self::AllowExpiredAndUnknown) {
            builder = builder.allow_unknown_revocation_status();
        }
        builder
    }
}

/// A list that can be used.
pub(super) struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    /// thisUpdate, in seconds since the epoch.
    this_update: i64,
    /// nextUpdate, likewise.
    pub(super) next_update: i64,
}

/// The lists of a file. Those that one of `authorities` has issued must bear its
/// signature; for those of intermediates, the handshake checks that.
pub(super) fn lists(
    file: &PemFile,
    authorities: &[CertificateDer<'_>],
) -> Result<Vec<RevocationList>, TlsError> {
    let lists = file.revocation_lists()?.into_iter();
    lists.map(|der| list(file, der, authorities)).collect()
}

/// The lists of all files, the newest first: of several for one issuer rustls uses
/// the first that it comes to.
pub(super) fn all_lists(
    files: &[PemFile],
    authorities: &[CertificateDer<'_>],
) -> Result<Vec<RevocationList>, TlsError> {
    let mut all = Vec::new();
    for file in files {
        all.extend(lists(file, authorities)?);
    }
    all.sort_by_key(|list| std::cmp::Reverse(list.this_update));
    Ok(all)
}

fn list(
    file: &PemFile,
    der: CertificateRevocationListDer<'static>,
    authorities: &[CertificateDer<'_>],
) -> Result<RevocationList, TlsError> {
    let unreadable = || {
        unusable(
            file,
            "holds a certificate revocation list that can't be read",
        )
    };
    let (rest, parsed) = CertificateRevocationList::from_der(&der).map_err(|_| unreadable())?;
    // RFC 5280, 5.1.2.5: there has to be one.
    let next_update = parsed.next_update().filter(|_| rest.is_empty());
    let next_update = next_update.ok_or_else(unreadable)?.timestamp();
    let this_update = parsed.last_update().timestamp();
    signed_by_its_issuer(file, &parsed, authorities)?;
    understood(file, &der, authorities)?;
    Ok(RevocationList {
        der,
        this_update,
        next_update,
    })
}

/// Of the CAs that the list says it is from, one must have signed it: there may be
/// several of one name while a CA changes its key.
fn signed_by_its_issuer(
    file: &PemFile,
    list: &CertificateRevocationList<'_>,
    authorities: &[CertificateDer<'_>],
) -> Result<(), TlsError> {
    let parsed = authorities.iter().map(|der| X509Certificate::from_der(der));
    let mut issuers = parsed
        .flatten()
        .map(|(_, authority)| authority)
        .filter(|authority| authority.subject().as_raw() == list.issuer().as_raw())
        .peekable();
    let by_nobody = issuers.peek().is_some()
        && issuers.all(|issuer| {
            list.verify_signature(issuer.public_key()) == Err(X509Error::SignatureVerificationError)
        });
    if by_nobody {
        let what = "holds a certificate revocation list that its issuer has not signed";
        return Err(unusable(file, what));
    }
    Ok(())
}

/// rustls knows neither delta nor indirect lists, and says so only when it is given one.
fn understood(
    file: &PemFile,
    der: &CertificateRevocationListDer<'static>,
    authorities: &[CertificateDer<'_>],
) -> Result<(), TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned().map(CertificateDer::into_owned));
    if roots.is_empty() {
        return Ok(());
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
    let built = builder.with_crls([der.clone()]).build();
    built.map(|_| ()).map_err(|_| {
        let what = "holds a certificate revocation list of a kind that is not supported (delta, \
                    indirect, or with unknown critical extensions)";
        unusable(file, what)
    })
}
