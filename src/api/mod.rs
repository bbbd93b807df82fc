//! Calls: authorization, admission, execution and errors.

pub mod error;
pub mod grpc;
pub mod guard;
