//! Where keys come from: a file, or environment variables.

pub mod environment;
pub mod file;
mod key_text;
mod yaml;
