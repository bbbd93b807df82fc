//! What tenants and nico-api write.

use tokio_postgres::error::SqlState;

use super::world::{Secrets, World};
use crate::seal::seal;
use crate::seed::{COLUMNS, Org};

/// nico-api's "set identity configuration": it reads a row without a lock, and writes all columns
/// back later.
pub(super) struct Set {
    id: String,
    texts: [Option<String>; 3],
    secrets: Secrets,
}

fn literal(text: Option<&str>) -> String {
    text.map_or("NULL".to_owned(), |text| format!("'{text}'"))
}

impl World {
    /// An organization that tenants can write now.
    fn some_organization(&mut self) -> Option<String> {
        let hidden = self.hidden.clone();
        let ids: Vec<_> = self
            .expected
            .keys()
            .filter(|id| Some(*id) != hidden.as_ref())
            .collect();
        let ids: Vec<_> = ids.into_iter().cloned().collect();
        let any = self.rng.usize(..ids.len().max(1));
        ids.get(any).cloned()
    }

    pub(super) async fn tenants_write(&mut self) {
        if self.locker.is_some() {
            return;
        }
        for _ in 0..self.rng.usize(1..5) {
            match self.rng.u32(..10) {
                0..6 => self.change_secret().await,
                6 => self.clear_secret().await,
                7 if self.expected.len() > 8 => self.delete().await,
                _ if self.expected.len() < 24 => self.insert().await,
                _ => self.change_secret().await,
            }
        }
    }

    async fn change_secret(&mut self) {
        let fresh = self.made;
        self.made += 1;
        let column = self.rng.usize(..3);
        self.set_secret(column, Some(format!("secret {fresh}")))
            .await;
    }

    async fn clear_secret(&mut self) {
        let column = self.rng.usize(1..3);
        self.set_secret(column, None).await;
    }

    async fn set_secret(&mut self, column: usize, secret: Option<String>) {
        let Some(id) = self.some_organization() else {
            return;
        };
        let text = secret.as_ref().map(|secret| seal(secret, &self.api_target));
        self.note(format!(
            "{id}: column {column} is {secret:?} under {}",
            self.api_target
        ));
        let set = format!("{} = {}", COLUMNS[column], literal(text.as_deref()));
        self.update(&id, &set).await;
        self.expected.get_mut(&id).unwrap()[column] = secret;
    }

    /// Locks the configuration first and the tenant second, and bumps the version.
    async fn update(&mut self, id: &str, set: &str) {
        let sql = format!(
            "UPDATE tenant_identity_config SET {set}, updated_at = now() WHERE organization_id = '{id}';
            UPDATE tenants SET version = 'V' || split_part(substr(version, 2), '-T', 1)::bigint + 1 || '-T'
                || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                WHERE organization_id = '{id}'"
        );
        self.execute(&sql).await;
        self.touched.insert(id.to_owned());
    }

    /// One transaction, which is repeated after a deadlock.
    pub(super) async fn execute(&mut self, sql: &str) {
        while let Err(error) = self.client.batch_execute(sql).await {
            let is_deadlock = error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED);
            assert!(is_deadlock, "{sql}: {error:?}");
        }
    }

    pub(super) async fn insert(&mut self) {
        let id = format!("org{:03}", self.made);
        self.made += 1;
        self.note(format!("{id} is new"));
        let (org, secrets) = self.organization(&id);
        org.insert(&self.client).await;
        self.touched.insert(id.clone());
        self.expected.insert(id, secrets);
    }

    /// A new organization with two secrets.
    pub(super) fn organization(&self, id: &str) -> (Org, Secrets) {
        let secrets = [
            Some(format!("key of {id}")),
            None,
            Some(format!("delegation of {id}")),
        ];
        let sealed =
            |secret: &Option<String>| secret.as_ref().map(|secret| seal(secret, &self.api_target));
        (Org::new(id).texts(secrets.each_ref().map(sealed)), secrets)
    }

    async fn delete(&mut self) {
        let Some(id) = self.some_organization() else {
            return;
        };
        self.note(format!("{id} is deleted"));
        let sql = format!("DELETE FROM tenants WHERE organization_id = '{id}'");
        self.execute(&sql).await;
        self.expected.remove(&id);
        self.durable.remove(&id);
        self.touched.insert(id);
    }

    pub(super) async fn begin_set(&mut self) {
        let Some(id) = self.some_organization() else {
            return;
        };
        let sql = format!(
            "SELECT {} FROM tenant_identity_config WHERE organization_id = '{id}'",
            COLUMNS.join(", ")
        );
        let row = self.client.query_one(&sql, &[]).await.unwrap();
        self.note(format!("{id}: nico-api reads the row"));
        let texts = [row.get(0), row.get(1), row.get(2)];
        let secrets = self.expected[&id].clone();
        self.sets.push(Set { id, texts, secrets });
    }

    pub(super) async fn end_set(&mut self) {
        if self.sets.is_empty() || self.locker.is_some() {
            return;
        }
        let any = self.rng.usize(..self.sets.len());
        let Set { id, texts, secrets } = self.sets.swap_remove(any);
        if !self.expected.contains_key(&id) {
            return;
        }
        self.note(format!("{id}: nico-api writes the row back"));
        let columns = COLUMNS.iter().zip(&texts);
        let columns =
            columns.map(|(column, text)| format!("{column} = {}", literal(text.as_deref())));
        self.update(&id, &columns.collect::<Vec<_>>().join(", "))
            .await;
        // The tenant's changes since the read are lost, with or without the service.
        self.expected.insert(id, secrets);
    }
}
