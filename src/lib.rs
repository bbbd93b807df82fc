//! `nico-rewrap` re-wraps NICo's machine-identity secrets when a site changes its
//! master key.
//!
//! NICo's API server keeps up to three secrets of every organization in Postgres.
//! Each secret is in an *envelope*: AES-256-GCM under a *site master key* (KEK),
//! labelled with the id of that key. When the site changes the key, this program opens
//! every secret under the old key and seals it under the new one, the *target key*.
//! Meanwhile, tenants continue to change their secrets. One pass over the secrets is a
//! *run*. A *dry run* does everything except writing.
//!
//! # Steps for one row
//!
//! 1. [`store`] reads the row as part of a page, in a READ ONLY transaction that ends
//!    with the page.
//! 2. [`domain::rewrap::decide`] opens every secret and seals those that are not under
//!    the target key. It is a pure function of the [`domain::keyring`] and the row. No
//!    transaction is open.
//! 3. [`store::Writer::replace`] writes the new envelopes if the row still holds the old
//!    ones, and bumps the organization's version. Both happen in one statement, which is
//!    one transaction.
//! 4. If the row has changed, [`run`] reads it and decides again. After a few attempts, it does
//!    so under a row lock.
//! 5. A [`run::Report`] counts the outcome of the row.
//! 6. Before the run reports, it flushes everything to disk ([`store::Store::barrier`])
//!    and compares the table with the rows that it visited.
//!
//! # The levels
//!
//! Every folder imports only folders below it. `tests/structure.rs` holds the list.
//!
//! ```text
//! 9  main, cli            arguments, exit codes; cli/client is the operator's client
//! 8  app                  composition root: bind, check, serve, drain
//! 7  config               files and environment -> the options of every folder below
//! 6  server               accept, TLS handshake, connections, quotas, probes
//! 5  api                  one call: authorize, admit, run, record; gRPC
//! 4  audit                one record for each call
//! 3  run                  a run over the rows: batches, pacing, adaptive rate, report
//! 2  store, tls, vault    all SQL and the way to Postgres | certificates and revocation | Vault
//! 1  keys                 where keys come from: a file, the environment, answers of Vault
//! 0  domain, auth         pure: envelope, keyring, re-wrap | identity, policy, permit
//!    limits, telemetry    connection slots, rate limiter | log, metrics, traces, readiness
//!    proto                the generated messages, clients and servers of gRPC
//!    regular_file         reads a file without blocking on it
//!    failpoint            where tests make a run fail; not in a release
//! ```
//!
//! Start with [`domain::rewrap`] and [`domain::envelope`], then [`run`], then [`store`].

pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod config;
pub mod domain;
mod failpoint;
pub mod keys;
mod limits;
mod proto;
mod regular_file;
pub mod run;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod vault;
