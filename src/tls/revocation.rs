//! Certificate revocation lists (RFC 5280, section 5): which are there, and how
//! strictly they are wanted.

use std::collections::BTreeMap;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer},
    server::{ClientCertVerifierBuilder, VerifierBuilderError, WebPkiClientVerifier},
};
use x509_parser::{
    error::X509Error,
    extensions::ParsedExtension,
    prelude::{CertificateRevocationList, FromDer, X509Certificate, X509Version},
    time::ASN1Time,
};

use super::{
    TlsError,
    algorithms::{SUPPORTED_SIGNATURES, is_supported_signature, key_name, signature_name},
    item::item,
    provider::provider,
};
use crate::{
    auth::distinguished_name::DistinguishedName,
    tls::pem::{Located, PemFile},
};

/// Verifiers to be had of one set of lists, each with its own parsed lists: enough for
/// a handful of CAs that change their keys at once.
const MAX_SELECTIONS: usize = 32;

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
        lists: &[&RevocationList],
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
    /// The issuer's name, for messages.
    issuer_name: String,
    /// The issuer's name in DER, and the identifier of its key (RFC 5280, 5.2.1).
    issuer: Vec<u8>,
    key_id: Option<Vec<u8>>,
    /// The distribution points that it is for, if it says so.
    points: Option<String>,
    /// thisUpdate, in seconds since the epoch.
    this_update: i64,
    /// The number of the list (RFC 5280, 5.2.3), which grows with every list of one issuer:
    /// without leading zeros, so that a longer one is larger.
    number: Vec<u8>,
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
    lists
        .map(|located| list(file, located, authorities))
        .collect()
}

/// The lists of all files, the newest first: of several for one issuer rustls uses
/// the first that it comes to.
pub(super) fn in_order(mut lists: Vec<RevocationList>) -> Result<Vec<RevocationList>, TlsError> {
    // Two lists may be issued within one second.
    lists.sort_by(|a, b| {
        let age = |list: &RevocationList| (list.this_update, list.number.len());
        (age(b), &b.number).cmp(&(age(a), &a.number))
    });
    whole(&lists)?;
    newest(&lists)?;
    Ok(lists)
}

/// Of several lists of one key, the first is the newest. `lists` are in order.
fn newest(lists: &[RevocationList]) -> Result<(), TlsError> {
    let mut newest = BTreeMap::new();
    for list in lists {
        let first: &mut &RevocationList =
            newest.entry((&list.issuer, &list.key_id)).or_insert(list);
        let age = |list: &RevocationList| (list.this_update, list.number.clone());
        if age(first) == age(list) && first.der != list.der {
            return Err(TlsError::SameAge(list.issuer_name.clone()));
        }
    }
    Ok(())
}

/// Lists of one key are of one scope, so that each is whole and the newest is enough.
/// For a certificate that names no distribution point, rustls takes the first list it
/// comes to, which may be the part that it is not on.
fn whole(lists: &[RevocationList]) -> Result<(), TlsError> {
    let mut known = BTreeMap::new();
    for list in lists {
        let points = known.entry((&list.issuer, &list.key_id));
        if *points.or_insert(&list.points) != &list.points {
            return Err(TlsError::PartitionedCrl);
        }
    }
    Ok(())
}

/// The lists of one issuer's name.
type ByKey<'a> = BTreeMap<Option<&'a [u8]>, Vec<&'a RevocationList>>;

/// The lists in every way in which each issuer's name stands for one key identifier. A
/// CA that changes its key has, for a while, lists of two under one name, and rustls uses
/// the first of that name, whoever has signed it. One key may also have lists under two
/// identifiers, or one and none, so that no selection alone knows all who are revoked.
pub(super) fn crl_combinations(
    lists: &[RevocationList],
) -> Result<Vec<Vec<&RevocationList>>, TlsError> {
    let mut issuers: BTreeMap<&[u8], ByKey<'_>> = BTreeMap::new();
    for list in lists {
        let keys = issuers.entry(&list.issuer).or_default();
        keys.entry(list.key_id.as_deref()).or_default().push(list);
    }
    let mut crl_combinations = vec![Vec::new()];
    for keys in issuers.values() {
        crl_combinations = crl_combinations
            .iter()
            .flat_map(|selection| {
                keys.values()
                    .map(move |of_one_key| [&selection[..], of_one_key].concat())
            })
            .collect();
        if crl_combinations.len() > MAX_SELECTIONS {
            return Err(TlsError::TooManyKeys);
        }
    }
    Ok(crl_combinations)
}

fn list(
    file: &PemFile,
    located: Located<CertificateRevocationListDer<'static>>,
    authorities: &[CertificateDer<'_>],
) -> Result<RevocationList, TlsError> {
    let Located { line, item: der } = located;
    let (rest, parsed) = CertificateRevocationList::from_der(&der)
        .map_err(|_| item(file, line, "this certificate revocation list can't be read"))?;
    if !rest.is_empty() {
        let problem = "something follows the certificate revocation list: use PEM for several";
        return Err(item(file, line, problem));
    }
    let issuer = DistinguishedName::new(parsed.issuer());
    let wrong = |problem: &str| {
        item(
            file,
            line,
            &format!("the revocation list of {issuer} {problem}"),
        )
    };
    let next_update = complete(&parsed).map_err(wrong)?.timestamp();
    let this_update = parsed.last_update().timestamp();
    let number = parsed.crl_number().map(|number| number.to_bytes_be());
    signed_by_its_issuer(&parsed, authorities).map_err(|problem| wrong(&problem))?;
    understood(&der, authorities).map_err(|problem| wrong(&problem))?;
    let key_id =
        parsed
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
                _ => None,
            });
    let key_id = key_id.map(|id| id.0.to_vec());
    let points =
        parsed
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::IssuingDistributionPoint(scope) => {
                    scope.distribution_point.as_ref()
                }
                _ => None,
            });
    let points = points.map(|points| format!("{points:?}"));
    Ok(RevocationList {
        issuer_name: issuer.to_string(),
        issuer: parsed.issuer().as_raw().to_vec(),
        key_id,
        points,
        der: der.clone(),
        this_update,
        number: number.unwrap_or_default(),
        next_update,
    })
}

/// nextUpdate of a list with all that RFC 5280, 5.1.2.1 and 5.1.2.5, wants of it. rustls
/// wants the same, and does not say what is missing.
fn complete(list: &CertificateRevocationList<'_>) -> Result<ASN1Time, &'static str> {
    if list.version() != Some(X509Version::V2) {
        return Err(
            "is of version 1: for one of version 2, set crlnumber and crl_extensions in openssl's \
             configuration",
        );
    }
    list.next_update()
        .ok_or("has no nextUpdate, so that nobody knows whether it is too old: issue one with it")
}

/// Of the CAs that the list says it is from, one must have signed it: there may be
/// several of one name while a CA changes its key.
fn signed_by_its_issuer(
    list: &CertificateRevocationList<'_>,
    authorities: &[CertificateDer<'_>],
) -> Result<(), String> {
    let algorithm = &list.signature_algorithm;
    let name = signature_name(algorithm);
    if !is_supported_signature(algorithm, None) {
        return Err(format!(
            "is signed with {name}, which is not supported: {SUPPORTED_SIGNATURES}"
        ));
    }
    let parsed = authorities.iter().map(|der| X509Certificate::from_der(der));
    let issuers = parsed
        .flatten()
        .map(|(_, authority)| authority)
        .filter(|authority| authority.subject().as_raw() == list.issuer().as_raw());
    let issuers: Vec<_> = issuers.collect();
    if issuers.is_empty() {
        return Ok(());
    }
    let of_use: Vec<_> = issuers
        .iter()
        .filter(|issuer| is_supported_signature(algorithm, Some(issuer.public_key())))
        .collect();
    if of_use.is_empty() {
        let key = key_name(issuers[0].public_key());
        return Err(format!(
            "can't be verified: a signature {name} by a key of the kind {key} is not supported. \
             {SUPPORTED_SIGNATURES}"
        ));
    }
    let by_nobody = of_use.iter().all(|issuer| {
        list.verify_signature(issuer.public_key()) == Err(X509Error::SignatureVerificationError)
    });
    if by_nobody {
        return Err("is not signed by that issuer: publish the right one".to_owned());
    }
    Ok(())
}

/// rustls knows neither delta nor indirect lists, and says so only when it is given one.
fn understood(
    der: &CertificateRevocationListDer<'static>,
    authorities: &[CertificateDer<'_>],
) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned().map(CertificateDer::into_owned));
    if roots.is_empty() {
        return Ok(());
    }
    let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
    let built = builder.with_crls([der.clone()]).build();
    built.map(|_| ()).map_err(|error| match error {
        VerifierBuilderError::InvalidCrl(source) => format!(
            "is of a kind that is not supported ({})",
            rustls::Error::from(source)
        ),
        other => other.to_string(),
    })
}
