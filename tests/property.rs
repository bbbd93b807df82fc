//! Compares runs of random sites with a model of the contract. The model knows how each text was
//! made and never parses one.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use tokio_postgres::Client;

use crate::certs;
use crate::grpcurl::{Call, Report};
use crate::outcome::{Counters, assert_current, counters, seeded, without_id};
use crate::seal::{encode, is_canonical, key, keys, open, seal, seal_object, seal_with};
use crate::seed::{self, COLUMNS, Org, Row, snapshot};
use crate::server::Server;
use crate::site::Site;

const CASES: u32 = 24;
/// The keys of every server. There is one server for each target.
const KEYS: [&str; 3] = ["kv0", "kv1", "kv2"];

#[derive(Clone, Debug)]
enum Secret {
    Absent,
    Empty,
    /// A secret under one of [`KEYS`]. If `loose`, its text is not in the canonical form.
    Sealed {
        under: usize,
        plaintext: Vec<u8>,
        loose: bool,
    },
    /// A secret whose `key_id` is not that of its key.
    Mislabelled {
        says: usize,
    },
    UnknownKey,
    /// A good text, truncated.
    Cut(Index),
    /// A good text with one character changed.
    Changed(Index),
    Garbage(String),
}

impl Secret {
    fn text(&self) -> Option<String> {
        let good = || seal("plaintext", KEYS[1]);
        Some(match self {
            Self::Absent => return None,
            Self::Empty => String::new(),
            Self::Sealed {
                under,
                plaintext,
                loose: false,
            } => seal(plaintext, KEYS[*under]),
            Self::Sealed {
                under,
                plaintext,
                loose: true,
            } => {
                let object = seal_object(plaintext, KEYS[*under], &key(KEYS[*under]));
                format!("\n {}\t", encode(&format!("{object:#}\n")))
            }
            Self::Mislabelled { says } => seal_with("x", KEYS[*says], &key(KEYS[(says + 1) % 3])),
            Self::UnknownKey => seal("x", "kv9"),
            Self::Cut(at) => {
                let text = good();
                text[..1 + at.index(text.len() - 1)].to_owned()
            }
            Self::Changed(at) => {
                let mut text = good();
                let at = at.index(text.trim_end_matches('=').len());
                let other = if &text[at..=at] == "A" { "B" } else { "A" };
                text.replace_range(at..=at, other);
                text
            }
            Self::Garbage(text) => text.clone(),
        })
    }
}

#[derive(Clone, Debug)]
struct Organization {
    secrets: [Secret; 3],
    version: &'static str,
}

/// The result of an organization according to the contract.
#[derive(Debug, PartialEq)]
enum Verdict {
    Update {
        reencrypted: u32,
        on_target: u32,
    },
    Skip {
        on_target: u32,
    },
    /// The failing columns. An empty name is the row as a whole.
    Fail(Vec<&'static str>),
}

impl Organization {
    fn verdict(&self, target: usize) -> Verdict {
        let mut failing = Vec::new();
        let (mut reencrypted, mut on_target) = (0, 0);
        for (secret, column) in self.secrets.iter().zip(COLUMNS) {
            match secret {
                Secret::Absent | Secret::Empty => {}
                Secret::Sealed { under, .. } if *under == target => on_target += 1,
                Secret::Sealed { .. } => reencrypted += 1,
                _ => failing.push(column),
            }
        }
        match (failing.is_empty(), reencrypted) {
            (false, _) => Verdict::Fail(failing),
            (true, 0) => Verdict::Skip { on_target },
            (true, _) if !self.version.starts_with('V') => Verdict::Fail(vec![""]),
            (true, _) => Verdict::Update {
                reencrypted,
                on_target,
            },
        }
    }
}

type Orgs = BTreeMap<String, Organization>;

fn secret() -> impl Strategy<Value = Secret> {
    let sealed = (0..3_usize, vec(any::<u8>(), 0..300), any::<bool>());
    let sealed = sealed.prop_map(|(under, plaintext, loose)| Secret::Sealed {
        under,
        plaintext,
        loose,
    });
    prop_oneof![
        4 => Just(Secret::Absent),
        2 => Just(Secret::Empty),
        20 => sealed,
        1 => (0..3_usize).prop_map(|says| Secret::Mislabelled { says }),
        1 => Just(Secret::UnknownKey),
        1 => any::<Index>().prop_map(Secret::Cut),
        1 => any::<Index>().prop_map(Secret::Changed),
        1 => "[^\0]{1,40}".prop_map(Secret::Garbage),
    ]
}

fn organizations() -> impl Strategy<Value = Orgs> {
    let version = prop_oneof![9 => Just(seed::VERSION), 1 => Just("7")];
    let organization = ([secret(), secret(), secret()], version)
        .prop_map(|(secrets, version)| Organization { secrets, version });
    btree_map("[A-Za-z0-9_-]{1,8}", organization, 0..24)
}

#[test]
fn random_sites_are_rewrapped_as_the_contract_says() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (client, servers) = runtime.block_on(start());
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    // A fixed seed: a failed test must fail again.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(&(organizations(), 0..3_usize), |(orgs, target)| {
            runtime.block_on(check(&client, &servers[target], &orgs, target));
            Ok(())
        })
        .unwrap();
}

/// One server for each target, all with the same database. They differ in page size and other
/// limits.
async fn start() -> (Client, Vec<Server>) {
    let (database, client) = seeded(&[]).await;
    let mut servers = Vec::new();
    for (target, page_size, connections) in
        [("kv0", "1", "2"), ("kv1", "5", "1"), ("kv2", "500", "8")]
    {
        let site = Site::new(&database)
            .keys(&keys(&KEYS))
            .target(target)
            .set("rewrap.page_size", page_size)
            .set("rewrap.database_pool_size", connections);
        servers.push(site.start().await);
    }
    (client, servers)
}

async fn check(client: &Client, server: &Server, orgs: &Orgs, target: usize) {
    client
        .batch_execute("TRUNCATE tenants CASCADE")
        .await
        .unwrap();
    let seeds: Vec<_> = orgs
        .iter()
        .map(|(id, org)| {
            Org::new(id)
                .version(org.version)
                .texts(org.secrets.each_ref().map(Secret::text))
        })
        .collect();
    seed::insert(client, &seeds).await;
    let before = snapshot(client).await;
    let expected = expected(orgs, target);

    let said = run(server, true).await;
    assert_eq!((counters(&said), failures(&said)), expected);
    assert_eq!(snapshot(client).await, before, "a dry run writes nothing");
    assert_eq!(
        run(server, false).await,
        said,
        "a dry run says what a run does"
    );

    let after = snapshot(client).await;
    assert!(after.keys().eq(before.keys()));
    for (id, org) in orgs {
        match org.verdict(target) {
            Verdict::Update { .. } => assert_updated(org, &before[id], &after[id], target),
            _ => assert_eq!(after[id], before[id]),
        }
    }

    let again = run(server, false).await;
    let (first, failures_before) = expected;
    let second = Counters {
        updated: 0,
        skipped: first.skipped + first.updated,
        reencrypted: 0,
        on_target: first.on_target + first.reencrypted,
        failed: first.failed,
    };
    assert_eq!(
        (counters(&again), failures(&again)),
        (second, failures_before)
    );
    assert_eq!(snapshot(client).await, after, "a second run writes nothing");
}

type Failures = Vec<(String, String)>;

fn expected(orgs: &Orgs, target: usize) -> (Counters, Failures) {
    let (mut sum, mut failures) = (Counters::default(), Vec::new());
    for (id, org) in orgs {
        match org.verdict(target) {
            Verdict::Update {
                reencrypted,
                on_target,
            } => {
                sum.updated += 1;
                sum.reencrypted += reencrypted;
                sum.on_target += on_target;
            }
            Verdict::Skip { on_target } => {
                sum.skipped += 1;
                sum.on_target += on_target;
            }
            Verdict::Fail(columns) => {
                sum.failed += 1;
                failures.extend(
                    columns
                        .iter()
                        .map(|column| (id.clone(), (*column).to_owned())),
                );
            }
        }
    }
    (sum, failures)
}

fn failures(report: &Report) -> Failures {
    report
        .failures
        .iter()
        .map(|failure| (failure.organization_id.clone(), failure.field.clone()))
        .collect()
}

/// Checks an updated row. Compares the plaintexts with those from which the organization was made.
fn assert_updated(org: &Organization, before: &Row, after: &Row, target: usize) {
    for (secret, (old, new)) in org
        .secrets
        .iter()
        .zip(before.texts.iter().zip(&after.texts))
    {
        match secret {
            Secret::Sealed {
                under, plaintext, ..
            } if *under != target => {
                let new = new.as_ref().unwrap();
                let opened = open(new, &keys(&KEYS)).unwrap();
                assert_eq!(opened, (KEYS[target].to_owned(), plaintext.clone()));
                assert!(is_canonical(new));
            }
            _ => assert_eq!(new, old),
        }
    }
    assert_eq!(after.version_parts().0, before.version_parts().0 + 1);
    assert_current(after.version_parts().1);
    assert_current(after.updated_at);
    assert_eq!(after.others, before.others);
}

async fn run(server: &Server, dry_run: bool) -> Report {
    let call = Call::new(server, certs::admin()).without_reflection();
    without_id(call.reencrypt(&json!({"dryRun": dry_run})).await.unwrap())
}
