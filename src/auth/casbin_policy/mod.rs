//! The site's Casbin policy, `[auth].casbin_policy_file`, evaluated as nico-api's Casbin
//! evaluates it.
//!
//! A line `p, subject, glob` allows a subject or a role the actions that the glob matches.
//! A line `g, subject, role` gives a role to a subject or to another role. Everything else
//! is denied. `*` in a glob stops at a slash, `**` does not. This is nico-api's model (the
//! contract, section 7):
//!
//! ```text
//! e = some(where (p.eft == allow))
//! m = g(r.sub, p.sub) && globMatch(r.act, p.act)
//! ```
//!
//! The `casbin` crate is not part of the program: it brings a script engine, and it reads files
//! less strictly. Casbin skips lines that it does not know, reads white space after a quoted
//! field as another field, and panics on a bad glob at the first call. Here each of these is an
//! error with the line number. The tests compare every decision with the decision of the crate.

mod line;
mod roles;

use std::fmt;

use globset::{Glob, GlobBuilder, GlobSet};
use thiserror::Error;

use self::{line::Fields, roles::Roles};

/// In bytes. Names of subjects, roles and methods are much shorter. The regular expression
/// of a glob of this length is always small enough to be compiled.
const MAX_FIELD: usize = 1024;

/// A policy that was read without an error.
pub struct CasbinPolicy {
    /// The `p` lines.
    rules: Vec<Rule>,
    roles: Roles,
}

/// An invalid line. The server refuses a policy with such a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line} {what}")]
pub struct PolicyError {
    /// Its number, from 1.
    pub line: usize,
    /// The problem, and what to do.
    pub what: LineError,
}

/// The problem of a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LineError {
    /// It begins with neither `p` nor `g`.
    #[error("is not a rule: write \"p, SUBJECT, ACTION\", \"g, SUBJECT, ROLE\" or a # comment")]
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
    /// A field that is longer than the limit.
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
        let mut policy = Self {
            rules: Vec::new(),
            roles: Roles::default(),
        };
        let mut problems = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            match Line::read(content) {
                Ok(Line::Nothing) => {}
                Ok(Line::Role { subject, role }) => policy.roles.add(subject, role),
                Ok(Line::Rule(rule)) => policy.rules.push(rule),
                Err(what) => problems.push(PolicyError { line, what }),
            }
        }
        if problems.is_empty() {
            Ok(policy)
        } else {
            Err(problems)
        }
    }

    /// Whether `subject`, or a role that it has, may do `action`.
    #[must_use]
    pub fn allows(&self, subject: &str, action: &str) -> bool {
        let names = self.roles.of(subject);
        let mut rules = self.rules.iter();
        rules.any(|rule| names.contains(rule.subject.as_str()) && rule.allows(action))
    }

    /// Whether the policy has no rule that could allow a call.
    #[must_use]
    pub fn allows_nothing(&self) -> bool {
        self.rules.is_empty()
    }
}

/// A `p` line.
struct Rule {
    subject: String,
    /// Not compiled: a compiled glob needs 20 kB. Each decision compiles it, as in Casbin.
    action: Glob,
}

impl Rule {
    fn allows(&self, action: &str) -> bool {
        self.action.compile_matcher().is_match(action)
    }
}

/// One line of the file.
enum Line {
    /// A comment, or a blank line.
    Nothing,
    /// `p, subject, action`
    Rule(Rule),
    /// `g, subject, role`
    Role { subject: String, role: String },
}

impl Line {
    fn read(line: &str) -> Result<Self, LineError> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(Self::Nothing);
        }
        let fields = Fields::of(line).collect::<Result<Vec<_>, _>>()?;
        let is_rule = match fields.first() {
            Some(&"p") => true,
            Some(&"g") => false,
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
        let subject = subject.to_owned();
        if is_rule {
            let action = glob(object).map_err(|error| LineError::Glob(error.kind().clone()))?;
            Ok(Self::Rule(Rule { subject, action }))
        } else {
            let role = object.to_owned();
            Ok(Self::Role { subject, role })
        }
    }
}

/// A glob as Casbin's `globMatch` builds it, which is known to compile.
fn glob(text: &str) -> Result<Glob, globset::Error> {
    let glob = GlobBuilder::new(text).literal_separator(true).build()?;
    // A single matcher panics if its regular expression does not compile. A set, even of one
    // glob, gives an error.
    GlobSet::builder().add(glob.clone()).build()?;
    Ok(glob)
}

/// The message may quote a character of the glob that does not belong in a log line.
fn printable(error: &globset::ErrorKind) -> String {
    let odd = |c: char| !c.is_alphanumeric() && !c.is_ascii_punctuation() && c != ' ';
    error.to_string().replace(odd, "?")
}

/// The rules are left out: they would fill pages of the log.
impl fmt::Debug for CasbinPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CasbinPolicy")
            .field("rules", &self.rules.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
