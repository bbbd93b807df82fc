//! External users. A certificate identifies one by the common name of its issuer, or by the
//! criteria of `[auth.cli_certs]`.

use x509_parser::prelude::X509Certificate;

use super::{Anchor, Identity, TrustRules};
use crate::auth::{
    distinguished_name::{Attribute, DistinguishedName},
    refusal::{Refusal, Rule, quoted},
};

/// The criteria of `[auth.cli_certs]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliCerts {
    /// `required_equals`: the component occurs at least once, and every occurrence has this
    /// value. If this list is empty, no certificate meets the criteria.
    pub required_equals: Vec<(Component, String)>,
    /// `group_from`: the subject's attribute that names the group.
    pub group_from: Option<Attribute>,
    /// `username_from`: the subject's attribute that names the user.
    pub username_from: Option<Attribute>,
    /// `username`: the name of a user to whom `username_from` gives no name.
    pub username: Option<String>,
}

/// One of the two names of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// The name of the CA that issued the certificate.
    Issuer,
    /// The name of the holder.
    Subject,
}

/// An attribute of the issuer's or the subject's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// The name that has the attribute.
    pub name: Name,
    /// The attribute.
    pub attribute: Attribute,
}

impl Component {
    /// All components, with their spelling in the site config.
    pub const ALL: [(&'static str, Self); 6] = [
        ("IssuerO", Self::of(Name::Issuer, Attribute::Organization)),
        (
            "IssuerOU",
            Self::of(Name::Issuer, Attribute::OrganizationalUnit),
        ),
        ("IssuerCN", Self::of(Name::Issuer, Attribute::CommonName)),
        ("SubjectO", Self::of(Name::Subject, Attribute::Organization)),
        (
            "SubjectOU",
            Self::of(Name::Subject, Attribute::OrganizationalUnit),
        ),
        ("SubjectCN", Self::of(Name::Subject, Attribute::CommonName)),
    ];

    const fn of(name: Name, attribute: Attribute) -> Self {
        Self { name, attribute }
    }

    /// The spelling in the site config.
    fn spelled(self) -> &'static str {
        let mut all = Self::ALL.into_iter();
        all.find_map(|(spelled, component)| (component == self).then_some(spelled))
            .unwrap_or_default()
    }

    /// The component with this spelling in the site config.
    #[must_use]
    pub fn parse(spelled: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find_map(|(known, component)| (known == spelled).then_some(component))
    }
}

/// The setting whose rule identifies this leaf as an external user.
pub(super) fn rule(leaf: &X509Certificate<'_>, rules: &TrustRules) -> &'static str {
    let issuer = DistinguishedName::new(leaf.issuer());
    let mut names = issuer.all(Attribute::CommonName).flatten();
    if names.any(|name| rules.issuer_cns.contains(&name)) {
        "[auth.trust].additional_issuer_cns"
    } else {
        "[auth.cli_certs]"
    }
}

/// The external user that the leaf identifies, if its chain ends in the required bundle.
pub(super) fn identify(
    leaf: &X509Certificate<'_>,
    anchor: Anchor,
    rules: &TrustRules,
) -> Result<Identity, Refusal> {
    let issuer = DistinguishedName::new(leaf.issuer());
    let subject = DistinguishedName::new(leaf.subject());
    let issued_by_one_of = |listed: &[String]| {
        issuer
            .all(Attribute::CommonName)
            .flatten()
            .any(|cn| listed.contains(&cn))
    };
    let identity = if issued_by_one_of(&rules.issuer_cns) {
        Some(Identity::External {
            organization: subject.last(Attribute::Organization),
            group: subject.last(Attribute::OrganizationalUnit),
            name: subject.last(Attribute::CommonName),
        })
    } else {
        let criteria = rules.cli_certs.as_ref();
        criteria.and_then(|criteria| criteria.identify(&issuer, &subject))
    };
    let Some(identity) = identity else {
        let seen = format!("the issuer {issuer} and the subject {subject}");
        return Err(Refusal::new(Rule::ExternalUser, &seen, &expected(rules)));
    };
    let (rule, bundle) = match anchor {
        Anchor::NoAdminBundle | Anchor::Admin => return Ok(identity),
        Anchor::RootOnly => (Rule::AdminBundle, "a chain to the admin bundle"),
        Anchor::AdminBundleMissing => (
            Rule::AdminBundleMissing,
            "an admin bundle, but the file is absent or empty",
        ),
    };
    if issued_by_one_of(&rules.admin_issuers_in_root_ca) {
        return Ok(identity);
    }
    let listed = rules.admin_issuers_in_root_ca.iter().map(String::as_str);
    let expected = format!(
        "{bundle}; or an issuer of [rewrap].admin_issuers_in_root_ca, which lists {}",
        quoted(listed)
    );
    let seen = format!("a chain to [tls].root_cafile_path, with the issuer {issuer}");
    Err(Refusal::new(rule, &seen, &expected))
}

/// The requirements for an external user at this site, as text.
fn expected(rules: &TrustRules) -> String {
    let listed = quoted(rules.issuer_cns.iter().map(String::as_str));
    let mut text = format!("an issuer whose CN is one of {listed}");
    if let Some(criteria) = &rules.cli_certs {
        let required = criteria.required_equals.iter();
        let required: Vec<_> = required
            .map(|(component, value)| format!("{} = \"{value}\"", component.spelled()))
            .collect();
        text.push_str("; or ");
        text.push_str(&required.join(" and "));
    }
    text
}

impl CliCerts {
    fn identify(
        &self,
        issuer: &DistinguishedName<'_>,
        subject: &DistinguishedName<'_>,
    ) -> Option<Identity> {
        let meets = |(component, required): &(Component, String)| {
            let name = match component.name {
                Name::Issuer => issuer,
                Name::Subject => subject,
            };
            let mut found = name.all(component.attribute).peekable();
            // A value that can't be read equals nothing.
            found.peek().is_some() && found.all(|value| value.as_ref() == Some(required))
        };
        let known = !self.required_equals.is_empty() && self.required_equals.iter().all(meets);
        let last = |attribute: Option<Attribute>| attribute.and_then(|it| subject.last(it));
        known.then(|| Identity::External {
            organization: None,
            group: last(self.group_from),
            name: last(self.username_from).or_else(|| self.username.clone()),
        })
    }
}
