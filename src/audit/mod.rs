//! The audit log: one record for each call, allowed or refused, written at its end.
//!
//! A record is a JSON object on a line of its own, with the target `audit`. A call that may
//! access the database also writes the line `call started` first. If the machine crashes
//! during the call, that line tells who made it. If the audit log is required and cannot be
//! written, the server refuses the call before it accesses the database.

mod log;
mod record;

pub use self::log::{AuditLog, AuditOptions};
pub(crate) use self::{
    log::{NotRecorded, check},
    record::{Outcome, Record},
};
