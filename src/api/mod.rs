//! Calls, whatever their transport: authorization, admission, errors.

mod admission;
pub mod call;
pub mod error;
pub mod grpc;
pub mod guard;
mod run_id;
