//! Calls: authorization, admission, execution and errors.

mod admission;
mod audited;
mod background;
pub mod call;
mod conclude;
pub mod context;
mod drive;
pub mod error;
mod execute;
pub mod grpc;
pub mod guard;
mod key_check;
pub mod overview;
mod panicked;
mod passed_check;
mod progress;
mod receipt;
mod receipt_order;
mod remedy;
mod request;
mod run_id;
mod run_span;
mod slots;
