//! A model of the procedure: when may the old key be removed?
//!
//! The model has one secret, a process with the old configuration, two writes of nico-api that read
//! the secret without a lock and write it back later ("sets"), tenants, runs, censuses and a clock.
//! An exhaustive breadth-first search visits every state that they can reach within [`END`] ticks. It
//! returns the shortest sequence after which a secret is under a key that nobody has.
//!
//! The verdict is the code of the service, [`Ledger`]: the model holds no copy of it. The search is
//! written by hand. It has 40 lines, and a model checker would bring dozens of crates for this one
//! property.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nico_rewrap::domain::verdict::{CensusFacts, Ledger, VerdictState};

/// The soak in ticks.
const SOAK: u8 = 2;
/// The time at which the search ends.
const END: u8 = 8;
/// How many sets can be under way at the same time.
const SETS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Old,
    New,
}

/// When an operator removes the old key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// After one clean dry run.
    CleanDryRun,
    /// After one clean census.
    CleanCensus,
    /// When the soak is over, without a census after it.
    Soak,
    /// After two clean censuses that are further apart than the soak, whatever was between them.
    TwoCleanCensuses,
    /// When the verdict of the service is `REMOVABLE`.
    Verdict,
}

/// What the rule relies on. Each is an assumption about the site that no program can check.
#[derive(Clone, Copy, Debug)]
struct Assumptions {
    /// A set takes less than the soak.
    sets_are_short: bool,
    /// Every process with the old configuration has ended before the first census of the series.
    old_processes_are_gone: bool,
    /// A tenant does not replace an old envelope that comes back during the soak before a census
    /// or an apply has seen it.
    stragglers_stay: bool,
    /// Nobody restores a backup from before the series.
    no_old_backup: bool,
}

const ALL: Assumptions = Assumptions {
    sets_are_short: true,
    old_processes_are_gone: true,
    stragglers_stay: true,
    no_old_backup: true,
};

/// A set under way: what it has read, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    read: Key,
    began: u8,
}

#[derive(Clone, Debug)]
struct State {
    time: u8,
    secret: Key,
    /// Whether a census has seen the secret under the old key since it came there.
    seen: bool,
    sets: [Option<Set>; SETS],
    /// Whether a process with the old configuration runs.
    old_process: bool,
    /// Whether it still ran when the series of censuses began on which the rule relies.
    old_process_in_series: bool,
    dry_run_was_clean: bool,
    /// The first clean census, whatever came after it.
    first_clean: Option<u8>,
    ledger: Ledger,
    censuses: u8,
    removed: bool,
}

fn at(time: u8) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.into())
}

impl State {
    fn start() -> Self {
        Self {
            time: 0,
            secret: Key::Old,
            seen: true,
            sets: [None; SETS],
            old_process: true,
            old_process_in_series: true,
            dry_run_was_clean: false,
            first_clean: None,
            ledger: Ledger::default(),
            censuses: 0,
            removed: false,
        }
    }

    fn is_lost(&self) -> bool {
        self.removed && self.secret == Key::Old
    }

    fn clean_since(&self) -> Option<u8> {
        let clean = self.ledger.keys.get("old")?.clean?;
        let since = clean.start.duration_since(UNIX_EPOCH).unwrap().as_secs();
        Some(u8::try_from(since).unwrap())
    }

    fn last_census_was_clean(&self) -> bool {
        self.ledger.last.is_some() && self.ledger.keys["old"].secrets == 0
    }

    fn write(&self, key: Key) -> Self {
        Self {
            secret: key,
            seen: self.seen && self.secret == key,
            ..self.clone()
        }
    }

    /// The service notes an apply that has re-wrapped a secret.
    fn apply(&self) -> Self {
        let mut next = self.write(Key::New);
        if self.secret == Key::Old {
            next.ledger.rewrapped("new");
        }
        next
    }

    fn census(&self, rule: Rule) -> Self {
        let mut next = self.clone();
        let count = u64::from(self.secret == Key::Old);
        let secrets = BTreeMap::from([("old".to_owned(), count), ("new".to_owned(), 1 - count)]);
        let facts = CensusFacts {
            moment: i64::from(self.censuses),
            start: at(self.time),
            unreadable: 0,
            secrets,
        };
        next.ledger.record(&facts, false, ["old", "new"], "new");
        next.censuses += 1;
        next.seen = true;
        let begins = match rule {
            Rule::TwoCleanCensuses => count == 0 && self.first_clean.is_none(),
            _ => self.clean_since().is_none() && next.clean_since().is_some(),
        };
        if begins {
            next.old_process_in_series = self.old_process;
        }
        if count == 0 {
            next.first_clean = self.first_clean.or(Some(self.time));
        }
        next
    }

    /// Whether the rule allows the removal of the old key now.
    fn may_remove(&self, rule: Rule, assumed: Assumptions) -> bool {
        let soak = Duration::from_secs(SOAK.into());
        let is_allowed = match rule {
            Rule::CleanDryRun => self.dry_run_was_clean,
            Rule::CleanCensus => self.last_census_was_clean(),
            Rule::Soak => self
                .clean_since()
                .is_some_and(|since| self.time >= since + SOAK),
            Rule::TwoCleanCensuses => {
                let first = self.first_clean.map(|first| at(first) + soak);
                let last = self.ledger.last.map(|last| last.point.start);
                self.last_census_was_clean() && first < last && first.is_some()
            }
            Rule::Verdict => {
                let verdict = self.ledger.verdict("old", "new", soak, at(self.time));
                verdict.state == VerdictState::Removable
            }
        };
        let are_gone = !self.old_process_in_series;
        is_allowed && !self.removed && (are_gone || !assumed.old_processes_are_gone)
    }

    /// Whether the secret can be replaced now.
    fn can_be_replaced(&self, assumed: Assumptions) -> bool {
        let came_back = self.secret == Key::Old && !self.seen && self.clean_since().is_some();
        !came_back || !assumed.stragglers_stay
    }

    /// Every state that can follow, with the name of what happens.
    fn next(&self, rule: Rule, assumed: Assumptions) -> Vec<(String, Self)> {
        let mut next = Vec::new();
        let mut add = |name: &str, state: Self| next.push((name.to_owned(), state));
        let last_moment = |set: &Set| set.began + SOAK - 1;
        let is_late = |set: &Set| self.time + 1 > last_moment(set);
        let waits = assumed.sets_are_short && self.sets.iter().flatten().any(is_late);
        if self.time < END && !waits {
            let time = self.time + 1;
            add(
                "a tick",
                Self {
                    time,
                    ..self.clone()
                },
            );
        }
        for (i, set) in self.sets.iter().enumerate() {
            let mut with = self.clone();
            match set {
                None => {
                    with.sets[i] = Some(Set {
                        read: self.secret,
                        began: self.time,
                    });
                    add(&format!("set {i} reads {:?}", self.secret), with);
                }
                Some(set) if set.read == self.secret || self.can_be_replaced(assumed) => {
                    with.sets[i] = None;
                    add(
                        &format!("set {i} writes {:?}", set.read),
                        with.write(set.read),
                    );
                }
                Some(_) => {}
            }
        }
        if self.old_process {
            add("the old process writes Old", self.write(Key::Old));
            let ended = Self {
                old_process: false,
                ..self.clone()
            };
            add("the old process ends", ended);
        }
        add("an apply", self.apply());
        if self.can_be_replaced(assumed) {
            add("a tenant writes New", self.write(Key::New));
        }
        let dry_run_was_clean = self.secret == Key::New;
        let mut dry_run = Self {
            dry_run_was_clean,
            ..self.clone()
        };
        if rule == Rule::CleanDryRun {
            dry_run.old_process_in_series = self.old_process;
        }
        add(
            if dry_run_was_clean {
                "a clean dry run"
            } else {
                "a dry run"
            },
            dry_run,
        );
        let clean = self.secret == Key::New;
        add(
            if clean { "a clean census" } else { "a census" },
            self.census(rule),
        );
        if self.may_remove(rule, assumed) {
            let removed = Self {
                removed: true,
                ..self.clone()
            };
            add("the old key is removed", removed);
        }
        if !assumed.no_old_backup {
            add("a backup is restored", self.write(Key::Old));
        }
        next
    }

    /// What distinguishes this state. Counts that change nothing are left out.
    fn identity(&self, rule: Rule) -> String {
        // The clock matters only in relation to other times, and a set only by its parts.
        let mut sets = self
            .sets
            .map(|set| set.map(|set| (set.began, set.read == Key::Old)));
        sets.sort_unstable();
        let old = self.ledger.keys.get("old");
        let last = self.ledger.last.map(|last| last.point.start);
        let ledger = (old.map(|old| (old.secrets, self.clean_since())), last);
        let dry_run = rule == Rule::CleanDryRun && self.dry_run_was_clean;
        let first = self.first_clean.filter(|_| rule == Rule::TwoCleanCensuses);
        format!(
            "{} {:?} {} {sets:?} {} {} {dry_run} {first:?} {ledger:?} {}",
            self.time,
            self.secret,
            self.seen,
            self.old_process,
            self.old_process_in_series,
            self.removed
        )
    }
}

/// The shortest sequence that loses a secret, or how many states there are.
fn search(rule: Rule, assumed: Assumptions) -> Result<usize, Vec<String>> {
    let start = State::start();
    let mut names = vec![String::new()];
    let mut before = vec![0];
    let mut known = HashSet::from([start.identity(rule)]);
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((number, state)) = queue.pop_front() {
        for (name, next) in state.next(rule, assumed) {
            let new = names.len();
            if known.insert(next.identity(rule)) {
                names.push(name);
                before.push(number);
                if next.is_lost() {
                    let mut trace = Vec::new();
                    let mut at = new;
                    while at != 0 {
                        trace.push(names[at].clone());
                        at = before[at];
                    }
                    trace.reverse();
                    return Err(trace);
                }
                queue.push_back((new, next));
            }
        }
    }
    Ok(known.len())
}

#[expect(clippy::print_stderr, reason = "shown with --nocapture")]
fn loss(rule: Rule, assumed: Assumptions) -> Vec<String> {
    let trace = search(rule, assumed).expect_err("no sequence loses a secret");
    eprintln!("{rule:?}, {assumed:?}:\n  {}", trace.join("\n  "));
    trace
}

#[test]
fn one_clean_dry_run_does_not_protect_a_secret() {
    let trace = loss(Rule::CleanDryRun, ALL);
    let expected = [
        "set 0 reads Old",
        "the old process ends",
        "an apply",
        "a clean dry run",
        "set 0 writes Old",
        "the old key is removed",
    ];
    assert_eq!(trace, expected);
}

#[test]
fn a_part_of_the_rule_does_not_protect_a_secret() {
    for rule in [Rule::CleanCensus, Rule::Soak, Rule::TwoCleanCensuses] {
        let trace = loss(rule, ALL);
        assert!(
            trace.contains(&"the old key is removed".to_owned()),
            "{rule:?}: {trace:?}"
        );
    }
}

#[test]
fn the_verdict_protects_every_secret_within_its_assumptions() {
    let states = search(Rule::Verdict, ALL);
    let states = states.unwrap_or_else(|trace| panic!("{trace:#?}"));
    assert!(states > 10_000, "{states} states are not the whole model");
    assert!(
        reaches_removal(Rule::Verdict, ALL),
        "a rule that never allows it protects everything"
    );
}

#[test]
fn the_verdict_needs_each_of_its_assumptions() {
    let without = [
        Assumptions {
            sets_are_short: false,
            ..ALL
        },
        Assumptions {
            old_processes_are_gone: false,
            ..ALL
        },
        Assumptions {
            stragglers_stay: false,
            ..ALL
        },
        Assumptions {
            no_old_backup: false,
            ..ALL
        },
    ];
    for assumed in without {
        let trace = loss(Rule::Verdict, assumed);
        assert!(
            trace.contains(&"the old key is removed".to_owned()),
            "{trace:?}"
        );
    }
}

/// Whether the old key is removed in any state.
fn reaches_removal(rule: Rule, assumed: Assumptions) -> bool {
    let mut known = HashSet::new();
    let mut queue = VecDeque::from([State::start()]);
    while let Some(state) = queue.pop_front() {
        if state.removed {
            return true;
        }
        for (_, next) in state.next(rule, assumed) {
            if known.insert(next.identity(rule)) {
                queue.push_back(next);
            }
        }
    }
    false
}
