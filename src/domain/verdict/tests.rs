use std::time::UNIX_EPOCH;

use proptest::{collection::vec, prelude::*};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

/// A census at `moment`, which is also its time in minutes.
fn census(moment: i64, secrets: &[(&str, u64)]) -> CensusFacts {
    CensusFacts {
        moment,
        start: at(moment.unsigned_abs() * 60),
        unreadable: 0,
        secrets: secrets
            .iter()
            .map(|(id, n)| ((*id).to_owned(), *n))
            .collect(),
    }
}

fn unreadable(moment: i64, unreadable: u64) -> CensusFacts {
    CensusFacts {
        unreadable,
        ..census(moment, &[])
    }
}

/// A ledger of these censuses, with the target kv2, and the verdict about kv1 at `minute`.
fn verdict_at(minute: u64, censuses: &[CensusFacts]) -> Verdict {
    let mut ledger = Ledger::default();
    for census in censuses {
        ledger.record(census, false, ["kv1", "kv2"], "kv2");
    }
    ledger.verdict("kv1", "kv2", HOUR, at(minute * 60))
}

#[test]
fn an_apply_that_has_rewrapped_a_secret_starts_the_soak_again() {
    let clean = |moment| census(moment, &[("kv2", 3)]);
    let mut ledger = Ledger::default();
    let record = |ledger: &mut Ledger, moment| {
        ledger.record(&clean(moment), false, ["kv1", "kv2"], "kv2");
    };
    let state = |ledger: &Ledger| ledger.verdict("kv1", "kv2", HOUR, at(500 * 60)).state;
    record(&mut ledger, 10);
    ledger.rewrapped("kv2");
    assert_eq!(state(&ledger), VerdictState::CannotSay);
    record(&mut ledger, 71);
    assert_eq!(state(&ledger), VerdictState::Soaking);
    record(&mut ledger, 132);
    assert_eq!(state(&ledger), VerdictState::Removable);
    assert_eq!(ledger.keys["kv1"].stragglers, 0);
}

#[test]
fn each_state_has_its_conditions() {
    use VerdictState::*;
    let used = census(0, &[("kv1", 2), ("kv2", 1)]);
    let clean = |moment| census(moment, &[("kv2", 3)]);
    for (what, censuses, minute, expected) in [
        ("no census", vec![], 0, CannotSay),
        ("a secret", vec![used.clone()], 500, InUse),
        (
            "the first clean census",
            vec![used.clone(), clean(10)],
            500,
            Soaking,
        ),
        (
            "a census at the end of the soak",
            vec![used.clone(), clean(10), clean(70)],
            500,
            Soaking,
        ),
        (
            "a census after the soak",
            vec![used.clone(), clean(10), clean(71)],
            71,
            Removable,
        ),
        (
            "the clock was set back",
            vec![used.clone(), clean(10), clean(71)],
            69,
            Soaking,
        ),
        (
            "a straggler",
            vec![clean(10), clean(71), census(80, &[("kv1", 1)])],
            500,
            InUse,
        ),
        (
            "the soak starts again after a straggler",
            vec![clean(10), census(40, &[("kv1", 1)]), clean(50), clean(71)],
            500,
            Soaking,
        ),
        (
            "an unreadable secret",
            vec![clean(10), clean(71), unreadable(80, 1)],
            500,
            CannotSay,
        ),
        (
            "the soak starts again after an unreadable secret",
            vec![clean(10), unreadable(40, 1), clean(50), clean(71)],
            500,
            Soaking,
        ),
        (
            "a secret is more certain than an unreadable one",
            vec![CensusFacts {
                unreadable: 1,
                ..census(10, &[("kv1", 1)])
            }],
            500,
            InUse,
        ),
    ] {
        let verdict = verdict_at(minute, &censuses);
        assert_eq!(verdict.state, expected, "{what}: {}", verdict.explanation);
        assert!(
            verdict.explanation.ends_with('.'),
            "{}",
            verdict.explanation
        );
    }
}

#[test]
fn the_target_key_is_never_removable() {
    let mut ledger = Ledger::default();
    assert_eq!(
        ledger.verdict("kv2", "kv2", HOUR, at(0)).state,
        VerdictState::Target
    );
    for moment in [0, 70, 140] {
        ledger.record(&census(moment, &[]), false, ["kv1", "kv2"], "kv2");
    }
    assert_eq!(
        ledger.verdict("kv2", "kv2", HOUR, at(9000)).state,
        VerdictState::Target
    );
    assert_eq!(
        ledger.verdict("kv1", "kv2", HOUR, at(9000)).state,
        VerdictState::Removable
    );
}

#[test]
fn a_removable_key_says_since_when_and_warns_of_backups() {
    let verdict = verdict_at(80, &[census(10, &[]), census(71, &[])]);
    assert_eq!(verdict.clean_since, Some(at(600)));
    assert_eq!(verdict.removable_at, Some(at(600) + HOUR));
    assert_eq!(
        verdict.explanation,
        "No secret has been under this key since 2023-11-14T22:23:20Z. Backups of the database \
         from before then still need it."
    );
}

#[test]
fn stragglers_are_counted_once_and_never_for_the_target() {
    let mut ledger = Ledger::default();
    let mut record = |moment, secrets: &[(&str, u64)]| {
        ledger.record(&census(moment, secrets), false, ["kv1", "kv2"], "kv2")
    };
    assert!(record(0, &[("kv1", 5)]).is_empty());
    assert!(record(1, &[]).is_empty());
    assert_eq!(record(2, &[("kv1", 2), ("kv2", 7)]), ["kv1"]);
    assert!(record(3, &[("kv1", 3)]).is_empty());
    let verdict = ledger.verdict("kv1", "kv2", HOUR, at(0));
    assert_eq!(
        (verdict.stragglers, verdict.last_straggler),
        (2, Some(at(120)))
    );
}

#[test]
fn a_late_census_can_end_a_series_but_not_extend_one() {
    let verdict = |last: &[(&str, u64)], late: &CensusFacts| {
        let mut ledger = Ledger::default();
        for census in [census(10, &[]), census(71, last)] {
            ledger.record(&census, false, ["kv1", "kv2"], "kv2");
        }
        ledger.record(late, true, ["kv1", "kv2"], "kv2");
        ledger.verdict("kv1", "kv2", HOUR, at(90 * 60))
    };
    let seen = |moment| census(moment, &[("kv1", 1)]);
    let after = verdict(&[], &seen(40));
    assert_eq!(
        (after.state, after.stragglers),
        (VerdictState::CannotSay, 1)
    );
    // It took its snapshot before the key became clean.
    let before = verdict(&[], &seen(9));
    assert_eq!(
        (before.state, before.stragglers),
        (VerdictState::Removable, 0)
    );
    let in_use = verdict(&[("kv1", 2)], &census(80, &[]));
    assert_eq!(in_use.state, VerdictState::InUse);
}

#[test]
fn an_older_snapshot_means_another_history() {
    let last = LastCensus {
        point: Point {
            moment: 7,
            start: at(0),
        },
        unreadable: 0,
    };
    assert!(Ledger::is_other_history(Some(&last), 6));
    assert!(!Ledger::is_other_history(Some(&last), 7));
    assert!(!Ledger::is_other_history(None, 0));
}

#[test]
fn times_outside_of_rfc_3339_are_no_panic() {
    let mut ledger = Ledger::default();
    for start in [UNIX_EPOCH - HOUR, UNIX_EPOCH + Duration::from_secs(1 << 40)] {
        let facts = CensusFacts {
            start,
            ..census(1, &[])
        };
        ledger.record(&facts, false, ["kv1"], "kv2");
        let _ = ledger.verdict("kv1", "kv2", Duration::MAX, at(0));
        let _ = ledger.verdict("kv1", "kv2", HOUR, at(0));
    }
}

/// An event in the life of a site.
#[derive(Debug, Clone)]
enum Event {
    /// A census takes its snapshot: secrets of kv1 and kv3, and unreadable ones.
    Census {
        kv1: u64,
        kv3: u64,
        unreadable: u64,
        late: bool,
    },
    /// The clock of the database jumps.
    Clock(i64),
    /// The server restarts: the ledger comes from its stored form.
    Restart,
    /// Time passes.
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let few = || prop_oneof![4 => Just(0_u64), 1 => 1..3_u64];
    let event = prop_oneof![
        6 => (few(), few(), prop_oneof![9 => Just(0_u64), 1 => Just(1)], any::<bool>())
            .prop_map(|(kv1, kv3, unreadable, late)| Event::Census { kv1, kv3, unreadable, late }),
        1 => (-7200..7200_i64).prop_map(Event::Clock),
        1 => Just(Event::Restart),
        6 => (1..2400_u64).prop_map(Event::Wait),
    ];
    vec(event, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// No sequence of censuses, restarts, stragglers and clock jumps yields REMOVABLE while a
    /// census since `clean_since` has seen the key.
    #[test]
    fn a_removable_key_was_seen_by_no_census_since_it_is_clean(events in events()) {
        let mut ledger = Ledger::default();
        let mut clock = 100_000_i64;
        let (mut moment, mut nanos) = (0, 0);
        let mut taken: Vec<CensusFacts> = Vec::new();
        // A census whose result arrives after the result of the next census.
        let mut waiting: Option<CensusFacts> = None;
        for event in events {
            match event {
                Event::Census { kv1, kv3, unreadable, late } => {
                    // Two snapshots can have the same transaction id.
                    moment += clock % 2;
                    nanos += 1;
                    let facts = CensusFacts {
                        moment,
                        // No two censuses have the same start.
                        start: at(clock.unsigned_abs()) + Duration::from_nanos(nanos),
                        unreadable,
                        secrets: [("kv1".to_owned(), kv1), ("kv3".to_owned(), kv3)].into(),
                    };
                    if late && waiting.is_none() {
                        waiting = Some(facts);
                        continue;
                    }
                    let late = waiting.take().map(|facts| (facts, true));
                    for (facts, is_late) in [(facts, false)].into_iter().chain(late) {
                        ledger.record(&facts, is_late, ["kv1", "kv2"], "kv2");
                        taken.push(facts);
                    }
                }
                Event::Clock(by) => clock = (clock + by).max(0),
                Event::Restart => {
                    let stored = serde_json::to_string(&ledger).unwrap();
                    ledger = serde_json::from_str(&stored).unwrap();
                }
                Event::Wait(seconds) => clock += i64::try_from(seconds).unwrap(),
            }
            let now = at(clock.unsigned_abs());
            for id in ["kv1", "kv3"] {
                let verdict = ledger.verdict(id, "kv2", HOUR, now);
                if verdict.state != VerdictState::Removable {
                    continue;
                }
                let since = ledger.keys[id].clean.unwrap();
                prop_assert_eq!(verdict.clean_since, Some(since.start));
                prop_assert!(now >= since.start + HOUR);
                prop_assert!(taken.iter().any(|census| census.start > since.start + HOUR));
                let first = taken.iter().position(|census| census.start == since.start).unwrap();
                for census in taken[first..].iter().filter(|census| census.moment >= since.moment) {
                    let seen = census.secrets.get(id).copied().unwrap_or(0);
                    prop_assert_eq!(seen, 0, "{} in {:?}", id, census);
                    prop_assert_eq!(census.unreadable, 0);
                }
            }
        }
    }
}
