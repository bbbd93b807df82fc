//! The settings of `[rewrap]`: name, default and meaning.
//!
//! To add a setting, add an entry here and read it with a method of `Settings`. The check for
//! unknown names, the help and the table in docs/reference/configuration.md follow from the
//! entry. `UPDATE_REFERENCE=1 cargo test settings_reference` writes that table.

use std::fmt::Write as _;

use config::ValueKind;

/// The section that only this program reads.
pub(super) const SECTION: &str = "rewrap";

/// One setting of `[rewrap]`.
#[derive(Debug)]
pub struct Setting {
    /// The name in `[rewrap]`.
    pub name: &'static str,
    /// The value that is used if the setting is not set.
    pub default: DefaultValue,
    /// What the setting does, in Markdown. Links are relative to docs/reference.
    pub meaning: &'static str,
}

/// The default of a setting.
#[derive(Debug)]
pub enum DefaultValue {
    /// A string, an address, a word or a duration.
    Text(&'static str),
    /// A number.
    Number(u32),
    /// True or false.
    Bool(bool),
    /// A list of strings.
    List(&'static [&'static str]),
    /// The code derives the default. This is its description in Markdown; empty for settings
    /// that may have no value.
    Derived(&'static str),
}

const fn entry(name: &'static str, default: DefaultValue, meaning: &'static str) -> Setting {
    Setting {
        name,
        default,
        meaning,
    }
}

const fn text(name: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    entry(name, DefaultValue::Text(default), meaning)
}

const fn number(name: &'static str, default: u32, meaning: &'static str) -> Setting {
    entry(name, DefaultValue::Number(default), meaning)
}

const fn bool(name: &'static str, default: bool, meaning: &'static str) -> Setting {
    entry(name, DefaultValue::Bool(default), meaning)
}

const fn list(
    name: &'static str,
    default: &'static [&'static str],
    meaning: &'static str,
) -> Setting {
    entry(name, DefaultValue::List(default), meaning)
}

const fn derived(name: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    entry(name, DefaultValue::Derived(default), meaning)
}

/// All settings of `[rewrap]`, in the order of the reference.
pub const SETTINGS: &[Setting] = &[
    text(
        "listen",
        "[::]:1179",
        "address of gRPC, with mutual TLS only. If the kernel has no IPv6, set `0.0.0.0:1179`",
    ),
    text(
        "metrics_endpoint",
        "[::]:1180",
        "address of plain HTTP with `/livez`, `/readyz`, `/metrics` and [`/status`](status.md). If the kernel has no IPv6, \
         set `0.0.0.0:1180`",
    ),
    derived(
        "admin_socket",
        "",
        "path of the [admin socket](../access.md#admin-socket), a Unix socket for root and for the user of \
         nico-rewrap. Its directory must exist",
    ),
    bool(
        "admin_socket_may_apply",
        false,
        "whether a caller at the admin socket may start an apply",
    ),
    derived(
        "vault_key_ids",
        "",
        "the ids of the keys in [Vault](../install/vault.md#which-keys-are-read), if the policy does \
         not allow listing them",
    ),
    derived(
        "secrets_file",
        "that of nico-api",
        "the secrets file, JSON or YAML: see [Sources of keys](#sources-of-keys)",
    ),
    derived(
        "secrets_from_environment",
        "that of nico-api, or `false`",
        "read keys from environment variables, then from the secrets file",
    ),
    derived(
        "secrets_environment_prefix",
        "that of nico-api, or `CARBIDE_STATIC_CREDENTIAL_`",
        "first part of the names of these variables",
    ),
    list(
        "allowed_services",
        &["nico-api", "carbide-api"],
        "SPIFFE services that may call, in addition to administrators",
    ),
    list(
        "admin_issuers_in_root_ca",
        &[],
        "common names of issuers below `root_cafile_path` whose users are administrators",
    ),
    number(
        "database_pool_size",
        5,
        "connections to Postgres for rows; `16` with `durability = \"per_row\"`. See \
         [Connections](../install/postgres.md#connections)",
    ),
    number(
        "pipeline_depth",
        32,
        "rows in flight on one connection; always 1 with `pool_mode = \"transaction\"`",
    ),
    number(
        "page_size",
        1000,
        "largest number of rows that are read at once. It is smaller if the texts are large",
    ),
    number(
        "max_rows_per_second",
        0,
        "limit of rows per second that all applies of this instance together write. It does not cover dry runs, verifies and censuses; `0` means no limit",
    ),
    bool(
        "adaptive_rate",
        true,
        "a site-wide apply slows down when others use the database: see [Adaptive \
         rate](../how-it-works.md#adaptive-rate)",
    ),
    text(
        "lock_timeout",
        "2s",
        "how long a run waits for a locked row. After that, the row fails",
    ),
    text("statement_timeout", "5s", "limit for one statement"),
    text(
        "durability",
        "per_run",
        "`per_run`: the rows of a run are flushed to disk together, before its report. `per_row`: \
         every row is flushed by its own transaction",
    ),
    number(
        "max_attempts",
        5,
        "attempts after deadlocks, serialization failures and lost connections, and for reads that \
         wait for a table lock",
    ),
    derived(
        "connect_timeout",
        "`5s`",
        "limit for a new connection to one address. After that, the next address or host of \
         `database_url` is tried. Without this setting, `connect_timeout` in the URL applies",
    ),
    text(
        "pool_acquire_timeout",
        "10s",
        "how long a call waits for a free connection. After that, it ends with `UNAVAILABLE`",
    ),
    derived(
        "database_sslmode",
        "",
        "replaces `sslmode` of the URL. Without both, TLS is required, except for a local Postgres: \
         see [Database URL](#database-url)",
    ),
    text(
        "pool_mode",
        "session",
        "`transaction`: for PgBouncer in transaction mode",
    ),
    number("max_runs", 8, "runs at the same time"),
    number(
        "max_client_connections",
        256,
        "gRPC connections with a verified certificate",
    ),
    number(
        "max_connections_per_client",
        64,
        "connections of one client, out of `max_client_connections`. A client is one service, one \
         machine, or one certificate",
    ),
    number(
        "max_concurrent_handshakes",
        128,
        "TLS handshakes at the same time. When all slots are taken, the server closes the oldest \
         handshake of the busiest address",
    ),
    text(
        "handshake_timeout",
        "5s",
        "limit for a TLS handshake, including the wait for a connection slot",
    ),
    text(
        "request_read_timeout",
        "10s",
        "limit for the arrival of a complete request",
    ),
    text(
        "idle_timeout",
        "5m",
        "the server closes a connection that has no call for this long",
    ),
    text("keepalive_interval", "30s", "interval of HTTP/2 pings"),
    text(
        "keepalive_timeout",
        "10s",
        "limit for the answer to an HTTP/2 ping. After that, the server closes the connection",
    ),
    list(
        "crl_files",
        &[],
        "certificate revocation lists, PEM (several in a file) or DER",
    ),
    text(
        "crl_policy",
        "require_valid",
        "whether the server refuses a certificate when the list of its issuer is missing or expired: \
         see [Revocation](../access.md#revoke-a-certificate)",
    ),
    text(
        "tls_reload_interval",
        "10s",
        "interval at which the TLS files are checked for changes",
    ),
    derived(
        "audit_log",
        "",
        "file for audit records. Without it, they go to standard error",
    ),
    derived(
        "audit_required",
        "`true` with `audit_log`",
        "a call that cannot be recorded is refused",
    ),
    text(
        "census_interval",
        "10m",
        "interval of the automatic censuses, from one second to one day. `0s`: no automatic census",
    ),
    text(
        "soak",
        "1h",
        "how long a key must be clean before it may be deleted, up to 90 days",
    ),
    derived(
        "receipt_log",
        "",
        "file to which the receipts of applies are appended",
    ),
    derived(
        "instance_name",
        "host name and port",
        "the name of this instance in runs and in `GetStatus`",
    ),
    text(
        "shutdown_grace",
        "15s",
        "after SIGTERM or SIGINT, how long the server waits until calls in progress have ended. \
         Runs stop at once. The last answers get 5 s more",
    ),
    derived(
        "otlp_endpoint",
        "",
        "address of an OTLP collector for [traces](traces.md), like `http://collector:4317`. Without it, \
         `OTEL_EXPORTER_OTLP_ENDPOINT` applies. Without both, no traces are sent",
    ),
    text("log_format", "logfmt", "or `json`"),
    text("log_filter", "info", "a filter in the syntax of `RUST_LOG`"),
];

/// The setting of `[rewrap]` with this name.
pub(super) fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The default of the setting with this full key, like `rewrap.listen`.
pub(super) fn default_value(key: &str) -> Option<ValueKind> {
    let (SECTION, name) = key.split_once('.')? else {
        return None;
    };
    match setting(name)?.default {
        DefaultValue::Text(text) => Some(text.into()),
        DefaultValue::Number(number) => Some(number.into()),
        DefaultValue::Bool(value) => Some(value.into()),
        DefaultValue::List(items) => Some(items.to_vec().into()),
        DefaultValue::Derived(_) => None,
    }
}

/// The names of all settings, for messages.
pub(super) fn names() -> String {
    let mut names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
    names.sort_unstable();
    names.join(", ")
}

impl DefaultValue {
    /// The default in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        match self {
            Self::Text(text) => format!("`{text}`"),
            Self::Number(number) => format!("`{number}`"),
            Self::Bool(value) => format!("`{value}`"),
            Self::List(items) => format!("`{items:?}`"),
            Self::Derived(description) => (*description).to_owned(),
        }
    }
}

/// The settings for a terminal: a paragraph for each of them.
#[must_use]
pub(crate) fn help() -> String {
    let mut help = format!("Settings of [{SECTION}]:\n");
    for setting in SETTINGS {
        let default = match setting.default.markdown() {
            none if none.is_empty() => String::new(),
            default => format!(" [default: {}]", plain(&default)),
        };
        let meaning = plain(setting.meaning);
        // Writing to a String cannot fail.
        let _ = write!(help, "\n  {}{default}\n      {meaning}\n", setting.name);
    }
    help
}

/// A text without the marks of Markdown. A link becomes its target, as a path from the root of
/// the repository.
fn plain(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, after)) = rest.split_once("](") {
        let (before, _title) = before.rsplit_once('[').unwrap_or((before, ""));
        let (target, after) = after.split_once(')').unwrap_or((after, ""));
        text.push_str(before);
        match target.strip_prefix("../") {
            Some(page) => text.push_str(&format!("docs/{page}")),
            None if target.starts_with('#') => {
                text.push_str(&format!("docs/reference/configuration.md{target}"));
            }
            None => text.push_str(&format!("docs/reference/{target}")),
        }
        rest = after;
    }
    text.push_str(rest);
    text.replace('`', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_used_once() {
        for (at, setting) in SETTINGS.iter().enumerate() {
            let first = SETTINGS.iter().position(|other| other.name == setting.name);
            assert_eq!(first, Some(at), "{}", setting.name);
        }
    }

    #[test]
    fn only_a_full_key_of_the_section_has_a_default() {
        assert_eq!(default_value("rewrap.max_runs"), Some(8_u32.into()));
        for key in [
            "max_runs",
            "tls.max_runs",
            "rewrap.max_runs.x",
            "rewrap.secrets_file",
        ] {
            assert_eq!(default_value(key), None, "{key}");
        }
    }

    #[test]
    fn help_has_no_markdown_and_gives_links_as_paths() {
        let help = help();
        assert!(!help.contains('`') && !help.contains("]("), "{help}");
        assert!(help.contains("  lock_timeout [default: 2s]\n"), "{help}");
        assert!(help.contains("see docs/access.md#revoke-a-certificate\n"));
        assert!(help.contains("and docs/reference/status.md. If"), "{help}");
        assert!(help.contains("see docs/reference/configuration.md#sources-of-keys\n"));
    }
}
