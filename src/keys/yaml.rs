//! Limits of the YAML reader for a secrets file.

/// Maximum nesting of a YAML file. The reader needs some kB of stack for each level.
const MAX_DEPTH: usize = 64;

/// Maximum nesting of brackets for the scanner. It runs up to 1,024 characters ahead of the
/// reader, and its own error does not say which limit was exceeded. So its limit must be
/// higher.
const SCANNED_AHEAD: usize = 2048;

/// How many parser events aliases and merge keys may repeat: 100,000 hosts that share five
/// defaults need 1.2 million.
const MAX_REPEATED: usize = 3_000_000;

/// Maximum size of all texts in a YAML file, including those that aliases repeat.
const MAX_SCALAR_BYTES: usize = 512 << 20;

/// Limits of the YAML reader. The size of a file limits its nodes and aliases. Repetitions
/// by aliases and merge keys have their own limit, because a small file could cause any
/// number of them.
pub(super) fn options(text: &str) -> serde_saphyr::Options {
    let written = text.len();
    let all = written.saturating_add(MAX_REPEATED);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: all.saturating_mul(2),
            max_nodes: all,
            max_aliases: written,
            max_anchors: written,
            max_merge_keys: written,
            max_recorded_anchor_events: MAX_REPEATED,
            max_total_scalar_bytes: MAX_SCALAR_BYTES,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: SCANNED_AHEAD,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPEATED,
        },
        // A snippet would copy a part of the file.
        with_snippet: false,
    }
}

/// The limit of [`options`] that a file exceeds.
pub(super) fn over_limit(error: &serde_saphyr::Error) -> Option<String> {
    use serde_saphyr::{Error, budget::BudgetBreach};
    match error.without_snippet() {
        Error::AliasError { error, .. } => over_limit(error),
        Error::Budget { breach, .. } => Some(match breach {
            BudgetBreach::Depth { .. } => format!("{MAX_DEPTH} nested levels"),
            BudgetBreach::ScalarBytes { .. } => {
                format!("{} MiB of text, aliases included", MAX_SCALAR_BYTES >> 20)
            }
            _ => format!("{MAX_REPEATED} values that aliases and merge keys repeat"),
        }),
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. } => Some(format!(
            "{MAX_REPEATED} values that aliases and merge keys repeat"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::keys::tests::{A, B, ids, problems};

    #[test]
    fn a_large_yaml_file_is_read() {
        let keys = format!("machine_identity:\n  encryption_keys:\n    kv1: {A}\n    kv2: {B}\n");
        let repeat =
            |n: usize, entry: &dyn Fn(usize) -> String| -> String { (0..n).map(entry).collect() };
        let aliases = format!(
            "first: &default {{username: admin, password: x}}\nhosts:\n{}{keys}",
            repeat(20_000, &|i| format!("  host-{i}: *default\n"))
        );
        let merged = format!(
            "base: &b {{username: root}}\nhosts:\n{}{keys}",
            repeat(20_000, &|i| format!(
                "  host-{i}:\n    <<: *b\n    password: p\n"
            ))
        );
        let many = format!(
            "hosts:\n{}{keys}",
            repeat(60_000, &|i| format!(
                "  h-{i}:\n    username: root\n    password: p\n"
            ))
        );
        let anchors = format!(
            "hosts:\n{}{keys}",
            repeat(60_000, &|i| format!("  h-{i}: &a{i} x\n"))
        );
        for text in [aliases, merged, many, anchors] {
            assert_eq!(ids(&text), ["kv1", "kv2"]);
        }
    }

    #[test]
    fn an_exceeded_limit_is_named() {
        // Each level repeats the previous one ten times.
        let mut bomb = "l0: &l0 [s3cr3t]\n".to_owned();
        for level in 1..12 {
            let ten = vec![format!("*l{}", level - 1); 10].join(", ");
            bomb += &format!("l{level}: &l{level} [{ten}]\n");
        }
        let deep = format!("a: {}s3cr3t{}\n", "[".repeat(200), "]".repeat(200));
        let deepest = format!("a: {}s3cr3t", "[".repeat(100_000));
        let levels: String = (0..200)
            .map(|n| format!("{}l{n}:\n", " ".repeat(n)))
            .collect();
        for (text, limit) in [
            (bomb, "3000000 values that aliases and merge keys repeat"),
            (deep, "64 nested levels"),
            (deepest, "64 nested levels"),
            (levels, "64 nested levels"),
        ] {
            let found = problems(&text);
            assert!(
                found.contains("exceeds a limit of the YAML reader"),
                "{found}"
            );
            assert!(found.contains(limit), "{found}");
            assert!(
                !found.contains("base64") && !found.contains("s3cr3t"),
                "{found}"
            );
        }
    }
}
