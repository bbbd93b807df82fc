//! The memory of the running server contains no key outside of the keyring, and no plaintext.
//!
//! The process denies access to its memory, so only root can read it. Without root, these tests
//! check nothing and say so.

use std::fs::File;
use std::os::unix::fs::FileExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::certs;
use crate::database::Database;
use crate::faults::orgs;
use crate::grpcurl::{reencrypt, run};
use crate::seal::key;
use crate::seed::{self, DELEGATION, signing_key_pem};
use crate::server::Server;
use crate::site::Site;

/// The content of the writable memory regions of a process.
pub(crate) struct Memory(Vec<(String, Vec<u8>)>);

impl Memory {
    /// Reads the memory of this process. `None` without permission.
    #[expect(
        clippy::print_stderr,
        reason = "a test that checked nothing has to say so"
    )]
    pub(crate) fn of(server: &Server) -> Option<Self> {
        let process = format!("/proc/{}", server.pid());
        let memory = match File::open(format!("{process}/mem")) {
            Ok(memory) => memory,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
                eprintln!("not root: the memory of the server was not looked at");
                return None;
            }
        };
        let maps = std::fs::read_to_string(format!("{process}/maps")).unwrap();
        let mut regions = Vec::new();
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let address = |hex| u64::from_str_radix(hex, 16).unwrap();
            let mut bytes = vec![0; usize::try_from(address(end) - address(start)).unwrap()];
            // A region can disappear while this function reads it.
            let read = memory.read_at(&mut bytes, address(start)).unwrap_or(0);
            bytes.truncate(read);
            regions.push((line.to_owned(), bytes));
        }
        let memory = Self(regions);
        // The search works: it finds this name of the configuration.
        assert!(!memory.places(&[b"nico.local"])[0].is_empty());
        Some(memory)
    }

    /// For each needle, the regions that contain it, one entry for each match. Searches in one
    /// pass, since there is much memory.
    fn places(&self, needles: &[&[u8]]) -> Vec<Vec<&str>> {
        let mut is_first = [false; 256];
        for needle in needles {
            is_first[usize::from(needle[0])] = true;
        }
        let mut places = vec![Vec::new(); needles.len()];
        for (region, bytes) in &self.0 {
            for (at, _) in bytes
                .iter()
                .enumerate()
                .filter(|(_, byte)| is_first[usize::from(**byte)])
            {
                for (needle, places) in needles.iter().zip(&mut places) {
                    if bytes[at..].starts_with(needle) {
                        places.push(region.as_str());
                    }
                }
            }
        }
        places
    }
}

/// Panics if the memory contains a key in another form than the expanded one, or a part of a
/// plaintext of the usual rows.
fn assert_clean(server: &Server, when: &str) {
    let Some(memory) = Memory::of(server) else {
        return;
    };
    let texts = ["kv1", "kv2"].map(|id| BASE64_STANDARD.encode(key(id)));
    let keys = ["kv1", "kv2"].map(key);
    let pem_line = signing_key_pem().lines().nth(2).unwrap();
    let mut needles: Vec<(&str, usize, &[u8])> = Vec::new();
    for text in &texts {
        // Search for parts, too: allocators overwrite the beginning of freed memory.
        for part in [&text[..20], &text[12..32], &text[24..]] {
            needles.push(("the text of a key", 0, part.as_bytes()));
        }
    }
    for key in &keys {
        // The first two round keys of AES-256 are the key (FIPS 197, 5.2), where the processor's own instructions are used.
        needles.push(("a key", 1, key));
        needles.push(("the second half of a key", 1, &key[16..]));
    }
    for part in [
        pem_line,
        &pem_line[20..],
        DELEGATION,
        &DELEGATION[DELEGATION.len() - 20..],
    ] {
        needles.push(("a plaintext", 0, part.as_bytes()));
    }
    let bytes: Vec<_> = needles.iter().map(|(.., bytes)| *bytes).collect();
    for ((what, most, _), places) in needles.iter().zip(memory.places(&bytes)) {
        assert!(places.len() <= *most, "{when}: {what} in {places:#?}");
    }
}

#[tokio::test]
async fn no_key_and_no_plaintext_stays_behind() {
    let texts = ["kv1", "kv2"].map(|id| BASE64_STANDARD.encode(key(id)));
    let [kv1, kv2] = &texts;
    let json = json!({
        "other": {"username": "nico", "password": "unrelated"},
        "machine_identity": {"encryption_keys": {"kv1": kv1, "kv2": kv2}},
    });
    let files = [
        ("secrets.json", json.to_string()),
        ("pretty.json", serde_json::to_string_pretty(&json).unwrap()),
        // The parser cannot borrow a text with an escape in it.
        ("escaped.json", json.to_string().replace('=', "\\u003d")),
        (
            "plain.yaml",
            format!("machine_identity:\n  encryption_keys:\n    kv1: {kv1}\n    kv2: {kv2}\n"),
        ),
        (
            "quoted.yaml",
            format!(
                "# keys\nmachine_identity: {{encryption_keys: {{kv1: \"{kv1}\", kv2: '{kv2}'}}}}\n"
            ),
        ),
        (
            "block.yaml",
            format!(
                "machine_identity:\n  encryption_keys:\n    kv1: |\n      {kv1}\n    kv2: >-\n      {kv2}\n"
            ),
        ),
        (
            "anchors.yaml",
            format!(
                "x: &one {kv1}\ny: &two \"{kv2}\"\nmachine_identity:\n  encryption_keys: {{kv1: *one, kv2: *two}}\n"
            ),
        ),
    ];
    for (name, text) in files {
        let database = Database::migrated().await;
        let client = database.client().await;
        seed::insert(&client, &orgs(40)).await;
        let server = Site::new(&database).secrets(name, &text).start().await;
        assert_clean(&server, &format!("{name}, after the start"));
        if name != "secrets.json" {
            continue;
        }
        assert_eq!(run(&server, true).await.rows_updated, 40);
        assert_clean(&server, &format!("{name}, after a dry run"));
        assert_eq!(run(&server, false).await.rows_updated, 40);
        let one = json!({"organizationId": "org001"});
        reencrypt(&server, certs::admin(), one).await.unwrap();
        assert_clean(&server, &format!("{name}, after a run"));
        assert_eq!(server.terminate().await, 0);
    }
}
