//! Authentication and authorization of a call: certificate or local user → identity → permit.
//!
//! The code in this folder is pure: it does no I/O and reads no clock.

pub mod authorize;
pub mod casbin_policy;
pub(crate) mod distinguished_name;
pub mod identity;
pub mod local;
pub mod peer;
pub mod refusal;
