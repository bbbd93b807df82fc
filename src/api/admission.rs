//! The decision whether a caller may re-wrap, counted and logged.

use crate::{
    auth::{
        authorize::{ACTION, Denial, Permit, Policy, authorize},
        identity::Caller,
    },
    telemetry,
};

/// The decision about one call, counted, and logged where a site should hear of it.
pub(crate) fn decide(policy: &Policy, caller: &Caller) -> Result<Permit, Denial> {
    let decision = authorize(policy, caller);
    let outcome = match &decision {
        Ok(permit) if permit.overrides_casbin() => "allowed_by_permissive_mode",
        Ok(_) => "allowed",
        Err(Denial::NoIdentity) => "no_identity",
        Err(Denial::NotAllowed) => "not_allowed",
        Err(Denial::CasbinPolicy) => "denied_by_policy",
    };
    telemetry::decided(caller.kind(), outcome);
    if decision.as_ref().is_ok_and(Permit::overrides_casbin) {
        tracing::warn!(
            action = ACTION,
            identity_kind = caller.kind(),
            "the Casbin policy denies this call, and [auth].permissive_mode lets it pass"
        );
    }
    decision
}
