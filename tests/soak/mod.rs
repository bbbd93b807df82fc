//! A soak: the service runs for a long time under tenants, rotations in both directions, reloads
//! and faults. At the end, it needs no more memory, file descriptors and connections than at the
//! beginning, and every secret opens to the last value that its tenant wrote.
//!
//! `SOAK_SECONDS` sets how long it goes on.

mod events;
mod faults;
mod measure;
mod tenants;
mod world;

use std::time::{Duration, Instant};

use self::events::EVENTS;
use self::world::World;

/// A pause after each event, so that a soak leaves room for other work on its machine.
const PAUSE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or hours: make test-long, make soak"]
async fn nothing_grows_while_the_service_runs_for_long() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(30, |text| {
        text.parse()
            .unwrap_or_else(|e| panic!("SOAK_SECONDS={text}: {e}"))
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut world = World::new().await;
    // The first rounds fill the pools and the caches.
    world.baseline().await;
    loop {
        let mut round = EVENTS.to_vec();
        fastrand::shuffle(&mut round);
        for event in round {
            world.happens(event).await;
            world.sample().await;
            tokio::time::sleep(PAUSE).await;
        }
        world.check().await;
        // Even a short soak has a complete round.
        if Instant::now() > until {
            break;
        }
    }
    world.finish().await;
}
