//! The target changes, keys come and go, and censuses count them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::world::World;
use crate::rewrap_client::{ask, ended, number, verdict};
use crate::seal::key_id;
use crate::seed;

impl World {
    /// The site has another target. Often, only one instance is restarted now. As long as the two
    /// have different targets, each of their runs re-wraps every secret.
    pub(super) async fn change_target(&mut self) {
        let first = self.rng.usize(..2);
        self.target_another_key(first).await;
        if self.rng.u32(..4) == 0 {
            self.start_instance(1 - first).await;
        }
    }

    /// Restarts one instance with another target.
    pub(super) async fn target_another_key(&mut self, number: usize) {
        let others: Vec<_> = self
            .keys
            .iter()
            .filter(|id| **id != self.target)
            .cloned()
            .collect();
        let Some(target) = self.rng.choice(others) else {
            return;
        };
        self.note(format!("the target is {target}"));
        self.target = target;
        self.start_instance(number).await;
    }

    /// From now on, nico-api writes under the target.
    pub(super) fn restart_nico_api(&mut self) {
        self.note(format!("nico-api starts with the target {}", self.target));
        self.api_target = self.target.clone();
    }

    pub(super) async fn add_key(&mut self) {
        if self.keys.len() >= 4 {
            return;
        }
        self.keys_made += 1;
        let id = format!("k{}", self.keys_made);
        self.note(format!("{id} is added"));
        self.keys.insert(id);
        for number in 0..2 {
            if self.instances[number].is_some() {
                self.start_instance(number).await;
            }
        }
    }

    /// Removes a key as the procedure says: every process has the new configuration, a census
    /// finds no secret under the key, and another one finds none after the soak. Every write that
    /// nico-api had begun has ended by then.
    pub(super) async fn remove_key(&mut self) {
        let others: Vec<_> = self
            .keys
            .iter()
            .filter(|id| **id != self.target)
            .cloned()
            .collect();
        // Two keys must stay, or no run has anything to do.
        let Some(id) = self.rng.choice(others).filter(|_| self.keys.len() > 2) else {
            return;
        };
        self.finish_all_runs().await;
        self.unlock().await;
        self.restart_nico_api();
        for number in 0..2 {
            self.start_instance(number).await;
        }
        self.census().await;
        while !self.sets.is_empty() {
            self.end_set().await;
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
        self.census().await;
        let state = verdict(self.server(0), &id).await;
        self.note(format!("the verdict about {id} is {state}"));
        let users = self.secrets_by_key().await;
        match state.as_str() {
            "REMOVABLE" => {
                assert_eq!(users.get(&id), None, "{id} is called removable");
                self.count("keys removed");
                self.keys.remove(&id);
                for number in 0..2 {
                    self.start_instance(number).await;
                }
            }
            "IN_USE" => {
                self.count("keys in use");
                assert!(users.contains_key(&id), "{id} is called used: {users:?}");
            }
            // The series began with the first of the two censuses.
            state => assert_eq!(state, "SOAKING", "{id}"),
        }
    }

    /// A census counts every secret once, those that the index hides included.
    pub(super) async fn census(&mut self) {
        self.finish_all_runs().await;
        self.unlock().await;
        let instance = self.some_instance().await;
        let server = self.server(instance);
        let request = json!({"kind": "RUN_KIND_CENSUS", "site": {}});
        let run = ask(server, "StartRun", request).await;
        let run = ended(server, &run).await;
        assert_eq!(run["state"], "RUN_STATE_FINISHED", "{run}");
        let listed = ask(server, "ListKeys", json!({})).await;
        let census = &listed["census"];
        assert_eq!(census["runId"], run["id"], "{listed}");
        let counted = |key: &Value| {
            (
                key["keyId"].as_str().unwrap().to_owned(),
                number(&key["secrets"]),
            )
        };
        let counts = listed["keys"].as_array().unwrap().iter().map(counted);
        let counts: BTreeMap<_, _> = counts.filter(|(_, secrets)| *secrets > 0).collect();
        let users = self.secrets_by_key().await;
        assert_eq!((counts, number(&census["unreadable"])), (users, 0));
        self.note("a census");
    }

    async fn secrets_by_key(&self) -> BTreeMap<String, u64> {
        let mut users = BTreeMap::new();
        for row in seed::snapshot(&self.observer).await.values() {
            for text in row.texts.iter().flatten() {
                *users.entry(key_id(text)).or_default() += 1;
            }
        }
        users
    }
}
