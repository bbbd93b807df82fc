//! Checks the seeds of the fuzz targets against the same properties, without a fuzzer, so that
//! every bug that a seed has shown stays fixed. The name of a seed begins with its expected
//! result.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/properties/certificate_identity.rs"]
mod certificate_identity;
#[path = "../fuzz/properties/envelope_read.rs"]
mod envelope_read;
#[path = "../fuzz/properties/policy_file.rs"]
mod policy_file;
#[path = "../fuzz/properties/secrets_file.rs"]
mod secrets_file;

/// The property of each target, and all possible results.
const TARGETS: [(&str, Property, &[&str]); 4] = [
    (
        "certificate_identity",
        certificate_identity::check,
        &["external", "machine", "nobody", "service"],
    ),
    (
        "envelope_read",
        envelope_read::check,
        &["accepted", "refused"],
    ),
    (
        "policy_file",
        policy_file::check,
        &["allows", "denies", "refused"],
    ),
    (
        "secrets_file",
        secrets_file::check,
        &["accepted", "refused"],
    ),
];

type Property = fn(&[u8]) -> &'static str;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The names in a directory, without their extensions.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn every_seed_gives_the_result_in_its_name() {
    for (target, property, outcomes) in TARGETS {
        let dir = fuzz().join("seeds").join(target);
        let mut seen = BTreeSet::new();
        for name in names(&dir) {
            let outcome = property(&fs::read(dir.join(&name)).unwrap());
            assert!(name.starts_with(outcome), "{target}/{name}: {outcome}");
            seen.insert(outcome);
        }
        assert!(seen.iter().eq(outcomes), "{target} has {seen:?}");
    }
}

#[test]
fn the_seeds_of_every_target_are_replayed() {
    let here: BTreeSet<_> = TARGETS.map(|(target, ..)| target.to_owned()).into();
    for dir in ["fuzz_targets", "properties", "seeds"] {
        assert_eq!(names(&fuzz().join(dir)), here, "{dir}");
    }
}

/// `fuzz/` has its own lockfile. Its versions must be those of the released program.
#[test]
fn the_fuzz_targets_use_the_locked_versions_of_the_program() {
    let shipped = locked(include_str!("../Cargo.lock"));
    for (name, versions) in locked(include_str!("../fuzz/Cargo.lock")) {
        if let Some(shipped) = shipped.get(&name) {
            let update = "run: cargo update --manifest-path fuzz/Cargo.toml --precise";
            assert!(
                versions.is_subset(shipped),
                "{name}: {versions:?} against {shipped:?}; {update}"
            );
        }
    }
}

fn locked(lockfile: &str) -> BTreeMap<String, BTreeSet<String>> {
    let lockfile: toml::Table = lockfile.parse().unwrap();
    let mut versions = BTreeMap::<_, BTreeSet<_>>::new();
    for package in lockfile["package"].as_array().unwrap() {
        let of = |key: &str| package[key].as_str().unwrap().to_owned();
        versions
            .entry(of("name"))
            .or_default()
            .insert(of("version"));
    }
    versions
}
