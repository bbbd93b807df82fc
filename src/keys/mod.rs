//! Reads keys from a file, from environment variables or from the answers of Vault.

pub mod add_key;
pub mod environment;
pub mod file;
mod key_text;
pub mod merge;
pub mod vault;
mod yaml;

#[cfg(test)]
mod tests;
