//! May this caller re-wrap? A pure function that yields a [`Permit`], and a run
//! can't be started without one. Everything that is not allowed is denied.
//!
//! Two rules, and both have to allow: that of identities (external users, and the
//! services that `[rewrap].allowed_services` lists), and the site's Casbin policy
//! where it has one.

use std::sync::Arc;

use thiserror::Error;

use crate::auth::{
    casbin_policy::CasbinPolicy,
    identity::{Caller, Identity},
};

/// What a call asks of a Casbin policy, as nico-api spells it.
pub const ACTION: &str = "forge/ReencryptTenantIdentitySecrets";

/// Who may re-wrap.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `[rewrap].allowed_services`: names of SPIFFE service identities that may,
    /// beside external users.
    pub allowed_services: Vec<String>,
    /// `[auth].casbin_policy_file`, which has to allow it as well.
    pub casbin: Option<Arc<CasbinPolicy>>,
    /// `[auth].permissive_mode`: what the Casbin policy denies is noted, not refused.
    /// The rule of identities is not touched by it.
    pub permissive: bool,
}

/// Proof that a caller was allowed to re-wrap. Only [`authorize`] makes one.
#[derive(Debug)]
pub struct Permit {
    identity: Identity,
    overrides_casbin: bool,
}

impl Permit {
    /// Who was allowed.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the Casbin policy denied it, and the permissive mode let it pass.
    #[must_use]
    pub fn overrides_casbin(&self) -> bool {
        self.overrides_casbin
    }
}

/// Why a caller may not re-wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Denial {
    /// The certificate is verified, and no rule gives it an identity.
    #[error(
        "the client certificate gives no usable identity: its SPIFFE id, its issuer or its names \
         are not what [auth.trust] and [auth.cli_certs] of the site config say, or its chain does \
         not end in the admin bundle"
    )]
    NoIdentity,
    /// The identity is not among those that may re-wrap.
    #[error(
        "this identity may not re-wrap: call with an admin certificate, or list the service in \
         [rewrap].allowed_services"
    )]
    NotAllowed,
    /// The identity is, and the Casbin policy does not allow it.
    #[error(
        "the site's Casbin policy does not let this identity call {ACTION}: add a rule to \
         [auth].casbin_policy_file and restart nico-rewrap"
    )]
    CasbinPolicy,
}

/// Decides whether `caller` may re-wrap under `policy`.
///
/// # Errors
///
/// [`Denial`] when not.
pub fn authorize(policy: &Policy, caller: &Caller) -> Result<Permit, Denial> {
    let identity = caller.identity.as_ref().ok_or(Denial::NoIdentity)?;
    let allowed = match identity {
        Identity::External { .. } => true,
        Identity::Service { name } => policy.allowed_services.contains(name),
        Identity::Machine { .. } => false,
    };
    if !allowed {
        return Err(Denial::NotAllowed);
    }
    let allows = |casbin: &Arc<CasbinPolicy>| {
        let mut principals = identity.principals().into_iter();
        principals.any(|principal| casbin.allows(&principal, ACTION))
    };
    let overrides_casbin = !policy.casbin.as_ref().is_none_or(allows);
    if overrides_casbin && !policy.permissive {
        return Err(Denial::CasbinPolicy);
    }
    Ok(Permit {
        identity: identity.clone(),
        overrides_casbin,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(casbin: Option<&str>, permissive: bool) -> Policy {
        Policy {
            allowed_services: vec!["nico-api".to_owned()],
            casbin: casbin.map(|text| Arc::new(CasbinPolicy::parse(text).unwrap())),
            permissive,
        }
    }

    /// Whether the Casbin policy was overridden, or why not allowed.
    fn decide(policy: &Policy, identity: Option<Identity>) -> Result<bool, Denial> {
        let caller = Caller {
            identity,
            ..Caller::default()
        };
        authorize(policy, &caller).map(|permit| permit.overrides_casbin())
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
        // The permissive mode is for what a Casbin policy denies, and there is none.
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
    fn the_casbin_policy_has_to_allow_it_as_well() {
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
    fn any_principal_will_do_and_anonymous_is_none() {
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
    fn the_casbin_policy_widens_nothing() {
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
    fn permissive_mode_lets_pass_what_the_casbin_policy_denies_and_nothing_else() {
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
