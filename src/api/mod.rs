//! Calls: authorization, admission, execution and errors.

mod admission;
mod audited;
pub mod call;
pub mod error;
pub mod grpc;
pub mod guard;
mod run_id;
