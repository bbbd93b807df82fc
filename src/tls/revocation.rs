//! Certificate revocation lists (RFC 5280, section 5).
//!
//! This module reads and checks the lists of `[rewrap].crl_files`, sorts them for rustls, and
//! sets up the verifier for `[rewrap].crl_policy`.

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
    crl_age::{Age, Ages},
    item::item,
    provider::provider,
};
use crate::{
    auth::distinguished_name::DistinguishedName,
    tls::pem::{Located, PemFile},
};

/// The maximum number of combinations of lists. Each has a verifier with parsed lists of its
/// own. This is enough for five CAs that change their keys at the same time.
const MAX_COMBINATIONS: usize = 32;

/// What a chain needs if the site has revocation lists. Every policy refuses a certificate
/// that an applicable list revokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrlPolicy {
    /// Every issuer in the chain needs a list whose nextUpdate is in the future.
    RequireValid,
    /// Every issuer in the chain needs a list, which may be expired.
    AllowExpired,
    /// An issuer may have no list. If it has one, the list must not be expired.
    AllowUnknown,
    /// An issuer may have no list or an expired one.
    AllowExpiredAndUnknown,
}

impl CrlPolicy {
    /// Whether the certificates of an issuer are refused after the nextUpdate of its list.
    #[must_use]
    pub fn wants_current(self) -> bool {
        matches!(self, Self::RequireValid | Self::AllowUnknown)
    }

    /// Sets up `builder` with `lists` for this policy. Without lists, rustls does not check
    /// revocation at all.
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

/// A list that passed all checks.
#[derive(Clone)]
pub(super) struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    /// The issuer's name, for messages.
    pub(super) issuer_name: String,
    /// The issuer's name in DER.
    pub(super) issuer: Vec<u8>,
    /// The identifier of the issuer's key (RFC 5280, 5.2.1).
    pub(super) key_id: Option<Vec<u8>>,
    /// The distribution points that the list covers, if it names them.
    points: Option<String>,
    pub(super) age: Age,
    /// nextUpdate, in seconds since the epoch.
    pub(super) next_update: i64,
}

/// The lists of a file. A list whose issuer is one of `authorities` must have a valid signature
/// of that CA. The handshake checks the signatures of intermediates' lists.
pub(super) fn lists(
    file: &PemFile,
    authorities: &[CertificateDer<'_>],
) -> Result<Vec<RevocationList>, TlsError> {
    let lists = file.revocation_lists()?.into_iter();
    lists
        .map(|located| list(file, located, authorities))
        .collect()
}

/// The lists of all files, the newest first. If an issuer has several lists, rustls uses the
/// first one.
pub(super) fn in_order(mut lists: Vec<RevocationList>) -> Result<Vec<RevocationList>, TlsError> {
    // cRLNumber decides between two lists of the same second.
    lists.sort_by(|a, b| {
        let age = |list: &RevocationList| (list.age.this_update, list.age.number.len());
        (age(b), &b.age.number).cmp(&(age(a), &a.age.number))
    });
    check_same_scope(&lists)?;
    check_newest(&lists)?;
    Ok(lists)
}

/// Adds those `loaded` lists whose issuer and key have no list in `lists`, and returns the names
/// of their issuers. A list that disappears from the files stays in use until a restart: without
/// it, a policy that accepts issuers without a list would accept revoked certificates again.
pub(super) fn keep_missing(
    lists: &mut Vec<RevocationList>,
    loaded: &[RevocationList],
) -> Vec<String> {
    let has_list = |one: &RevocationList| {
        let same_key =
            |list: &RevocationList| list.issuer == one.issuer && list.key_id == one.key_id;
        lists.iter().any(same_key)
    };
    let missing: Vec<_> = loaded.iter().filter(|one| !has_list(one)).collect();
    let mut names: Vec<_> = missing
        .iter()
        .map(|list| list.issuer_name.clone())
        .collect();
    names.dedup();
    lists.extend(missing.into_iter().cloned());
    names
}

/// The ages of sorted lists.
pub(super) fn ages(lists: &[RevocationList]) -> Ages {
    Ages::of(lists.iter().map(|list| {
        let issuer = (list.issuer.clone(), list.key_id.clone());
        (issuer, list.age.clone(), list.issuer_name.clone())
    }))
}

/// Checks that no other list of a key is as new as the first. `lists` are sorted.
fn check_newest(lists: &[RevocationList]) -> Result<(), TlsError> {
    let mut newest = BTreeMap::new();
    for list in lists {
        let first: &mut &RevocationList =
            newest.entry((&list.issuer, &list.key_id)).or_insert(list);
        if first.age == list.age && first.der != list.der {
            return Err(TlsError::SameAge(list.issuer_name.clone()));
        }
    }
    Ok(())
}

/// Checks that all lists of a key have the same scope, so that the newest one is complete. For a
/// certificate without distribution points, rustls uses the first list of the issuer. If that
/// list covers only a part of the certificates, a revoked certificate could be accepted.
fn check_same_scope(lists: &[RevocationList]) -> Result<(), TlsError> {
    let mut known = BTreeMap::new();
    for list in lists {
        let points = known.entry((&list.issuer, &list.key_id));
        if *points.or_insert(&list.points) != &list.points {
            return Err(TlsError::PartitionedCrl);
        }
    }
    Ok(())
}

/// The lists of one issuer name, by key identifier.
type ByKey<'a> = BTreeMap<Option<&'a [u8]>, Vec<&'a RevocationList>>;

/// All combinations of lists in which each issuer name has the lists of one key identifier only.
///
/// A CA that changes its key has lists of two keys under one name for a while. rustls uses the
/// first list of a name, no matter which key signed it. One key may also have lists with
/// different identifiers or without one, so a single combination may not contain all
/// revocations.
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
            .flat_map(|combination| {
                keys.values()
                    .map(move |of_one_key| [&combination[..], of_one_key].concat())
            })
            .collect();
        if crl_combinations.len() > MAX_COMBINATIONS {
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
        let problem = "there is data after the certificate revocation list: use PEM if the file \
                       holds several lists";
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
    let next_update = check_mandatory_fields(&parsed).map_err(wrong)?.timestamp();
    let number = parsed.crl_number();
    let age = Age {
        this_update: parsed.last_update().timestamp(),
        number: number
            .map(|number| number.to_bytes_be())
            .unwrap_or_default(),
        number_text: number.map(ToString::to_string),
    };
    check_signature(&parsed, authorities).map_err(|problem| wrong(&problem))?;
    check_supported(&der, authorities).map_err(|problem| wrong(&problem))?;
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
        age,
        next_update,
    })
}

/// Checks the version and nextUpdate, which RFC 5280, 5.1.2.1 and 5.1.2.5, requires, and returns
/// nextUpdate. rustls requires them too, but its error does not name the missing one.
fn check_mandatory_fields(list: &CertificateRevocationList<'_>) -> Result<ASN1Time, &'static str> {
    if list.version() != Some(X509Version::V2) {
        return Err(
            "has version 1, which is not supported: issue a list of version 2. openssl does so if \
             crlnumber and crl_extensions are set in its configuration",
        );
    }
    list.next_update()
        .ok_or("has no nextUpdate, so its age can't be checked: issue a list with nextUpdate")
}

/// Checks that one of the CAs with the list's issuer name signed it. There may be several while
/// a CA changes its key.
fn check_signature(
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
    let supported: Vec<_> = issuers
        .iter()
        .filter(|issuer| is_supported_signature(algorithm, Some(issuer.public_key())))
        .collect();
    if supported.is_empty() {
        let key = key_name(issuers[0].public_key());
        return Err(format!(
            "can't be verified: a signature {name} by a key of the kind {key} is not supported. \
             {SUPPORTED_SIGNATURES}"
        ));
    }
    let is_unsigned = supported.iter().all(|issuer| {
        list.verify_signature(issuer.public_key()) == Err(X509Error::SignatureVerificationError)
    });
    if is_unsigned {
        return Err("is not signed by that issuer: install a list that it signed".to_owned());
    }
    Ok(())
}

/// Checks that rustls supports the list. It supports neither delta nor indirect lists, and the
/// only way to find out is to build a verifier with the list.
fn check_supported(
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
