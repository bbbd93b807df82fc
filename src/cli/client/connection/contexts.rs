//! Contexts: named connections in `~/.config/nico-rewrap/config.toml`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    super::{Variables, problem::Problem},
    source::Source,
};

/// The part of the contexts file that the client uses.
#[derive(Debug, Default)]
pub(crate) struct Contexts {
    /// Where the file is.
    pub(crate) path: PathBuf,
    /// The context that is used if nothing else is given.
    pub(crate) current: Option<String>,
    contexts: BTreeMap<String, Context>,
}

/// A named connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Context {
    pub(super) source: Source,
    /// The name of the site.
    pub(crate) site: Option<String>,
}

/// The form of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    current: Option<String>,
    #[serde(default)]
    context: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    endpoint: Option<String>,
    cacert: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
    socket: Option<PathBuf>,
    #[serde(default)]
    credential_command: Vec<String>,
    site: Option<String>,
}

impl Contexts {
    /// Reads the file. Without a file, there are no contexts.
    pub(crate) fn read(variables: &Variables) -> Result<Self, Problem> {
        let Some(path) = path(variables)? else {
            return Ok(Self::default());
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Problem::config(format!("{}: {error}", path.display()))),
        };
        let file: File = toml::from_str(&text)
            .map_err(|error| Problem::config(format!("{}: {error}", path.display())))?;
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut contexts = BTreeMap::new();
        for (name, entry) in file.context {
            if entry.endpoint.is_some() == entry.socket.is_some() {
                return Err(Problem::config(format!(
                    "{}: [context.{name}] must have either endpoint or socket",
                    path.display()
                )));
            }
            contexts.insert(name, entry.context(&directory));
        }
        Ok(Self {
            path,
            current: file.current,
            contexts,
        })
    }

    /// The context with this name.
    pub(crate) fn get(&self, name: &str) -> Result<&Context, Problem> {
        self.contexts.get(name).ok_or_else(|| {
            let names: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let known = if names.is_empty() {
                "there are no contexts".to_owned()
            } else {
                format!("the contexts are {}", names.join(", "))
            };
            Problem::config(format!(
                "{}: there is no context {name:?}: {known}",
                self.path.display()
            ))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Context)> {
        self.contexts
            .iter()
            .map(|(name, context)| (name.as_str(), context))
    }

    /// Writes the name of the current context into the file. Keeps every other byte.
    pub(crate) fn select(&self, name: &str) -> Result<(), Problem> {
        self.get(name)?;
        let problem = |error: &dyn std::fmt::Display| {
            Problem::config(format!(
                "{}: cannot be changed ({error})",
                self.path.display()
            ))
        };
        let text = fs::read_to_string(&self.path).map_err(|error| problem(&error))?;
        let changed = with_current(&text, name);
        let parsed: File = toml::from_str(&changed).map_err(|error| problem(&error))?;
        if parsed.current.as_deref() != Some(name) {
            return Err(problem(&"set `current` in the first lines of the file"));
        }
        // A rename replaces the file atomically.
        let new = self.path.with_extension("toml.new");
        fs::write(&new, changed)
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|error| problem(&error))
    }
}

impl Entry {
    /// The context. A path is relative to the directory of the file.
    fn context(self, directory: &Path) -> Context {
        let below = |path: Option<PathBuf>| path.map(|path| directory.join(path));
        Context {
            source: Source {
                endpoint: self.endpoint,
                cacert: below(self.cacert),
                cert: below(self.cert),
                key: below(self.key),
                server_name: self.server_name,
                socket: below(self.socket),
                credential_command: self.credential_command,
            },
            site: self.site,
        }
    }
}

impl Context {
    /// Each setting and its value.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let source = &self.source;
        let command = Some(source.credential_command.join(" ")).filter(|text| !text.is_empty());
        let all = [
            ("endpoint", source.endpoint.clone()),
            ("socket", path(&source.socket)),
            ("server_name", source.server_name.clone()),
            ("cacert", path(&source.cacert)),
            ("cert", path(&source.cert)),
            ("key", path(&source.key)),
            ("credential_command", command),
            ("site", self.site.clone()),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// The endpoint or the socket.
    pub(crate) fn place(&self) -> String {
        let socket = self
            .source
            .socket
            .as_ref()
            .map(|path| path.display().to_string());
        socket
            .or_else(|| self.source.endpoint.clone())
            .unwrap_or_default()
    }
}

/// `None` if the user has no home directory.
fn path(variables: &Variables) -> Result<Option<PathBuf>, Problem> {
    let config = match variables.text("XDG_CONFIG_HOME")? {
        Some(directory) => Some(PathBuf::from(directory)),
        None => variables
            .text("HOME")?
            .map(|home| Path::new(&home).join(".config")),
    };
    Ok(config.map(|directory| directory.join("nico-rewrap/config.toml")))
}

/// The text with the line `current = "NAME"` before the first table.
fn with_current(text: &str, name: &str) -> String {
    // A JSON string is a TOML string, too.
    let line = format!("current = {}\n", serde_json::Value::from(name));
    let mut result = String::new();
    let mut is_done = false;
    for old in text.split_inclusive('\n') {
        let key = old.split('=').next().unwrap_or_default().trim();
        if !is_done && (key == "current" || old.trim_start().starts_with('[')) {
            result += &line;
            is_done = true;
            if key == "current" {
                continue;
            }
        }
        result += old;
    }
    if is_done { result } else { result + &line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_of_the_current_context_changes() {
        let file = "# sites\ncurrent = \"a\"  # mine\n\n[context.a]\nendpoint = \"x\"\n";
        assert_eq!(
            with_current(file, "b\"c"),
            "# sites\ncurrent = \"b\\\"c\"\n\n[context.a]\nendpoint = \"x\"\n"
        );
        assert_eq!(
            with_current("[context.a]\n", "a"),
            "current = \"a\"\n[context.a]\n"
        );
        assert_eq!(with_current("", "a"), "current = \"a\"\n");
    }
}
