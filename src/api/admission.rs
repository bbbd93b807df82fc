//! Authorization of one call, with its metric and its warning.

use crate::{
    auth::{
        authorize::{ACTION, Access, Denial, Denied, Permit, Policy, authorize},
        peer::Peer,
    },
    telemetry,
};

/// Authorizes one call and counts the decision. Logs a warning if the call is denied, or if only
/// the permissive mode allows it.
pub(crate) fn decide(policy: &Policy, peer: &Peer, access: Access) -> Result<Permit, Denied> {
    let caller = &peer.caller;
    let decision = authorize(policy, caller, access);
    let outcome = match &decision {
        Ok(permit) if permit.overrides_casbin() => "allowed_by_permissive_mode",
        Ok(_) => "allowed",
        Err(denied) => match denied.denial {
            Denial::NoIdentity | Denial::NoAdminBundle => "no_identity",
            Denial::NotAllowed => "not_allowed",
            Denial::CasbinPolicy => "denied_by_policy",
            Denial::SocketReadOnly => "socket_read_only",
        },
    };
    telemetry::authorization_decided(caller.kind(), outcome);
    if let Err(Denied { refusal, .. }) = &decision {
        let certificate = caller.certificate();
        tracing::warn!(
            reason = outcome,
            rule = refusal.rule.setting(),
            seen = refusal.seen,
            expected = refusal.expected,
            peer = %peer.address,
            certificate_serial = certificate.map(|(serial, _)| serial),
            certificate_issuer = certificate.map(|(_, issuer)| issuer),
            "call denied"
        );
    }
    if decision.as_ref().is_ok_and(Permit::overrides_casbin) {
        tracing::warn!(
            action = ACTION,
            identity_kind = caller.kind(),
            "the Casbin policy denies this call, but [auth].permissive_mode allows it"
        );
    }
    decision
}
