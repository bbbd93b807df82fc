//! The stores of nico-api in which keys may be: Vault, which this program reads too, and others,
//! which it does not read.
//!
//! Vault is set up by the variables that nico-api reads. AppRole and `[rewrap].vault_key_ids`
//! are additions of this program.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Environment, key_sources::variable, settings::Settings};
use crate::{
    regular_file, tls,
    vault::{Address, Login, Text, VaultOptions},
};

const BACKENDS: &str = "secrets.backends";
const KEY_IDS: &str = "rewrap.vault_key_ids";

const ADDRESS: &str = "VAULT_ADDR";
const NAMESPACE: &str = "VAULT_NAMESPACE";
const MOUNT: &str = "VAULT_KV_MOUNT_LOCATION";
const CA_FILE: &str = "VAULT_CACERT";
const TOKEN: &str = "VAULT_TOKEN";
const ROLE_ID: [&str; 2] = ["VAULT_ROLE_ID", "VAULT_ROLE_ID_FILE"];
const SECRET_ID: [&str; 2] = ["VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE"];
/// nico-api's older setting of its store: `vault` or `memory`.
const STORE: &str = "CARBIDE_CREDENTIAL_STORE";

const DEFAULT_MOUNT: &str = "secrets";

/// nico-api's chart mounts the site's CA here.
const SITE_CA: &str = "/var/run/secrets/forge-roots/ca.crt";
/// Kubernetes mounts the token of the service account here.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The stores that nico-api asks after the environment and the file.
#[derive(Default)]
pub(super) struct Stores {
    pub(super) vault: Option<VaultOptions>,
    /// The names of stores that this program does not read, and why.
    unread: Vec<String>,
}

impl Stores {
    /// The advice for a key that is in none of the sources that this program reads. It is the
    /// end of a message.
    pub(super) fn advice(&self) -> String {
        if self.unread.is_empty() {
            return String::new();
        }
        format!(
            "; the key may be in nico-api's store {}: write the key into a secrets file too",
            self.unread.join(" or ")
        )
    }
}

/// Reads which stores nico-api asks, and how to reach Vault.
pub(super) fn read(
    settings: &mut Settings,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Stores {
    let key_ids = settings.list(KEY_IDS);
    let backends = backends(settings, environment);
    let mut stores = Stores::default();
    let has_address = environment.contains_key(ADDRESS);
    for name in &backends {
        match name.as_str() {
            "vault" if has_address => {
                let key_ids = key_ids.clone();
                stores.vault = vault(settings, environment, key_ids, warnings);
            }
            "vault" => {
                stores.unread.push(format!(
                    "{name:?}, which is not read here without {ADDRESS}"
                ));
            }
            _ => stores
                .unread
                .push(format!("{name:?}, which this program does not read")),
        }
    }
    let source = settings.source(BACKENDS);
    for unread in &stores.unread {
        warnings.push(format!(
            "{source}: [secrets].backends: nico-api may have keys in its store {unread}: secrets \
             under a key that is only there cannot be re-wrapped; write such keys into a secrets \
             file too"
        ));
    }
    let position = |wanted: fn(&str) -> bool| backends.iter().position(|name| wanted(name));
    if let (Some(vault), Some(other)) = (
        position(|name| name == "vault"),
        position(|name| name != "vault"),
    ) && other < vault
        && stores.vault.is_some()
    {
        warnings.push(format!(
            "{source}: [secrets].backends: nico-api asks {other:?} before Vault, and this program \
             reads only Vault: if {other:?} has a key with the same id, nico-api uses other bytes \
             than this program; keep the keys in Vault only",
            other = backends[other]
        ));
    }
    if key_ids.is_some() && !backends.iter().any(|name| name == "vault") {
        warnings.push(format!(
            "{}: [rewrap].vault_key_ids has no effect: nico-api does not read keys from Vault here \
             (set {ADDRESS}, or name \"vault\" in [secrets].backends)",
            settings.source(KEY_IDS)
        ));
    }
    stores
}

/// The names of the stores, in the order in which nico-api asks them.
pub(super) fn backends(settings: &mut Settings, environment: &Environment) -> Vec<String> {
    if settings.is_set(BACKENDS) {
        return settings.non_empty_list(BACKENDS);
    }
    let store = variable(settings, environment, STORE, true);
    let is_vault = match store.as_deref().map(str::trim) {
        None => environment.contains_key(ADDRESS),
        Some("vault") => true,
        Some("memory") => false,
        Some(_) => {
            settings.problems(vec![format!(
                "environment variable {STORE}: must be vault or memory"
            )]);
            false
        }
    };
    if is_vault {
        vec!["vault".to_owned()]
    } else {
        Vec::new()
    }
}

/// Reads how to reach Vault.
fn vault(
    settings: &mut Settings,
    environment: &Environment,
    key_ids: Option<Vec<String>>,
    warnings: &mut Vec<String>,
) -> Option<VaultOptions> {
    let mut get = |name| variable(settings, environment, name, true);
    let address = get(ADDRESS);
    let namespace = get(NAMESPACE).map(|text| trimmed(&text));
    let mount = get(MOUNT).map(|text| trimmed(&text));
    let ca_file = get(CA_FILE).map(PathBuf::from);
    let login = login(settings, environment);
    let Some(address) = address else {
        settings.problems(vec![format!(
            "environment variable {ADDRESS}: is empty: set it to the address of Vault, or unset it"
        )]);
        return None;
    };
    let address = match Address::parse(&address) {
        Ok(address) => address,
        Err(error) => {
            settings.problems(vec![format!("environment variable {ADDRESS}: {error}")]);
            return None;
        }
    };
    let tls = if address.is_http() {
        if !address.is_loopback() {
            warnings.push(format!(
                "environment variable {ADDRESS}: {address} is not encrypted: everybody on the \
                 network can read the keys; use https"
            ));
        }
        None
    } else {
        Some(tls(settings, ca_file)?)
    };
    Some(VaultOptions {
        address,
        namespace: namespace.filter(|text| !text.is_empty()),
        mount: mount
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| DEFAULT_MOUNT.to_owned()),
        login: login?,
        tls,
        key_ids,
    })
}

fn trimmed(path: &str) -> String {
    path.trim().trim_matches('/').to_owned()
}

/// The CA of Vault. There is no way to skip the verification.
fn tls(settings: &mut Settings, ca_file: Option<PathBuf>) -> Option<Arc<rustls::ClientConfig>> {
    let file = if exists(SITE_CA) {
        PathBuf::from(SITE_CA)
    } else if let Some(file) = ca_file {
        file
    } else {
        settings.problems(vec![format!(
            "environment variable {CA_FILE}: is missing: set it to the file with the CA of Vault, or \
             mount that file at {SITE_CA}"
        )]);
        return None;
    };
    match tls::trusting(&file) {
        Ok(tls) => Some(Arc::new(tls)),
        Err(error) => {
            settings.problems(vec![format!("the CA of Vault ({CA_FILE}): {error}")]);
            None
        }
    }
}

/// How to log in: with the service account, else with an AppRole, else with a token.
fn login(settings: &mut Settings, environment: &Environment) -> Option<Login> {
    if exists(SERVICE_ACCOUNT) {
        return Some(Login::Kubernetes(Text::File(SERVICE_ACCOUNT.into())));
    }
    let mut problems = Vec::new();
    let role_id = text(settings, environment, ROLE_ID);
    let secret_id = text(settings, environment, SECRET_ID);
    let login = match (role_id, secret_id) {
        (Some(role_id), Some(secret_id)) => {
            for (names, text) in [(ROLE_ID, &role_id), (SECRET_ID, &secret_id)] {
                if let Err(problem) = text.read() {
                    problems.push(format!("environment variable {}: {problem}", names[1]));
                }
            }
            Some(Login::AppRole { role_id, secret_id })
        }
        (None, None) => {
            let token =
                secret(settings, environment, TOKEN).map(|token| Login::Token(Text::Value(token)));
            if token.is_none() {
                problems.push(format!(
                    "environment variable {ADDRESS}: is set, so keys are read from Vault, but there \
                     is no way to log in: mount a service-account token at {SERVICE_ACCOUNT}, or set \
                     {} and {}, or {TOKEN}; if Vault has no keys, set {STORE}=memory",
                    ROLE_ID[0], SECRET_ID[0]
                ));
            }
            token
        }
        (Some(_), None) => {
            problems.push(incomplete(ROLE_ID, SECRET_ID));
            None
        }
        (None, Some(_)) => {
            problems.push(incomplete(SECRET_ID, ROLE_ID));
            None
        }
    };
    let is_usable = problems.is_empty();
    settings.problems(problems);
    login.filter(|_| is_usable)
}

fn incomplete(present: [&str; 2], missing: [&str; 2]) -> String {
    format!(
        "environment variable {}: is missing: an AppRole needs {} or {} too",
        missing[0], present[0], missing[1]
    )
}

/// The value of the first variable, or the file that the second one names.
fn text(
    settings: &mut Settings,
    environment: &Environment,
    [value, file]: [&str; 2],
) -> Option<Text> {
    let file = variable(settings, environment, file, true).map(|path| Text::File(path.into()));
    secret(settings, environment, value)
        .map(Text::Value)
        .or(file)
}

/// A variable whose value is secret.
fn secret(
    settings: &mut Settings,
    environment: &Environment,
    name: &str,
) -> Option<zeroize::Zeroizing<String>> {
    match environment.get(name)? {
        Some(value) => Some(value.clone()).filter(|value| !value.trim().is_empty()),
        None => {
            settings.problems(vec![format!("environment variable {name}: is not UTF-8")]);
            None
        }
    }
}

fn exists(path: &'static str) -> bool {
    let file = Path::new(path);
    regular_file::bounded(file, regular_file::READ_TIMEOUT, move || file.metadata()).is_ok()
}
