//! The core: envelopes, keys, and the decision about one row.
//!
//! This module is pure. Its only I/O is the operating system's randomness for nonces. It
//! uses no clock and no SQL.

pub mod census;
pub mod envelope;
pub mod keyring;
pub mod organization;
pub mod rewrap;
pub mod tenant_version;
pub mod verdict;
pub mod verify;
