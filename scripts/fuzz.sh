#!/usr/bin/env bash
# Fuzzes each target, starting from its seeds, and stops at the first finding:
#
#   scripts/fuzz.sh SECONDS [TARGET...]
#
# New inputs go to fuzz/corpus, and findings to fuzz/artifacts. No sanitizer is used: sanitizers need a nightly compiler,
# and the errors that they detect occur in unsafe code, which this project forbids.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=$1
shift
scripts/tools.sh rust c++ >/dev/null
cargo_fuzz=$(scripts/tools.sh cargo-fuzz)
PATH=$(dirname "$cargo_fuzz"):$PATH

# cargo-fuzz has no --locked.
cargo fetch -q --locked --manifest-path fuzz/Cargo.toml
options=(--sanitizer none --target-dir target/fuzz)
cargo fuzz build "${options[@]}"

[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
for target in "${@:-${targets[@]}}"; do
    log=target/fuzz/$target.log
    echo "fuzzing $target for $seconds s; progress is in $log"
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run "${options[@]}" "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -timeout=30 -print_final_stats=1 >"$log" 2>&1 || {
        tail -n 40 "$log"
        exit 1
    }
    # The number of executions, and the coverage they reached (edges and features).
    sed -n 's/^#\([0-9]*\)\tDONE *\(cov: [0-9]* ft: [0-9]*\) .*/  \1 inputs, \2/p' "$log"
done
