//! The roles that the `g` lines give, directly and through other roles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How far nico-api's Casbin follows roles. The number is built into its enforcer.
const MAX_DEPTH: usize = 10;

/// Subjects and roles, each with the roles that it has directly.
#[derive(Default)]
pub(super) struct Roles {
    /// In the order of the file.
    direct: BTreeMap<String, Vec<String>>,
}

impl Roles {
    /// Gives `role` to `subject`. For Casbin, a line that is repeated stands where it is last.
    pub(super) fn add(&mut self, subject: String, role: String) {
        let roles = self.direct.entry(subject).or_default();
        roles.retain(|other| *other != role);
        roles.push(role);
    }

    /// The subject itself and all roles that it has, as Casbin 2.20 finds them.
    ///
    /// Casbin searches breadth first and takes the last line first. Its depth grows only
    /// when the queue runs empty, which is at most once for each level. Roles beside each
    /// other therefore let it search further than [`MAX_DEPTH`] links, and the order of the
    /// lines can decide how far. nico-api decides in this way, so this search does the same.
    pub(super) fn of<'a>(&'a self, subject: &'a str) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::from([subject]);
        let mut discovered = found.clone();
        let mut queue = VecDeque::from([subject]);
        let mut depth = 0;
        while depth < MAX_DEPTH
            && let Some(name) = queue.pop_front()
        {
            found.insert(name);
            if queue.is_empty() {
                depth += 1;
            }
            let roles = self.direct.get(name).into_iter().flatten().rev();
            queue.extend(
                roles
                    .map(String::as_str)
                    .filter(|role| discovered.insert(role)),
            );
        }
        found
    }

    /// Subjects in the order of their names, each with its roles in the order of the file.
    #[cfg(test)]
    pub(super) fn links(&self) -> Vec<Vec<String>> {
        let links = |(subject, roles): (&String, &Vec<String>)| {
            let links = roles.iter().map(|role| vec![subject.clone(), role.clone()]);
            links.collect::<Vec<_>>()
        };
        self.direct.iter().flat_map(links).collect()
    }
}
