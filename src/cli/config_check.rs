//! `config check`: checks the configuration without starting the server.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Subcommand;

use super::{ConfigFiles, EX_CONFIG, client::Exit, fail};
use crate::{
    config::{Config, Environment, SiteKeys},
    telemetry,
};

/// The commands about the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration as `serve` does, without starting the server.
    ///
    /// The command reads every file: the configuration, the TLS files, the CRLs, the policy and
    /// the keys. It does not use the network, so it checks neither the database nor Vault.
    ///
    /// The exit code is 0 if `serve` would start, and 78 for a configuration error.
    Check(ConfigFiles),
}

impl ConfigCommand {
    pub(super) fn run(&self, environment: &Environment) -> ExitCode {
        let Self::Check(files) = self;
        check(&files.config, environment)
    }
}

fn check(files: &[PathBuf], environment: &Environment) -> ExitCode {
    let config = match Config::load(files, environment) {
        Ok(config) => config,
        Err(error) => return fail(&error, EX_CONFIG),
    };
    for warning in &config.warnings {
        let line = format!("Warning: {warning}\n");
        telemetry::write_message(line, super::EXIT_FLUSH_TIMEOUT);
    }
    print(&summary(&config));
    Exit::Done.into()
}

fn summary(config: &Config) -> String {
    let Some(machine_identity) = &config.machine_identity else {
        return "The configuration is valid. [machine_identity].enabled is not true: the server answers every call with \
                FAILED_PRECONDITION."
            .to_owned();
    };
    match &machine_identity.keys {
        SiteKeys::Complete(keyring) => {
            let mut text = "The configuration is valid. Keys:".to_owned();
            for kek in keyring.iter() {
                let is_target = kek.id() == keyring.target().id();
                let target = if is_target { ", the target key" } else { "" };
                text += &format!(
                    "\n  {} {} ({}){target}",
                    kek.id(),
                    kek.check_value(),
                    kek.source()
                );
            }
            text
        }
        SiteKeys::InVault(in_vault) => format!(
            "The configuration is valid. The keys in {} were not checked.",
            in_vault.vault
        ),
    }
}

fn print(text: &str) {
    // An error is ignored: the work is done, and nobody reads.
    let _ = writeln!(io::stdout(), "{text}");
}
