//! The options that all commands of the client have.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

/// The options of every command that asks a server.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(super) connection: ConnectionOptions,
    #[command(flatten)]
    pub(super) output: OutputOptions,
    /// Give up after this time, such as 30s or 10m
    ///
    /// A run continues on the server. Without this option, one call may take 30 seconds, and a
    /// run as long as it needs.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, help_heading = "Connection")]
    pub(super) timeout: Option<Duration>,
    /// Never ask a question
    ///
    /// The command exits with code 4 where it would ask, and names the option that answers the
    /// question.
    #[arg(long, help_heading = "Output")]
    pub(super) no_input: bool,
}

/// The address of the server, and the client certificate.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionOptions {
    /// HOST or HOST:PORT of the server. The default port is 1179 [env: REWRAP_ENDPOINT]
    ///
    /// A list of servers, separated by commas, is also possible. Each server of the list, and each
    /// address of a name, is one instance of the same site.
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) endpoint: Option<String>,
    /// PEM file of the CAs that sign the server's certificate [env: REWRAP_CACERT]
    #[arg(long, value_name = "FILE")]
    pub(super) cacert: Option<PathBuf>,
    /// PEM file of the client certificate and its intermediates [env: REWRAP_CERT]
    #[arg(long, value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,
    /// PEM file of the private key. Other users must not be able to read it [env: REWRAP_KEY]
    #[arg(long = "key", id = "private_key", value_name = "FILE")]
    pub(super) key: Option<PathBuf>,
    /// The name in the server's certificate, if it is not the host [env: REWRAP_SERVER_NAME]
    #[arg(long, value_name = "NAME")]
    pub(super) server_name: Option<String>,
    /// The admin socket of a server on this machine [env: REWRAP_SOCKET]
    ///
    /// Without any other option, variable or context, the client uses
    /// /run/nico-rewrap/admin.sock.
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    pub(super) socket: Option<PathBuf>,
    /// A connection from ~/.config/nico-rewrap/config.toml
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
}

/// How the client writes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputOptions {
    /// The format of the data on standard output
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Format,
    /// Use only ASCII characters for symbols
    #[arg(long)]
    pub(super) ascii: bool,
}

/// The format of the data on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON document. Its kind is Error if the command could not do its work.
    Json,
    /// JSON lines. The last line is the result or the error.
    Jsonl,
}
