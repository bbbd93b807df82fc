//! gRPC: converts messages, and nothing else.

pub mod forge;
mod reflection;
