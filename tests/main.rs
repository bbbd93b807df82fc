//! Tests from outside: the real binary, a real Postgres, certificates by the real `openssl`, and
//! the real `grpcurl`.
//!
//! There is one test binary, so that it links once and all tests share one temporary database
//! server. The fixtures come first, then one file for each topic.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot do its part ends the test"
)]

mod bad_texts;
mod ca;
mod certificate_table;
mod certs;
mod crl;
mod database;
mod faults;
mod grpcurl;
mod handshake;
mod http2;
mod kubelet;
mod leaks;
mod openbao;
mod outcome;
mod patch;
mod pg;
mod pg_host;
mod pgbouncer;
mod pki;
mod process;
mod proxy;
mod rewrap_client;
mod seal;
mod seed;
mod server;
mod site;
mod source_imports;

mod adaptive_rate;
mod admin_bundle;
mod allocations;
mod anchors;
mod audit_log;
mod bad_files;
mod callers;
mod census_faults;
mod censuses;
mod certificates;
mod changed_on_disk;
mod command_line;
mod config_sources;
mod configuration;
mod crl_reload;
mod crowds;
mod damaged_blocks;
mod database_faults;
mod database_tls;
mod database_urls;
mod denials;
mod document_commands;
mod documents;
mod durability;
mod economy;
mod environment_variables;
mod error_details;
mod failures;
mod few_connections;
mod files_that_block;
mod fixtures;
mod floods;
mod fuzz_seeds;
mod grpc_surface;
mod healthcheck;
mod identities;
mod interruptions;
mod key_sources;
mod keys_in_the_environment;
mod kubernetes;
mod late_triggers;
mod least_privilege;
mod live_writers;
mod locked_rows;
mod locks_and_retries;
mod manifests;
mod many_failures;
mod memory;
mod memory_peak;
mod new_keys;
mod notices;
mod old_schema;
mod pem_files;
mod policies;
mod pooler;
mod property;
mod races;
mod reload;
mod replicas;
mod requests;
mod revocation;
mod run_faults;
mod run_service;
mod runs;
mod scope;
mod security_page;
mod settings_reference;
mod setup_problems;
mod several_hosts;
mod silent_sessions;
mod site_guard;
mod standard_error;
mod start_log;
mod start_up;
mod state_schema;
mod stops;
mod structure;
mod sync_standby;
mod transport;
mod unquoted;
mod unreadable;
mod vault;
mod vault_keys;
mod vault_logins;
mod vault_problems;
mod verdicts;
mod visibility;
