//! Crashes, locks, and an index that hides a row.

use super::world::World;

impl World {
    pub(super) async fn kill_an_instance(&mut self) {
        let number = self.rng.usize(..2);
        let Some(instance) = self.instances[number].take() else {
            return;
        };
        self.note(format!("instance {number} is killed"));
        self.count("killed instances");
        instance.server.signal("KILL");
        instance.server.wait_exit().await;
        for run in &mut self.runs {
            run.disturbed = true;
        }
        self.finish_runs_of(number).await;
    }

    pub(super) async fn crash_postgres(&mut self) {
        self.note("Postgres crashes");
        self.count("crashes of Postgres");
        for run in &mut self.runs {
            run.disturbed = true;
        }
        self.locker = None;
        self.postgres.stop_immediate();
        self.postgres.restart();
        self.reconnect().await;
        self.finish_all_runs().await;
        for instance in self.instances.iter().flatten() {
            instance.server.wait_ready().await;
        }
        // Rows that no report has confirmed may be as they were before.
        self.before = None;
    }

    /// Locks the table or a row against writes, or ends that.
    pub(super) async fn lock_or_unlock(&mut self) {
        if self.locker.is_some() {
            return self.unlock().await;
        }
        let locker = self.database.client().await;
        let lock = if self.rng.bool() {
            "LOCK TABLE tenant_identity_config IN SHARE MODE"
        } else {
            "SELECT FROM tenant_identity_config ORDER BY organization_id LIMIT 2 FOR UPDATE"
        };
        self.note(lock);
        self.count("locks");
        for run in &mut self.runs {
            run.disturbed = true;
        }
        let sql = format!("BEGIN; {lock}");
        locker.batch_execute(&sql).await.unwrap();
        self.locker = Some(locker);
    }

    pub(super) async fn unlock(&mut self) {
        if let Some(locker) = self.locker.take() {
            self.note("the lock ends");
            locker.batch_execute("ROLLBACK").await.unwrap();
        }
    }

    pub(super) async fn damage_or_repair_index(&mut self) {
        self.finish_all_runs().await;
        if self.hidden.is_some() {
            return self.repair_index().await;
        }
        // Most of the time, the index is right.
        if self.locker.is_some() || self.rng.bool() {
            return;
        }
        let id = format!("hidden{:03}", self.made);
        self.made += 1;
        self.note(format!("{id} is not in the index"));
        self.count("hidden rows");
        let admin = self.database.admin().await;
        let ready = |ready: bool| {
            format!(
                "UPDATE pg_index SET indisready = {ready}
                WHERE indexrelid = 'tenant_identity_config_pkey'::regclass"
            )
        };
        admin.batch_execute(&ready(false)).await.unwrap();
        let (org, secrets) = self.organization(&id);
        org.insert(&self.database.client().await).await;
        admin.batch_execute(&ready(true)).await.unwrap();
        self.touched.insert(id.clone());
        self.expected.insert(id.clone(), secrets);
        self.hidden = Some(id);
    }

    pub(super) async fn repair_index(&mut self) {
        self.finish_all_runs().await;
        self.unlock().await;
        if self.hidden.take().is_some() {
            self.note("the index is rebuilt");
            self.execute("REINDEX INDEX tenant_identity_config_pkey")
                .await;
        }
    }
}
