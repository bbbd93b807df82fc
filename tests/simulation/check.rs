//! What must be true after every step.

use std::collections::BTreeSet;

use super::world::World;
use crate::seal::{key_id, keys, open};
use crate::seed::{self, Row};

impl World {
    /// Every secret opens to the last value that its tenant wrote, with the keys that the site
    /// has. Versions only grow. Each row that the service wrote is complete: all its secrets are
    /// under the target of one run, and its version is bumped.
    pub(super) async fn check(&mut self) {
        let rows = seed::snapshot(&self.observer).await;
        assert!(rows.keys().eq(self.expected.keys()), "{:?}", rows.keys());
        let ids: Vec<_> = self.keys.iter().map(String::as_str).collect();
        let keys = keys(&ids);
        for (id, row) in &rows {
            let opened = row.texts.each_ref().map(|text| {
                text.as_ref().map(|text| {
                    let opened = open(text, &keys).unwrap_or_else(|e| panic!("{id}: {e}"));
                    String::from_utf8(opened.1).unwrap()
                })
            });
            assert_eq!(opened, self.expected[id], "{id}");
            let version = row.version_parts().0;
            let durable = self.durable.get(id).copied().unwrap_or(0);
            assert!(version >= durable, "{id}: {version} after {durable}");
            if self.touched.contains(id) {
                // The commit of nico-api is durable, and with it all earlier ones.
                self.durable.insert(id.clone(), version);
            }
            let before = self.before.as_ref().and_then(|before| before.get(id));
            if let Some(before) = before {
                self.check_change(id, before, row);
            }
        }
        for run in &mut self.runs {
            run.touched.extend(self.touched.iter().cloned());
        }
        self.touched.clear();
        self.before = Some(rows);
        // A statement of an ended process may still arrive, within one more step.
        let running = self.runs.iter().map(|run| run.target.clone());
        let running: BTreeSet<_> = running.collect();
        let ended = std::mem::replace(&mut self.writing, running);
        self.ended = ended;
    }

    fn check_change(&self, id: &str, before: &Row, row: &Row) {
        let (was, is) = (before.version_parts().0, row.version_parts().0);
        assert!(is >= was, "{id}: version {is} after {was}");
        if self.touched.contains(id) {
            return;
        }
        if before.texts == row.texts {
            assert_eq!(before, row, "{id} was written without a reason");
            return;
        }
        assert!(is > was, "{id}: the texts changed, and not the version");
        assert_eq!(before.others, row.others, "{id}");
        let under: BTreeSet<_> = row
            .texts
            .iter()
            .flatten()
            .map(|text| key_id(text))
            .collect();
        assert_eq!(under.len(), 1, "{id} is half written: {under:?}");
        let target = under.first().unwrap();
        let may = self.writing.contains(target) || self.ended.contains(target);
        assert!(
            may,
            "{id} is under {target}, and the targets are {:?}",
            self.writing
        );
    }
}
