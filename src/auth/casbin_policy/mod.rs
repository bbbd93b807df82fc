//! The site's Casbin policy, `[auth].casbin_policy_file`: enforced by the `casbin`
//! crate with nico-api's model.
//!
//! A line `p, subject, glob` lets a subject or a role do something, a line
//! `g, subject, role` gives a subject or a role another role, and what no `p` line
//! allows is denied. `*` in a glob stops at a slash, `**` does not.
//!
//! The file is read here and not by Casbin, which skips lines that it does not know,
//! takes white space after a quoted field for a field of its own, and panics on a bad
//! glob when it first comes to it. Here each of these is a fault that names its line.

mod line;

use std::fmt;

use casbin::{CoreApi, DefaultModel, Enforcer, Model};
use futures_util::FutureExt;
use globset::{GlobBuilder, GlobSet};
use thiserror::Error;

use self::line::Fields;

/// nico-api's model (the contract, section 7).
const MODEL: &str = "
[request_definition]
r = sub, act
[policy_definition]
p = sub, act
[role_definition]
g = _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = g(r.sub, p.sub) && globMatch(r.act, p.act)
";

/// In bytes. No subject, role or method comes near it, and no glob of this length is
/// too large for its regular expression, which Casbin compiles without asking.
const MAX_FIELD: usize = 1024;

/// A policy that was read without a fault.
pub struct CasbinPolicy {
    enforcer: Enforcer,
    /// How many `p` lines there are.
    rules: usize,
}

/// What keeps a policy from being used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// A line that is no rule.
    #[error("line {line} {what}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it, and what to do.
        what: LineError,
    },
    /// Casbin does not take what was read here without a fault: a bug.
    #[error("was refused by Casbin ({0}): please report this")]
    Casbin(String),
}

/// What can be wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LineError {
    /// It begins with something else than `p` or `g`.
    #[error("is no rule: write \"p, SUBJECT, ACTION\", \"g, SUBJECT, ROLE\" or a # comment")]
    NoRule,
    /// It has more or fewer fields than the model says.
    #[error(
        "has {0} fields, and a rule has three: \"p, SUBJECT, ACTION\" or \"g, SUBJECT, ROLE\"; a \
         comma within a field needs quotes around the field"
    )]
    Fields(usize),
    /// A field has nothing in it.
    #[error("has an empty field: fill it in, or remove the line")]
    EmptyField,
    /// Quotes that do not enclose a whole field.
    #[error(
        "has quotes that do not enclose a whole field: close them right before the comma, or remove \
         them"
    )]
    Quotes,
    /// A field that is longer than any can be.
    #[error("has a field of more than {MAX_FIELD} bytes: shorten it")]
    TooLong,
    /// A glob that can't be compiled.
    #[error("has an action that is not a glob ({}): correct it", printable(.0))]
    Glob(globset::ErrorKind),
}

impl CasbinPolicy {
    /// Reads the text of a policy file.
    ///
    /// # Errors
    ///
    /// Every line that is neither a rule, nor a comment, nor blank.
    pub fn parse(text: &str) -> Result<Self, Vec<PolicyError>> {
        let mut rules = Vec::new();
        let mut faults = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            match rule(content) {
                Ok(rule) => rules.extend(rule),
                Err(what) => faults.push(PolicyError::Line { line, what }),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Self::load(rules).map_err(|error| vec![PolicyError::Casbin(error.to_string())])
    }

    fn load(rules: Vec<Rule>) -> casbin::Result<Self> {
        let loading = async {
            let mut model = DefaultModel::from_str(MODEL).await?;
            let mut count = 0;
            for Rule { kind, fields } in rules {
                count += usize::from(kind == "p");
                // False where the line was there before.
                model.add_policy(kind, kind, fields);
            }
            let mut enforcer = Enforcer::new_raw(model, ()).await?;
            enforcer.build_role_links()?;
            // Whether the matcher works: of a subject that no rule can name.
            enforcer.enforce(("", "any"))?;
            Ok(Self {
                enforcer,
                rules: count,
            })
        };
        // Casbin is asynchronous for files. This is all in memory, and never waits.
        let loaded = loading.now_or_never();
        loaded.unwrap_or_else(|| Err(std::io::Error::other("it waits").into()))
    }

    /// Whether `subject`, or a role that it has, may do `action`. What Casbin can't
    /// decide is denied.
    #[must_use]
    pub fn allows(&self, subject: &str, action: &str) -> bool {
        let decide = || self.enforcer.enforce((subject, action));
        // Without rules Casbin tries one with empty fields.
        !self.allows_nothing() && decide().unwrap_or(false)
    }

    /// Whether there is no rule at all that could allow anything.
    #[must_use]
    pub fn allows_nothing(&self) -> bool {
        self.rules == 0
    }
}

/// A `p` or `g` line, as Casbin takes it.
struct Rule {
    kind: &'static str,
    fields: Vec<String>,
}

/// The rule of a line; none in a comment and a blank one.
fn rule(line: &str) -> Result<Option<Rule>, LineError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let fields = Fields::of(line).collect::<Result<Vec<_>, _>>()?;
    let kind = match fields.first() {
        Some(&"p") => "p",
        Some(&"g") => "g",
        _ => return Err(LineError::NoRule),
    };
    let &[_, subject, object] = fields.as_slice() else {
        return Err(LineError::Fields(fields.len()));
    };
    if subject.is_empty() || object.is_empty() {
        return Err(LineError::EmptyField);
    }
    if subject.len().max(object.len()) > MAX_FIELD {
        return Err(LineError::TooLong);
    }
    if kind == "p" {
        check_glob(object).map_err(|error| LineError::Glob(error.kind().clone()))?;
    }
    let fields = vec![subject.to_owned(), object.to_owned()];
    Ok(Some(Rule { kind, fields }))
}

/// Built as Casbin builds it for every decision, but for a set of one, which gives an
/// error where a single matcher panics.
fn check_glob(text: &str) -> Result<(), globset::Error> {
    let glob = GlobBuilder::new(text).literal_separator(true).build()?;
    GlobSet::builder().add(glob).build().map(drop)
}

/// The message may quote a character of the glob, which need not be one for a log line.
fn printable(error: &globset::ErrorKind) -> String {
    let odd = |c: char| !c.is_alphanumeric() && !c.is_ascii_punctuation() && c != ' ';
    error.to_string().replace(odd, "?")
}

/// Casbin's own would fill pages of the log.
impl fmt::Debug for CasbinPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CasbinPolicy")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
