//! The environment: what it sets, and what in it is not read though somebody may think so.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::settings::SECTION;

/// The environment, as the program was started with it. It may hold keys and
/// passwords: this copy of it is wiped on drop. A value that is not UTF-8 is `None`.
pub type Environment = BTreeMap<String, Option<Zeroizing<String>>>;

/// Prefix of the variables that set a key of `[rewrap]`.
const VARIABLE_PREFIX: &str = "NICO_REWRAP__";

/// nico-api's own variables for `database_url`: the newer name wins, but must not hide
/// another database under the older one.
const DATABASE_URL: [&str; 2] = ["NICO_API_DATABASE_URL", "CARBIDE_API_DATABASE_URL"];

/// What the environment sets: each key with its variable and value, the later ones winning.
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
                problem(variable, "is empty: unset it, or give it a value");
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

/// Also a list of nothing: what a template makes of variables that are not set must not
/// turn off revocation or the audit log.
fn is_blank(value: &str) -> bool {
    value.chars().all(|c| c == ',' || c.is_whitespace())
}

/// What would set a key of `[rewrap]`, were it not for its underscores or its case.
/// Anything else that begins like this may be another's: Kubernetes makes
/// `NICO_REWRAP_SERVICE_HOST` and more out of a Service's name.
pub(super) fn misspelled_variables(environment: &Environment, known: &[&str]) -> Vec<String> {
    let right_name = |variable: &str| {
        let upper = variable.to_ascii_uppercase();
        let key = upper.strip_prefix("NICO_REWRAP")?.trim_start_matches('_');
        let is_known = known.contains(&key.to_ascii_lowercase().as_str());
        is_known.then(|| format!("{VARIABLE_PREFIX}{key}"))
    };
    environment
        .keys()
        .filter(|variable| !variable.starts_with(VARIABLE_PREFIX))
        .filter_map(|variable| {
            let right = right_name(variable)?;
            Some(format!(
                "environment variable {variable}: is not read: the name is {right}"
            ))
        })
        .collect()
}

/// What nico-api reads from the environment for settings that are used here, and
/// this program does not.
pub(super) fn ignored_nico_api_variables(environment: &Environment) -> Vec<String> {
    let is_foreign = |variable: &str| {
        let variable = variable.to_ascii_uppercase();
        let key = variable
            .strip_prefix("CARBIDE_API_")
            .or_else(|| variable.strip_prefix("NICO_API_"))?;
        let section = key.split(['.', '_']).next()?;
        (key.starts_with("MACHINE_IDENTITY") || matches!(section, "TLS" | "AUTH")).then_some(())
    };
    environment
        .keys()
        .filter(|variable| is_foreign(variable).is_some())
        .map(|variable| {
            format!(
                "environment variable {variable} is not read here, though nico-api may: \
                 put what it sets into a file given with --config"
            )
        })
        .collect()
}
