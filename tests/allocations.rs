//! Limits the number of heap allocations, which keeps the codec fast. Counts are reproducible, but
//! times are not.
//!
//! A reallocation counts, too. The counter belongs to this thread, so other tests do not affect it.

use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use nico_rewrap::auth::authorize::{Access, Policy, authorize};
use nico_rewrap::auth::identity::{Caller, Identity};
use nico_rewrap::domain::keyring::{Kek, KeyId, Keyring};
use nico_rewrap::domain::rewrap::{Decision, Scratch, decide};
use nico_rewrap::run::record::Kind;
use nico_rewrap::run::{RateOptions, RunIo, RunSpec, Runner, Scope, Site};
use nico_rewrap::store::database::Database as Target;
use nico_rewrap::store::{Durability, PoolMode, Store, StoreOptions};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::database::Database;
use crate::seal::{key, seal};
use crate::seed::{self, Org, signing_key_pem};

/// To open a signing key, seal it under the target key, open the result and compare: one
/// allocation, for the new text.
const MAX_TO_REWRAP_A_FIELD: u64 = 1;
/// To open a signing key that is on target.
const TO_VERIFY_A_FIELD: u64 = 0;
/// To read a row with one secret in a dry run, and to verify or re-wrap the secret. Most of these
/// allocations are the driver's, and their number may change with its version. A copy of each
/// column or a new buffer for each row would exceed the limit.
const MAX_TO_READ_A_ROW: u64 = 16;

fn keyring() -> Keyring {
    let kek = |id: &str| Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new(key(id)));
    Keyring::new([kek("kv1"), kek("kv2")], KeyId::new("kv2").unwrap()).unwrap()
}

#[test]
fn a_field_is_rewrapped_with_one_allocation_and_verified_with_none() {
    let keyring = keyring();
    let cost = |key_id| {
        let texts = || [Some(seal(signing_key_pem(), key_id)), None, None];
        let mut decision = None;
        let mut scratch = Scratch::default();
        // The first fields grow the buffers: the length of a text depends on its bytes.
        for _ in 0..100 {
            let _ = decide(&keyring, &texts(), &mut scratch);
        }
        let texts = texts();
        let cost = measure(|| decision = Some(decide(&keyring, &texts, &mut scratch)));
        (decision.unwrap(), cost.count_total)
    };
    let (decision, rewrap) = cost("kv1");
    assert!(matches!(decision, Decision::Replace { .. }), "{decision:?}");
    let (decision, verify) = cost("kv2");
    assert_eq!(decision, Decision::OnTarget { fields: 1 });
    assert!(
        rewrap <= MAX_TO_REWRAP_A_FIELD && verify == TO_VERIFY_A_FIELD,
        "{rewrap} to re-wrap a field, {verify} to verify it"
    );
}

/// Compares two dry runs of different length, so that the fixed cost of a run does not count.
#[test]
fn the_allocations_of_each_row_are_limited() {
    const FEW: usize = 200;
    const MANY: usize = 1200;
    // Everything runs on this thread, because only its allocations are counted.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let cost = |rows: usize, key_id: &str| {
        let runner = runtime.block_on(site_of(rows, key_id));
        let mut counted = 0;
        // The first run prepares statements and connects.
        for _ in 0..2 {
            let dry_run = async {
                let stop = CancellationToken::new();
                let done = runner
                    .run(&permit(), &dry_run(), RunIo::default(), &stop)
                    .await;
                done.result.unwrap();
                assert_eq!(done.report.counts.rows_failed, 0);
                assert_eq!(done.report.rows_examined() as usize, rows);
            };
            counted = measure(|| runtime.block_on(dry_run)).count_total;
        }
        counted
    };
    let per_row = |key_id| {
        let difference = cost(MANY, key_id) - cost(FEW, key_id);
        difference.div_ceil((MANY - FEW) as u64)
    };
    let (rewrap, verify) = (per_row("kv1"), per_row("kv2"));
    assert!(
        rewrap <= MAX_TO_READ_A_ROW && verify <= MAX_TO_READ_A_ROW,
        "{rewrap} to re-wrap a row, {verify} to verify it"
    );
}

pub(crate) async fn site_of(rows: usize, key_id: &str) -> Runner {
    let database = Database::migrated().await;
    let text = seal(signing_key_pem(), key_id);
    let orgs: Vec<_> = (0..rows)
        .map(|n| Org::new(&format!("org-{n:05}")).text(0, text.clone()))
        .collect();
    seed::insert(&database.client().await, &orgs).await;
    let options = StoreOptions {
        database_pool_size: 2,
        page_size: 100,
        lock_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(30),
        pool_acquire_timeout: Duration::from_secs(30),
        max_attempts: 5,
        pipeline_depth: 32,
        durability: Durability::PerRun,
        pool_mode: PoolMode::Session,
    };
    let speed = RateOptions {
        max_rows_per_second: 0,
        adaptive_rate: true,
    };
    let target = Target::parse(&database.url(), None, Duration::from_secs(30)).unwrap();
    let store = Arc::new(Store::new(&target, options).unwrap());
    let keyring = keyring();
    Runner::new(Arc::new(Site { keyring, store }), speed)
}

/// A permit for everything except an apply.
pub(crate) fn permit() -> nico_rewrap::auth::authorize::Permit {
    let caller = Caller {
        identity: Some(Identity::Service {
            name: "tests".to_owned(),
        }),
        ..Caller::default()
    };
    let policy = Policy {
        allowed_services: vec!["tests".to_owned()],
        casbin: None,
        permissive: false,
        local_may_apply: false,
    };
    authorize(&policy, &caller, Access::Read).unwrap()
}

pub(crate) fn dry_run() -> RunSpec {
    RunSpec {
        id: String::new(),
        kind: Kind::DryRun,
        scope: Scope::Site,
        max_rows_per_second: 0,
        stop_after_failures: 0,
    }
}
