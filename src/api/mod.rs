//! Calls, whatever their transport: authorization, admission, errors.

pub mod error;
pub mod grpc;
pub mod guard;
