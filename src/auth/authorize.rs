//! Decides whether a caller may make a call.
//!
//! The decision is a pure function that returns a [`Permit`], and a run can't start without
//! one. Everything that is not explicitly allowed is denied.
//!
//! For a caller with a certificate, two rules must both allow the call: the rule of identities,
//! and the site's Casbin policy if there is one. The rule of identities allows external users and
//! the services of `[rewrap].allowed_services`.
//!
//! A local user at the admin socket may do everything except an apply. An apply needs
//! `[rewrap].admin_socket_may_apply`. The Casbin policy is about certificates and does not apply:
//! a local user is root or the user of this process, and both control this process anyway.

use std::sync::Arc;

use thiserror::Error;

use crate::auth::{
    casbin_policy::CasbinPolicy,
    identity::{Caller, Identity},
    refusal::{Refusal, Rule, quoted},
};

/// The action of a call in a Casbin policy, in nico-api's spelling.
pub const ACTION: &str = "forge/ReencryptTenantIdentitySecrets";

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything that writes no secret: all queries, dry run, verify, census, and stopping a run.
    Read,
    /// An apply.
    Apply,
}

/// Who may re-wrap.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `[rewrap].allowed_services`: names of the SPIFFE services that may re-wrap. External
    /// users may always do so.
    pub allowed_services: Vec<String>,
    /// `[auth].casbin_policy_file`: the Casbin policy, which must also allow the call.
    pub casbin: Option<Arc<CasbinPolicy>>,
    /// `[auth].permissive_mode`: a call that the Casbin policy denies is allowed, and the log says
    /// so. The rule of identities still applies.
    pub permissive: bool,
    /// `[rewrap].admin_socket_may_apply`: whether a local user may start an apply.
    pub local_may_apply: bool,
}

/// Proof that a caller was allowed to make its call. Only [`authorize`] makes one.
#[derive(Debug)]
pub struct Permit {
    identity: Identity,
    access: Access,
    overrides_casbin: bool,
}

impl Permit {
    /// The identity that was allowed.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What was allowed.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether the Casbin policy denied the call and permissive mode allowed it.
    #[must_use]
    pub fn overrides_casbin(&self) -> bool {
        self.overrides_casbin
    }
}

/// Why a caller may not make its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Denial {
    /// The certificate is verified, but no rule gives it an identity.
    #[error(
        "the client certificate has no identity at this site: its SPIFFE id, issuer and subject \
         match no rule of [auth.trust] or [auth.cli_certs] in the site config, or its chain does \
         not end in the admin bundle"
    )]
    NoIdentity,
    /// The certificate would identify an external user, but the admin bundle is missing.
    #[error(
        "the client certificate identifies no administrator: [tls].admin_root_cafile_path names an \
         absent or empty file, and [rewrap].admin_issuers_in_root_ca does not list the issuer of \
         the certificate"
    )]
    NoAdminBundle,
    /// The identity is not one of those that may re-wrap.
    #[error(
        "this identity may not re-wrap: call with an admin certificate, or list the service in \
         [rewrap].allowed_services"
    )]
    NotAllowed,
    /// The identity may re-wrap, but the Casbin policy does not allow the call.
    #[error(
        "the site's Casbin policy does not allow this identity to call {ACTION}: add a rule to \
         [auth].casbin_policy_file and restart nico-rewrap"
    )]
    CasbinPolicy,
    /// A local user asks for an apply, and the admin socket is read-only.
    #[error(
        "the admin socket may not start an apply: set [rewrap].admin_socket_may_apply = true and \
         restart nico-rewrap, or call with an admin certificate"
    )]
    SocketReadOnly,
}

/// A denial, and the rule that caused it. The client gets only the denial.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{denial}")]
pub struct Denied {
    /// What the client gets.
    pub denial: Denial,
    /// What the log and the audit record get.
    pub refusal: Refusal,
}

impl Denied {
    fn no_identity(caller: &Caller) -> Self {
        let unknown = || Refusal::new(Rule::Certificate, "no certificate", "a certificate");
        let refusal = caller.refusal.clone().unwrap_or_else(unknown);
        let denial = match refusal.rule {
            Rule::AdminBundleMissing => Denial::NoAdminBundle,
            _ => Denial::NoIdentity,
        };
        Self { denial, refusal }
    }

    fn not_allowed(policy: &Policy, identity: &Identity) -> Self {
        let services = quoted(policy.allowed_services.iter().map(String::as_str));
        let seen = format!("the {} {}", identity.kind(), quoted([identity.name()]));
        let expected = format!("an external user, or one of the services {services}");
        Self {
            denial: Denial::NotAllowed,
            refusal: Refusal::new(Rule::AllowedServices, &seen, &expected),
        }
    }

    fn socket_read_only(identity: &Identity) -> Self {
        let expected = "true, for an apply";
        Self {
            denial: Denial::SocketReadOnly,
            refusal: Refusal::new(Rule::SocketMayApply, identity.name(), expected),
        }
    }

    fn casbin_policy(principals: &[String]) -> Self {
        let seen = quoted(principals.iter().map(String::as_str));
        let expected = format!("a rule that allows one of these names {ACTION}");
        Self {
            denial: Denial::CasbinPolicy,
            refusal: Refusal::new(Rule::CasbinPolicy, &seen, &expected),
        }
    }
}

/// Decides whether `caller` has this access under `policy`.
///
/// # Errors
///
/// [`Denied`] if the caller may not.
pub fn authorize(policy: &Policy, caller: &Caller, access: Access) -> Result<Permit, Denied> {
    let Some(identity) = &caller.identity else {
        return Err(Denied::no_identity(caller));
    };
    let permit = |overrides_casbin| Permit {
        identity: identity.clone(),
        access,
        overrides_casbin,
    };
    let allowed = match identity {
        Identity::External { .. } => true,
        Identity::Service { name } => policy.allowed_services.contains(name),
        Identity::Machine { .. } => false,
        Identity::Local { .. } if access == Access::Apply && !policy.local_may_apply => {
            return Err(Denied::socket_read_only(identity));
        }
        Identity::Local { .. } => return Ok(permit(false)),
    };
    if !allowed {
        return Err(Denied::not_allowed(policy, identity));
    }
    let principals = identity.principals();
    let allows = |casbin: &Arc<CasbinPolicy>| {
        let mut principals = principals.iter();
        principals.any(|principal| casbin.allows(principal, ACTION))
    };
    let overrides_casbin = !policy.casbin.as_ref().is_none_or(allows);
    if overrides_casbin && !policy.permissive {
        return Err(Denied::casbin_policy(&principals));
    }
    Ok(permit(overrides_casbin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(casbin: Option<&str>, permissive: bool) -> Policy {
        Policy {
            allowed_services: vec!["nico-api".to_owned()],
            casbin: casbin.map(|text| Arc::new(CasbinPolicy::parse(text).unwrap())),
            permissive,
            local_may_apply: false,
        }
    }

    /// Whether permissive mode overrode the Casbin policy, or the reason of the denial.
    fn decide(policy: &Policy, identity: Option<Identity>) -> Result<bool, Denial> {
        let caller = Caller {
            identity,
            ..Caller::default()
        };
        let [read, apply] = [Access::Read, Access::Apply].map(|access| {
            authorize(policy, &caller, access)
                .map(|permit| permit.overrides_casbin())
                .map_err(|denied| denied.denial)
        });
        assert_eq!(read, apply, "a certificate gives both or none");
        read
    }

    fn service(name: &str) -> Option<Identity> {
        Some(Identity::Service {
            name: name.to_owned(),
        })
    }

    fn machine(id: &str) -> Option<Identity> {
        Some(Identity::Machine { id: id.to_owned() })
    }

    fn external(group: Option<&str>) -> Option<Identity> {
        Some(Identity::External {
            organization: None,
            group: group.map(str::to_owned),
            name: None,
        })
    }

    #[test]
    fn external_users_and_listed_services_only() {
        // Without a Casbin policy, permissive mode has no effect.
        for policy in [policy(None, false), policy(None, true)] {
            let decide = |identity| decide(&policy, identity);
            assert_eq!(decide(external(None)), Ok(false));
            assert_eq!(decide(service("nico-api")), Ok(false));
            assert_eq!(decide(service("nico-dhcp")), Err(Denial::NotAllowed));
            assert_eq!(decide(service("nico-api/x")), Err(Denial::NotAllowed));
            assert_eq!(decide(machine("nico-api")), Err(Denial::NotAllowed));
            assert_eq!(decide(None), Err(Denial::NoIdentity));
        }
    }

    #[test]
    fn the_casbin_policy_must_also_allow_the_call() {
        let people = policy(Some("g, external-role/ops, op\np, op, forge/*"), false);
        assert_eq!(decide(&people, external(Some("ops"))), Ok(false));
        for denied in [
            external(Some("op")),
            external(Some("OPS")),
            external(Some("")),
            external(None),
            service("nico-api"),
        ] {
            assert_eq!(decide(&people, denied), Err(Denial::CasbinPolicy));
        }

        let service_only = policy(Some("p, spiffe-service-id/nico-api, forge/Re*"), false);
        assert_eq!(decide(&service_only, service("nico-api")), Ok(false));
        let anybody = external(Some("ops"));
        assert_eq!(decide(&service_only, anybody), Err(Denial::CasbinPolicy));
    }

    #[test]
    fn one_allowed_principal_is_enough_and_nobody_is_anonymous() {
        let trusted = policy(Some("p, trusted-certificate, forge/*"), false);
        assert_eq!(decide(&trusted, external(None)), Ok(false));
        assert_eq!(decide(&trusted, service("nico-api")), Ok(false));
        let other = policy(Some("p, trusted-certificate, nico/*"), false);
        assert_eq!(decide(&other, external(None)), Err(Denial::CasbinPolicy));
        let anonymous = policy(Some("p, anonymous, **"), false);
        assert_eq!(
            decide(&anonymous, external(None)),
            Err(Denial::CasbinPolicy)
        );
    }

    #[test]
    fn the_casbin_policy_allows_no_further_identities() {
        let all = "p, trusted-certificate, **\np, spiffe-machine-id, **\n\
                   p, spiffe-service-id/nico-dhcp, **";
        for permissive in [false, true] {
            let policy = policy(Some(all), permissive);
            assert_eq!(decide(&policy, machine("m")), Err(Denial::NotAllowed));
            let dhcp = service("nico-dhcp");
            assert_eq!(decide(&policy, dhcp), Err(Denial::NotAllowed));
            assert_eq!(decide(&policy, None), Err(Denial::NoIdentity));
        }
    }

    #[test]
    fn a_local_user_reads_whatever_the_policy_says_and_applies_only_with_the_setting() {
        let local = Caller {
            identity: Some(Identity::Local {
                name: "local:uid=0".to_owned(),
            }),
            ..Caller::default()
        };
        for casbin in [None, Some(""), Some("p, trusted-certificate, **")] {
            for permissive in [false, true] {
                let read_only = policy(casbin, permissive);
                let permit = authorize(&read_only, &local, Access::Read).unwrap();
                assert_eq!(permit.access(), Access::Read);
                assert!(!permit.overrides_casbin());
                let denied = authorize(&read_only, &local, Access::Apply).unwrap_err();
                assert_eq!(denied.denial, Denial::SocketReadOnly);
                assert_eq!(denied.refusal.rule, Rule::SocketMayApply);
                assert_eq!(denied.refusal.seen, "local:uid=0");
                let writes = Policy {
                    local_may_apply: true,
                    ..read_only
                };
                let permit = authorize(&writes, &local, Access::Apply).unwrap();
                assert_eq!(permit.access(), Access::Apply);
            }
        }
        // The setting does not affect a caller with a certificate.
        let writes = Policy {
            local_may_apply: true,
            ..policy(None, false)
        };
        assert_eq!(decide(&writes, machine("m")), Err(Denial::NotAllowed));
    }

    #[test]
    fn a_denial_names_the_rule_and_what_it_saw() {
        let refusal = |policy: &Policy, identity| {
            let caller = Caller {
                identity,
                ..Caller::default()
            };
            authorize(policy, &caller, Access::Read)
                .unwrap_err()
                .refusal
        };
        let listed = refusal(&policy(None, false), service("nico-dhcp"));
        assert_eq!(listed.rule, Rule::AllowedServices);
        assert_eq!(listed.seen, "the service \"nico-dhcp\"");
        assert!(
            listed.expected.ends_with("services \"nico-api\""),
            "{listed:?}"
        );
        let casbin = refusal(&policy(Some(""), false), external(Some("ops")));
        assert_eq!(casbin.rule, Rule::CasbinPolicy);
        assert_eq!(
            casbin.seen,
            "\"external-role/ops\", \"trusted-certificate\""
        );
    }

    #[test]
    fn permissive_mode_overrides_only_the_casbin_policy() {
        let denies_all = policy(Some(""), true);
        assert_eq!(decide(&denies_all, external(None)), Ok(true));
        assert_eq!(decide(&denies_all, service("nico-api")), Ok(true));
        let dhcp = service("nico-dhcp");
        assert_eq!(decide(&denies_all, dhcp), Err(Denial::NotAllowed));
        assert_eq!(decide(&denies_all, machine("m")), Err(Denial::NotAllowed));
        assert_eq!(decide(&denies_all, None), Err(Denial::NoIdentity));
        let allows = policy(Some("p, external-role/ops, forge/*"), true);
        assert_eq!(decide(&allows, external(Some("ops"))), Ok(false));
    }
}
