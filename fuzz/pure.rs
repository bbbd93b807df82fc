//! The pure modules of `nico-rewrap`, which the fuzz targets call. This library has the same
//! name.
//!
//! It compiles the same files without the other modules: with gRPC and Postgres, an
//! instrumented build takes six minutes of processor time, which is too long for CI. This
//! build also proves that the pure modules do not depend on other modules.

#[path = "../src"]
mod pure {
    pub mod auth;
    pub mod domain;
    pub mod keys;
}

// The modules refer to each other at the root of the crate.
pub use pure::{auth, domain, keys};
