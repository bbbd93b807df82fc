//! Who calls, and whether they may: certificate → identity → permit.
//!
//! Pure: no I/O, no clock.

pub mod authorize;
pub mod casbin_policy;
pub(crate) mod distinguished_name;
pub mod identity;
pub mod peer;
