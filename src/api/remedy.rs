//! What to do about the failures of a run, by their reason.

/// The instruction for the operator about failures with this reason.
pub(super) fn remedy(reason: &str) -> &'static str {
    match reason {
        "KEY_NOT_IN_SECRETS" => {
            "Add the key to the key source, restart nico-rewrap, and run again. Never delete a key \
             that secrets still name."
        }
        "NOT_AUTHENTIC" => {
            "Compare the check value of the key with that of nico-api. If the bytes are right, the \
             text was altered: restore the row from a backup, or create the secret again."
        }
        "UNREADABLE_ENVELOPE" | "UNSUPPORTED_SCHEME" | "TOO_LONG" => {
            "Restore the row from a backup, or create the secret again with nico-api."
        }
        "ROW_LOCKED" | "TIMEOUT" | "CONFLICT" => "Run again.",
        "TENANT_VERSION" => "Correct tenants.version of the organization, and run again.",
        "TENANT_MISSING" => {
            "Restore the row of the organization in tenants, or delete its configuration if the organization is gone."
        }
        "PRIVILEGE" => {
            "Grant the privilege that the log of Postgres names, or give the role BYPASSRLS, and run again."
        }
        "VERSION_NOT_BUMPED" | "TEXT_NOT_KEPT" => {
            "Change or disable the trigger, rule or policy that changes the write, and run again."
        }
        "REFUSED" => "Search the log of Postgres for the statement, and run again.",
        "NO_RANDOMNESS" => "Check the random number generator of the host, and run again.",
        "READ_BACK" => {
            "Run again on another host. The cause is broken memory, a broken processor, or a bug: report it."
        }
        "ROW_UNREADABLE" => "Restore the row from a backup, or create its secrets again.",
        "WRONG_KEY_PAIR" | "PUBLIC_KEY_MISSING" | "NOT_A_SIGNING_KEY" => {
            "Restore the row from a backup, or rotate the signing key of the organization with \
             nico-api."
        }
        "NOT_A_DELEGATION" => "Set the token delegation of the organization again with nico-api.",
        _ => "See docs/troubleshooting.md.",
    }
}
