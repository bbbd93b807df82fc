//! One record for each call, allowed or refused, written when its outcome is known:
//! a JSON object on a line of its own, with the target `audit`.
//!
//! A call that may touch the database leaves a line before it does, `call started`.
//! Where the audit log is required and takes no line, such a call is refused with
//! nothing touched; and should the machine go down in the middle of one, it is known
//! who made it.

mod log;
mod record;

pub use self::log::{AuditLog, AuditOptions};
pub(crate) use self::{
    log::{NotRecorded, check},
    record::{Outcome, Record},
};
