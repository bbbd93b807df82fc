//! `context list`, `context show` and `context use`.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    connection::contexts::Contexts,
    exit::Exit,
    options::OutputOptions,
    output::{Output, document::document, table::table},
    problem::Problem,
    variables::Variables,
};

/// The commands about contexts.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List the contexts. A star marks the current one.
    List(List),
    /// Show the settings of a context.
    Show(Show),
    /// Make a context the current one.
    Use(Use),
}

/// Options of `context list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    output: OutputOptions,
}

/// Options of `context show`.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The context. By default, the current one.
    name: Option<String>,
    #[command(flatten)]
    output: OutputOptions,
}

/// Options of `context use`.
#[derive(Debug, Args)]
pub(crate) struct Use {
    /// The context.
    name: String,
    #[command(flatten)]
    output: OutputOptions,
}

#[derive(Serialize)]
struct ContextList<'a> {
    current: Option<&'a str>,
    contexts: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    settings: std::collections::BTreeMap<&'static str, String>,
}

impl ContextCommand {
    /// Executes the command. It needs no server.
    pub(crate) fn run(&self, variables: &Variables) -> Exit {
        let options = match self {
            Self::List(List { output })
            | Self::Show(Show { output, .. })
            | Self::Use(Use { output, .. }) => output,
        };
        let output = Output::new(
            options,
            variables.is_set("NO_COLOR"),
            variables.is("TERM", "dumb"),
        );
        match self.execute(&output, variables) {
            Ok(()) => Exit::Done,
            Err(problem) => {
                output.problem(&problem);
                problem.exit
            }
        }
    }

    fn execute(&self, output: &Output, variables: &Variables) -> Result<(), Problem> {
        let contexts = Contexts::read(variables)?;
        match self {
            Self::List(_) => list(output, &contexts),
            Self::Show(Show { name, .. }) => {
                let name = name.as_deref().or(contexts.current.as_deref());
                let name = name.ok_or_else(|| {
                    Problem::usage("there is no current context: give a name, or call `nico-rewrap context use NAME`")
                })?;
                show(output, &contexts, name, |settings| {
                    settings
                        .iter()
                        .fold(format!("{name}\n"), |mut text, (name, value)| {
                            let _ = writeln!(text, "  {name:<20}{value}");
                            text
                        })
                })?;
            }
            Self::Use(Use { name, .. }) => {
                contexts.select(name)?;
                show(output, &contexts, name, |_| String::new())?;
                output.note(&format!("the current context is now {name}"));
            }
        }
        Ok(())
    }
}

fn show(
    output: &Output,
    contexts: &Contexts,
    name: &str,
    text: impl FnOnce(&[(&'static str, String)]) -> String,
) -> Result<(), Problem> {
    let settings = contexts.get(name)?.settings();
    let entry = Entry {
        name,
        settings: settings.iter().cloned().collect(),
    };
    output.result(Exit::Done, &document("Context", &entry), || text(&settings));
    Ok(())
}

fn list(output: &Output, contexts: &Contexts) {
    let list = ContextList {
        current: contexts.current.as_deref(),
        contexts: contexts
            .iter()
            .map(|(name, context)| Entry {
                name,
                settings: context.settings().into_iter().collect(),
            })
            .collect(),
    };
    output.result(Exit::Done, &document("Contexts", list), || {
        let rows: Vec<_> = contexts
            .iter()
            .map(|(name, context)| {
                let is_current = contexts.current.as_deref() == Some(name);
                let mark = if is_current { "*" } else { "" };
                let site = context.site.clone().unwrap_or_default();
                vec![mark.to_owned(), name.to_owned(), context.place(), site]
            })
            .collect();
        if rows.is_empty() {
            return format!("There are no contexts in {}.\n", contexts.path.display());
        }
        table(&["", "NAME", "SERVER", "SITE"], &[], rows)
    });
}
