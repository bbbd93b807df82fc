//! Settings that had another name in version 0.1. An old name stops the start, with the new
//! name in the message: a setting must not lose its effect without a word.

/// Old name in `[rewrap]`, and what to write instead.
const RENAMED: [(&str, &str); 7] = [
    ("back_off", "adaptive_rate"),
    (
        "commit",
        "durability; \"barrier\" is \"per_run\" and \"each\" is \"per_row\"",
    ),
    ("database_pool_size", "database_pool_size"),
    ("max_concurrent_handshakes", "max_concurrent_handshakes"),
    ("pool_acquire_timeout", "pool_acquire_timeout"),
    ("pooler", "pool_mode"),
    ("request_read_timeout", "request_read_timeout"),
];

/// What to write in place of the setting `name`, if that is an old name.
pub(super) fn new_name(name: &str) -> Option<&'static str> {
    let (_, new) = RENAMED.iter().find(|(old, _)| *old == name)?;
    Some(new)
}
