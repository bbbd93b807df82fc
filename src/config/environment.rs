//! Environment variables: the settings that they override, and warnings about variables
//! that look like settings but are not read.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::schema::{self, SECTION};

/// The environment at the start of the process. It may hold keys and passwords, so this
/// copy is wiped on drop. A value that is not UTF-8 is `None`.
pub type Environment = BTreeMap<String, Option<Zeroizing<String>>>;

/// Prefix of the variables that override a setting of `[rewrap]`.
const VARIABLE_PREFIX: &str = "NICO_REWRAP__";

/// nico-api's variables for `database_url`, the newer name first. If both are set, they
/// must name the same database.
const DATABASE_URL: [&str; 2] = ["NICO_API_DATABASE_URL", "CARBIDE_API_DATABASE_URL"];

/// The settings that the environment overrides, each as key, variable and value. A later
/// entry overrides an earlier one.
pub(super) fn overrides<'a>(
    environment: &'a Environment,
    problems: &mut Vec<String>,
) -> Vec<(String, &'a str, &'a str)> {
    let mut overrides = Vec::new();
    let mut problem = |variable: &str, what: &str| {
        problems.push(format!("environment variable {variable}: {what}"));
    };
    for (variable, value) in environment {
        let Some(key) = variable.strip_prefix(VARIABLE_PREFIX) else {
            continue;
        };
        match value {
            None => problem(variable, "is not UTF-8"),
            Some(value) if is_blank(value) => {
                problem(variable, "is empty: unset it or set it to a value");
            }
            Some(value) => {
                let key = format!("{SECTION}.{}", key.to_ascii_lowercase());
                overrides.push((key, variable.as_str(), value.as_str()));
            }
        }
    }
    let mut urls = Vec::new();
    for variable in DATABASE_URL {
        match environment.get(variable) {
            Some(None) => problem(variable, "is not UTF-8"),
            Some(Some(value)) if !value.trim().is_empty() => urls.push((variable, value.as_str())),
            Some(Some(_)) | None => {}
        }
    }
    if let [(_, first), (other, second)] = urls[..]
        && first.trim() != second.trim()
    {
        let [newer, _] = DATABASE_URL;
        problem(
            other,
            &format!("names another database than {newer}: unset one of the two"),
        );
    }
    if let Some((variable, value)) = urls.first() {
        overrides.push(("database_url".to_owned(), *variable, *value));
    }
    overrides
}

/// A value of commas alone counts as blank: a template with unset variables produces one,
/// and an empty value would turn off the revocation checks or the audit log.
fn is_blank(value: &str) -> bool {
    value.chars().all(|c| c == ',' || c.is_whitespace())
}

/// Problems for variables that differ from the name of a setting only in underscores or
/// case. Other variables with this prefix are allowed: Kubernetes derives
/// `NICO_REWRAP_SERVICE_HOST` and others from the name of a Service.
pub(super) fn misspelled_variables(environment: &Environment) -> Vec<String> {
    let right_name = |variable: &str| {
        let upper = variable.to_ascii_uppercase();
        let key = upper.strip_prefix("NICO_REWRAP")?.trim_start_matches('_');
        schema::setting(&key.to_ascii_lowercase())?;
        Some(format!("{VARIABLE_PREFIX}{key}"))
    };
    environment
        .keys()
        .filter(|variable| !variable.starts_with(VARIABLE_PREFIX))
        .filter_map(|variable| {
            let right = right_name(variable)?;
            Some(format!(
                "environment variable {variable}: is not read: rename it to {right}"
            ))
        })
        .collect()
}

/// Warnings for variables that nico-api reads and this program ignores, although it uses
/// the settings that they override.
pub(super) fn ignored_nico_api_variables(environment: &Environment) -> Vec<String> {
    let is_foreign = |variable: &str| {
        let variable = variable.to_ascii_uppercase();
        let key = variable
            .strip_prefix("CARBIDE_API_")
            .or_else(|| variable.strip_prefix("NICO_API_"))?;
        let section = key.split(['.', '_']).next()?;
        let is_read = matches!(section, "AUTH" | "CREDENTIALS" | "SECRETS" | "TLS");
        (key.starts_with("MACHINE_IDENTITY") || is_read).then_some(())
    };
    environment
        .keys()
        .filter(|variable| is_foreign(variable).is_some())
        .map(|variable| {
            format!(
                "environment variable {variable} is not read here, but nico-api may read it: put \
                 the setting into a file given with --config"
            )
        })
        .collect()
}
