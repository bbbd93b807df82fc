//! The core: envelopes, keys, and the decision about one row.
//!
//! Pure: no I/O but the operating system's randomness for nonces, no clock, no SQL.

pub mod envelope;
pub mod keyring;
pub mod organization;
pub mod rewrap;
