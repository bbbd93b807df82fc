//! The pure modules of `nico-rewrap`, under its name: what a fuzz target can call.
//!
//! They are compiled from the same files, but without the rest: with gRPC and Postgres
//! an instrumented build takes six minutes of processor time, which is too long for
//! CI. That they compile here shows, too, that they need nothing of the rest.

#[path = "../src"]
mod pure {
    pub mod auth;
    pub mod domain;
    pub mod keys;
}

// Where the modules look for each other.
pub use pure::{auth, domain, keys};
