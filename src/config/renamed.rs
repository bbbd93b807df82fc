//! Settings that had another name in version 0.1. An old name is a configuration error that
//! gives the new name, so that no setting silently loses its effect.

/// The old name in `[rewrap]`, and its replacement.
const RENAMED: [(&str, &str); 7] = [
    ("back_off", "adaptive_rate"),
    (
        "commit",
        "durability; \"barrier\" is \"per_run\" and \"each\" is \"per_row\"",
    ),
    ("max_connections", "database_pool_size"),
    ("max_handshakes", "max_concurrent_handshakes"),
    ("pool_wait", "pool_acquire_timeout"),
    ("pooler", "pool_mode"),
    ("request_timeout", "request_read_timeout"),
];

/// The replacement of the setting `name`, if `name` is an old name.
pub(super) fn new_name(name: &str) -> Option<&'static str> {
    let (_, new) = RENAMED.iter().find(|(old, _)| *old == name)?;
    Some(new)
}
