//! The site's Casbin policy, `[auth].casbin_policy_file`, read and evaluated as
//! nico-api does.
//!
//! The model is fixed: a request is a subject and an action, the role definition is
//! `g = _, _`, and the matcher `g(r.sub, p.sub) && globMatch(r.act, p.act)`. So a
//! line `p, subject, glob` lets a subject or a role do something, a line
//! `g, subject, role` gives a subject or a role another role, and what no `p` line
//! allows is denied. `*` in a glob stops at a slash, `**` does not.
//!
//! The evaluation is our own, of this one model: the `casbin` crate brings an
//! interpreter for models at large into a process that holds keys, and with it a
//! licence that `deny.toml` does not allow. It panics on a bad glob, and skips lines
//! that it does not know; here both are faults. Nothing is allowed here that it
//! would deny.

mod line;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use globset::{GlobBuilder, GlobSet};
use thiserror::Error;

use self::line::Fields;

/// How many roles away from a subject a rule may be; what Casbin reaches at least.
const MAX_ROLE_DEPTH: usize = 9;

/// In bytes; no subject, role or method comes near it, and a glob may nest.
const MAX_FIELD: usize = 1024;

/// A policy that was read without a fault.
pub struct CasbinPolicy {
    rules: Vec<Rule>,
    /// Roles by the subject or role that has them.
    roles: HashMap<String, Vec<String>>,
}

struct Rule {
    subject: String,
    action: GlobSet,
}

/// A line that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line} {what}")]
pub struct PolicyFault {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it, and what to do.
    pub what: LineFault,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LineFault {
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
    #[error("has quotes that do not enclose a whole field: close them, or remove them")]
    Quotes,
    /// A field that is longer than any can be.
    #[error("has a field of more than {MAX_FIELD} bytes: shorten it")]
    TooLong,
    /// A glob that can't be compiled.
    #[error("has an action that is not a glob ({0}): correct it")]
    Glob(globset::ErrorKind),
}

impl CasbinPolicy {
    /// Reads the text of a policy file.
    ///
    /// # Errors
    ///
    /// Every line that is neither a rule, nor a comment, nor blank.
    pub fn parse(text: &str) -> Result<Self, Vec<PolicyFault>> {
        let mut policy = Self {
            rules: Vec::new(),
            roles: HashMap::new(),
        };
        let mut faults = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            if let Err(what) = policy.add(line) {
                faults.push(PolicyFault { line: number, what });
            }
        }
        if faults.is_empty() {
            Ok(policy)
        } else {
            Err(faults)
        }
    }

    fn add(&mut self, line: &str) -> Result<(), LineFault> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let fields = Fields::of(line).collect::<Result<Vec<_>, _>>()?;
        if !matches!(fields.first(), Some(&("p" | "g"))) {
            return Err(LineFault::NoRule);
        }
        let &[kind, subject, object] = fields.as_slice() else {
            return Err(LineFault::Fields(fields.len()));
        };
        if subject.is_empty() || object.is_empty() {
            return Err(LineFault::EmptyField);
        }
        if subject.len().max(object.len()) > MAX_FIELD {
            return Err(LineFault::TooLong);
        }
        let subject = subject.to_owned();
        if kind == "p" {
            let action = glob(object).map_err(|error| LineFault::Glob(error.kind().clone()))?;
            self.rules.push(Rule { subject, action });
        } else {
            let roles = self.roles.entry(subject).or_default();
            roles.push(object.to_owned());
        }
        Ok(())
    }

    /// Whether `subject`, or a role that it has, may do `action`.
    #[must_use]
    pub fn allows(&self, subject: &str, action: &str) -> bool {
        let names = self.names_of(subject);
        self.rules
            .iter()
            .any(|rule| names.contains(rule.subject.as_str()) && rule.action.is_match(action))
    }

    /// Whether there is no rule at all that could allow anything.
    #[must_use]
    pub fn allows_nothing(&self) -> bool {
        self.rules.is_empty()
    }

    /// The subject and its roles, breadth first; roles may be given in a circle.
    fn names_of<'a>(&'a self, subject: &'a str) -> HashSet<&'a str> {
        let mut names = HashSet::from([subject]);
        let mut last = vec![subject];
        for _ in 0..MAX_ROLE_DEPTH {
            let roles = last.iter().filter_map(|name| self.roles.get(*name));
            let mut next: Vec<&str> = roles.flatten().map(String::as_str).collect();
            next.retain(|role| names.insert(role));
            last = next;
        }
        names
    }
}

/// A set of one: unlike a single matcher, it does not panic where the glob parses and
/// its regular expression turns out too complex.
fn glob(text: &str) -> Result<GlobSet, globset::Error> {
    let glob = GlobBuilder::new(text).literal_separator(true).build()?;
    GlobSet::builder().add(glob).build()
}

/// The compiled globs would fill pages of the log.
impl fmt::Debug for CasbinPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CasbinPolicy")
            .field("rules", &self.rules.len())
            .field("subjects_with_roles", &self.roles.len())
            .finish()
    }
}

#[cfg(test)]
mod rival;
#[cfg(test)]
mod tests;
