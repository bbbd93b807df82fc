//! Limits on the load that clients can cause: connection slots and a rate limiter.

pub(crate) mod connection_slots;
pub(crate) mod rate_limit;
