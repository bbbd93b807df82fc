//! Reads keys from a file or from environment variables.

pub mod add_key;
pub mod environment;
pub mod file;
mod key_text;
mod yaml;

#[cfg(test)]
mod tests;
