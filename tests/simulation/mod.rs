//! A simulation: long random sequences of everything that happens at a site, against a real
//! database and real servers.
//!
//! Tenants write, nico-api writes rows back that it has read before, the target changes, keys are
//! added and removed, two instances make runs, an instance or Postgres crashes, somebody locks
//! rows, and an index loses entries. After every step, `check.rs` checks what the service
//! promises.
//!
//! `SIMULATE_SECONDS` sets how long the simulation goes on, and `SIMULATE_SEED` makes it
//! repeat one sequence. A seed fixes the steps, but not the timing of the processes.

mod check;
mod faults;
mod keys;
mod runs;
mod tenants;
mod world;

use std::time::{Duration, Instant};

use self::world::World;

/// Steps in a sequence.
const STEPS: usize = 120;

/// Seeds of sequences that have found something, or that reach a rare state. They come first.
const SEEDS: [u64; 3] = [1, 2, 3];

impl World {
    /// One random step.
    async fn step(&mut self) {
        // During a run, tenants mostly write, and they do it all the time.
        let events = match self.runs.is_empty() || self.rng.u32(..5) == 0 {
            true => 100,
            false => 45,
        };
        if !self.runs.is_empty() {
            let pause = Duration::from_millis(self.rng.u64(..60));
            tokio::time::sleep(pause).await;
        }
        match self.rng.u32(..events) {
            0..28 => self.tenants_write().await,
            28..37 => self.begin_set().await,
            37..45 => self.end_set().await,
            45..61 => self.start_run().await,
            61..69 => self.finish_run().await,
            69..72 => self.kill_an_instance().await,
            72..74 => self.crash_postgres().await,
            74..79 => self.lock_or_unlock().await,
            79..83 => self.damage_or_repair_index().await,
            83..88 => self.change_target().await,
            88..90 => self.restart_nico_api(),
            90..93 => self.add_key().await,
            93..97 => self.remove_key().await,
            _ => self.census().await,
        }
    }
}

async fn simulate(seed: u64, until: Option<Instant>) {
    let mut world = World::new(seed).await;
    world.start_instance(0).await;
    world.change_target().await;
    for _ in 0..STEPS {
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        world.step().await;
        world.check().await;
        world.count("steps");
    }
    world.finish().await;
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
    )
}

#[tokio::test]
async fn every_promise_holds_after_every_step_of_random_sequences() {
    if let Some(seed) = variable("SIMULATE_SEED") {
        return simulate(seed, None).await;
    }
    let seconds = variable("SIMULATE_SECONDS").unwrap_or(60);
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut kept = SEEDS.into_iter();
    while Instant::now() < until {
        let seed = kept.next().unwrap_or_else(|| fastrand::u64(..));
        simulate(seed, Some(until)).await;
    }
}
