//! Faults during a run. The run may end early, and the next one completes.

use std::time::Duration;

use serde_json::json;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::world::World;
use crate::certs;
use crate::grpcurl::Call;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// The connections to the database are cut.
    Cut,
    /// The database does not answer for a while.
    Silence,
    /// The database is restarted.
    Restart,
    /// The database crashes and starts again.
    Crash,
    /// An instance is killed and starts again.
    InstanceKilled,
}

impl World {
    pub(super) async fn fault(&mut self, fault: Fault) {
        let number = match fault {
            Fault::InstanceKilled => 1,
            _ => fastrand::usize(..2),
        };
        let call = Call::new(self.server(number), certs::admin());
        let run = tokio::spawn(async move { call.reencrypt(&json!({})).await });
        sleep(Duration::from_millis(fastrand::u64(100..800))).await;
        match fault {
            Fault::Cut => self.proxy.cut(),
            Fault::Silence => {
                self.proxy.hold_answers();
                sleep(Duration::from_millis(500)).await;
                self.proxy.relay();
            }
            Fault::Restart | Fault::Crash => self.restart_postgres(fault).await,
            Fault::InstanceKilled => {
                let instance = self.take_instance(1);
                instance.signal("KILL");
                instance.wait_exit().await;
            }
        }
        match run.await.unwrap() {
            Ok(report) => self.counted(false, &report),
            Err(_) => self.count("runs that ended early", 1),
        }
        if fault == Fault::InstanceKilled {
            self.start_instance(1).await;
        }
        for number in 0..2 {
            self.server(number).wait_ready().await;
        }
        self.count(
            match fault {
                Fault::Cut => "cuts of all connections",
                Fault::Silence => "silences of the database",
                Fault::Restart => "restarts of the database",
                Fault::Crash => "crashes of the database",
                Fault::InstanceKilled => "killed instances",
            },
            1,
        );
    }

    async fn restart_postgres(&mut self, fault: Fault) {
        let restart = async || {
            block_in_place(|| {
                if fault == Fault::Crash {
                    self.postgres.stop_immediate();
                }
                self.postgres.restart();
            });
            self.tenants.reconnect(&self.database).await;
        };
        self.tenants.pause(restart).await;
        self.observer = self.database.admin().await;
    }
}
