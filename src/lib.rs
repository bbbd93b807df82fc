//! `nico-rewrap` re-wraps NICo's machine-identity secrets when a site changes its
//! master key.
//!
//! NICo's API server keeps up to three secrets of every organization in Postgres,
//! each in an *envelope*: AES-256-GCM under a *site master key* (KEK), labelled
//! with the id of that key. When the site changes the key, every secret has to be
//! opened under the old one and sealed under the new one, the *target*, while
//! tenants go on changing them. That is a *run*, and a *dry run* does everything
//! but the writing.
//!
//! # The way of one row
//!
//! 1. [`store`] reads it as part of a page, in a READ ONLY transaction that ends
//!    with the page.
//! 2. [`rewrap::decide`] opens every secret and seals what is not on target anew,
//!    with no transaction open: a pure function of the [`keyring`] and the row.
//! 3. [`store::Writer::replace`] writes the new texts if the row still has the old
//!    ones, and bumps the organization's version, in one statement, which is one
//!    transaction.
//! 4. If the row had changed, [`run`] reads and decides again; after a few times,
//!    under a row lock.
//! 5. What became of it is counted in a [`run::Report`].
//!
//! # Where things are
//!
//! Pure, no I/O of ours below them: [`envelope`] (the format, and the only AES-GCM
//! calls), [`keyring`], [`rewrap`], [`organization`], [`identity`] (certificate →
//! who), [`casbin_policy`] (what the site's policy file allows), [`authorize`] (who →
//! permit).
//!
//! The world: [`config`] (files and environment → one valid [`config::Config`]),
//! [`secrets`] (the secrets file), `regular_file` (how files are read), [`pem`], [`tls`] (certificates, anew when their files change), [`database`] (where Postgres is,
//! and TLS with it), [`store`] (all SQL).
//!
//! The service: [`run`] knows the store and the pure core, and no gRPC; [`listener`]
//! (TLS and HTTP/2), [`gate`] (who gets through), [`service`] (the gRPC surface), [`error`] (the one mapping to a
//! status), [`audit`] (a record of every call), [`admin`] (probes and metrics), [`readiness`], [`telemetry`], [`cpu`];
//! `places` and `turns` are how many at once, and how often.
//!
//! [`app`] puts them together, and [`cli`] is the command line; only these two know
//! everything.

pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod domain;
pub mod keys;
mod limits;
mod regular_file;
pub mod run;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tls;
