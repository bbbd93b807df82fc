#!/usr/bin/env bash
# Measures nico-rewrap end to end, through gRPC, and other ways to do the same, on one throwaway Postgres: `make bench`.
#
#   ROWS="20000 200000"   numbers of organizations, ascending; each round measures every way with each number
#   REPEAT=3              number of rounds; the report has the medians
#   WAYS="…"              some of: barrier each dry census verify on-target reference python ceiling tenants
#   RIVALS_UP_TO=200000   with more rows, only nico-rewrap runs: the other ways take too much time or memory
#   SHAPES="…"            candidates for the ceiling: connections x statements in flight
#   TENANT_RATE=100       writes per second that tenants make
#   SETTINGS="…"          more settings of [rewrap] for the run with tenants, to measure their effect; lines end with \n
#   AGAINST=FILE          another build of nico-rewrap, measured in the same rounds as ways named `before-…`
#   MICRO=1               include the last results of criterion in the report
#
# Needs the release build of nico-rewrap and of the examples `seed` and `bench_rivals`. Results go to target/bench.
set -euo pipefail

ROWS=${ROWS:-20000 200000}
REPEAT=${REPEAT:-3}
WAYS=${WAYS:-barrier each dry census verify on-target reference python ceiling tenants}
AGAINST=${AGAINST:-}
RIVALS_UP_TO=${RIVALS_UP_TO:-200000}
SHAPES=${SHAPES:-4x16 8x4 8x16 8x32 16x4 32x4}
TENANT_RATE=${TENANT_RATE:-100}
SETTINGS=$(printf %b "${SETTINGS:-}")

# The benchmark always starts a Postgres of its own, on a disk. /tmp is often in memory, where a flush costs nothing.
unset DATABASE_URL
export TMPDIR=${TMPDIR:-/var/tmp}
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case $(stat -f -c %T .) in tmpfs | ramfs) fail "$TMPDIR is in memory: set TMPDIR to a directory on a disk" ;; esac

PYTHON=$("$root/scripts/tools.sh" bench-python)
target=${release%/release}

read -ra row_counts <<<"$ROWS"
most=${row_counts[-1]}
rival_pid=''
: >runs.jsonl

at_end() { [ -z "$rival_pid" ] || stop "$rival_pid" TERM || true; }

wants() { [[ " $WAYS " = *" $1 "* ]]; }
wants_ceiling() { wants ceiling && [ "$1" -le "$RIVALS_UP_TO" ]; }

# ---- the rows --------------------------------------------------------------------------------------------------------

seed_rows() {
    nico-rewrap migrate --config site.toml >migrate.log 2>&1 || fail "migrate: $(tail -n 3 migrate.log)"
    seed --config site.toml --key-id kv1 --organizations "$most" >seed.log 2>&1 || fail "seed: $(tail -n 3 seed.log)"
    query "CREATE SCHEMA seeded;
        CREATE TABLE seeded.tenants AS TABLE tenants;
        CREATE TABLE seeded.tenant_identity_config AS TABLE tenant_identity_config" >/dev/null
}

# reset ROWS : restores the first ROWS organizations to the seeded state. Foreign keys are not checked, to save time.
reset() {
    local number
    number=$(printf 'org-%07d' "$1")
    query "SET session_replication_role = replica; SET client_min_messages = warning;
        TRUNCATE tenants, tenant_identity_config;
        INSERT INTO tenants SELECT * FROM seeded.tenants WHERE organization_id < '$number' ORDER BY 1;
        INSERT INTO tenant_identity_config
            SELECT * FROM seeded.tenant_identity_config WHERE organization_id < '$number' ORDER BY 1"
    settle
    expected=$(state)
    [[ $expected =~ ^kv1\ ([0-9]+)\ V1\ $1$ ]] || fail "the seeded rows are in the state $expected"
    rewrapped="kv2 ${BASH_REMATCH[1]} V2 $1"
}

# compact : removes the dead rows that a run has left.
compact() {
    query 'VACUUM FULL tenant_identity_config'
    query 'VACUUM FULL tenants'
    settle
}

settle() {
    query 'VACUUM ANALYZE tenant_identity_config'
    query 'VACUUM ANALYZE tenants'
    query 'CHECKPOINT'
}

# state : the number of secrets by key id, and of organizations by version number, such as "kv1 36000 V1 20000". The key
# id is in the first 48 bytes of an envelope.
state() {
    query "SELECT string_agg(key_id || ' ' || n, ' ' ORDER BY key_id) || ' ' || (
            SELECT string_agg(counter || ' ' || n, ' ' ORDER BY counter)
            FROM (SELECT split_part(version, '-', 1) AS counter, count(*) AS n FROM tenants GROUP BY 1) AS v
        ) FROM (
            SELECT coalesce(substring(convert_from(decode(left(text, 64), 'base64'), 'UTF8')
                from '\"key_id\":\"([^\"]+)\"'), '?') AS key_id, count(*) AS n
            FROM tenant_identity_config, LATERAL (VALUES (encrypted_signing_key_1), (encrypted_signing_key_2),
                (encrypted_auth_method_config)) AS s (text)
            WHERE text IS NOT NULL GROUP BY 1
        ) AS k"
}

# must_be STATE WAY : fails if the database is not in this state.
must_be() {
    local found
    found=$(state)
    [ "$found" = "$1" ] || fail "after $2, the database has the state $found, expected $1"
}

# ---- time measurement ------------------------------------------------------------------------------------------------

# CPU time in ticks. For Postgres, of all its processes, including those that have ended.
ticks_of() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
ticks_of_postgres() {
    local children
    read -ra children <"/proc/$postgres_pid/task/$postgres_pid/children"
    children=("${children[@]/#//proc/}")
    # A process may end at this moment.
    { cat "/proc/$postgres_pid/stat" "${children[@]/%//stat}" 2>/dev/null || true; } |
        awk -v postmaster="$postgres_pid" '{ n += $14 + $15 } $1 == postmaster { n += $16 + $17 } END { print n }'
}

# meter CLIENT_PID COMMAND... : runs the command, and sets `taken` to the time and CPU time it took, as members of JSON.
meter() {
    local client=$1 before_client before_postgres started ended
    shift
    before_client=$(ticks_of "$client")
    before_postgres=$(ticks_of_postgres)
    started=${EPOCHREALTIME/[^0-9]/}
    "$@"
    ended=${EPOCHREALTIME/[^0-9]/}
    taken=$(printf '"us": %s, "client_ticks": %s, "postgres_ticks": %s' "$((ended - started))" \
        "$(($(ticks_of "$client") - before_client))" "$(($(ticks_of_postgres) - before_postgres))")
}

# microseconds : the time that the last metered command took.
microseconds() {
    local us=${taken#*: }
    echo "${us%%,*}"
}

# record WAY ROWS MEMBERS : adds a result to runs.jsonl.
record() {
    printf '{"way": "%s", "rows": %s, %s}\n' "$1" "$2" "$3" >>runs.jsonl
    note "$(printf '%-20s %8s rows %8s ms' "$1" "$2" $(($(microseconds) / 1000)))"
}

# ---- the ways --------------------------------------------------------------------------------------------------------

# kilobytes NAME : a memory value of the service, such as VmRSS.
kilobytes() { sed -n "s/^$1:[^0-9]*\([0-9]*\) kB/\1/p" "/proc/$service_pid/status"; }

# start_service [LINES] : sets `at_rest` to the time that the start took and the memory in use, as members of JSON.
start_service() {
    local started ended pause=0.002
    write_config kv2 "${1:-}"
    started=${EPOCHREALTIME/[^0-9]/}
    launch_service
    ended=${EPOCHREALTIME/[^0-9]/}
    at_rest="\"ready_us\": $((ended - started)), \"idle_kb\": $(kilobytes VmRSS)"
}

# call DRY_RUN UPDATED SKIPPED : makes a call, and checks the numbers of its report.
call() {
    rpc "$1" >report.json 2>report.err || fail "grpcurl: $(head -n 3 report.err)"
    local found
    found="$(value rowsUpdated) $(value rowsSkippedAllOnTarget) $(value rowsFailed)"
    [ "$found" = "$2 $3 0" ] || fail "the report has the numbers $found, expected $2 $3 0"
}

# run_of KIND ROWS : makes a run of this kind, waits for its end, and checks that it has examined every row.
run_of() {
    local id
    rewrap StartRun "{\"kind\": \"$1\", \"site\": {}}" >start.json 2>report.err ||
        fail "StartRun: $(head -n 3 report.err)"
    id=$(sed -n 's/^  "id": "\(.*\)",$/\1/p' start.json)
    # WatchRun sends a run only twice a second. With this pause, a run is not measured as longer than it was.
    until rewrap GetRun "{\"runId\": \"$id\"}" >report.json && ! grep -q RUN_STATE_RUNNING report.json; do
        sleep 0.01
    done
    if ! grep -q '"state": "RUN_STATE_FINISHED"' report.json || ! grep -q "\"rowsExamined\": \"$2\"" report.json; then
        fail "the run of kind $1 ended as $(tr -d '\n' <report.json)"
    fi
}

rewrap() {
    grpcurl -cacert pki/service-ca.pem -cert pki/admin-chain.pem -key pki/admin.key -emit-defaults \
        -d "$2" "localhost:$port" "nico.rewrap.v1.Rewrap/$1"
}

# reading_run WAY ROWS KIND : starts a service, and measures one run that changes nothing.
reading_run() {
    start_service 'census_interval = "0s"'
    meter "$service_pid" run_of "$3" "$2"
    record "$1" "$2" "$taken, $at_rest, \"peak_kb\": $(kilobytes VmHWM)"
    end_service
}

# service WAY ROWS LINE DRY_RUN UPDATED SKIPPED STATE : starts a service, measures one call, and checks the result.
service() {
    start_service "$3"
    meter "$service_pid" call "$4" "$5" "$6"
    record "$1" "$2" "$taken, $at_rest, \"peak_kb\": $(kilobytes VmHWM)"
    end_service
    must_be "$7" "$1"
}

# both WAY ROWS LINE DRY_RUN UPDATED SKIPPED STATE PREPARE... : measures this build and then, if AGAINST is set, the other
# one. PREPARE restores the rows that the call needs.
both() {
    local arguments=("${@:1:7}")
    shift 7
    "$@"
    # A census at the start of the service would share the processors with the call.
    service "${arguments[0]}" "${arguments[1]}" "${arguments[2]}
census_interval = \"0s\"" "${arguments[@]:3}"
    [ -n "$AGAINST" ] || return 0
    "$@"
    binary=$AGAINST
    # Older builds need this setting.
    service "before-${arguments[0]}" "${arguments[1]}" "${arguments[2]}
secrets_file = \"$work/secrets.json\"" "${arguments[@]:3}"
    binary=$release/nico-rewrap
}

start_rival() {
    rm -f to from
    mkfifo to from
    "$@" <to >from 2>rival.log &
    rival_pid=$!
    exec 5>to 6<from
    hear_rival ready
}

hear_rival() {
    local word
    read -r word <&6 && [ "$word" = "$1" ] || fail "a rival did not print $1: $(tail -n 3 rival.log)"
}

tell_rival() {
    echo >&5
    hear_rival "$1"
}

end_rival() {
    local pid=$rival_pid
    rival_pid=''
    exec 5>&- 6<&-
    wait "$pid" || fail "a rival failed: $(tail -n 3 rival.log)"
}

# rival WAY ROWS COMMAND... : measures another way, and checks the result.
rival() {
    local way=$1 rows=$2
    shift 2
    reset "$rows"
    start_rival "$@"
    meter "$rival_pid" tell_rival 'done'
    record "$way" "$rows" "$taken"
    end_rival
    must_be "$rewrapped" "$way"
}

# proven ROWS : checks that the service can open every secret that another way has written.
proven() {
    start_service
    call true 0 "$1"
    end_service
}

rust_rival() { exec "$release/examples/bench_rivals" --database "$database_url" --secrets secrets.json "$@"; }
python_rival() { exec "$PYTHON" "$root/scripts/bench_rewrap.py" "$database_url" secrets.json; }

# ceiling WAY ROWS COMMIT SHAPE
ceiling() { rival "$1" "$2" rust_rival ceiling --commit "$3" --connections "${4%x*}" --in-flight "${4#*x}"; }

# best_shape COMMIT : sets `best` to the fastest shape, measured with the largest number of rows up to RIVALS_UP_TO.
best_shape() {
    local shape us best_us='' rows=${row_counts[0]} other
    for other in "${row_counts[@]}"; do
        [ "$other" -gt "$RIVALS_UP_TO" ] || rows=$other
    done
    for shape in $SHAPES; do
        ceiling "ceiling-$1-$shape" "$rows" "$1" "$shape"
        us=$(microseconds)
        if [ -z "$best_us" ] || [ "$us" -lt "$best_us" ]; then
            best_us=$us
            best=$shape
        fi
    done
}

# tenants ROWS ROUND : measures the latency of tenants on the same rows, during a run and then for the same time without a
# run. With equal times, an occasional slow moment of the disk affects both equally.
tenants() {
    local write=(rust_rival tenants --rate "$TENANT_RATE") us
    reset "$1"
    start_service "$SETTINGS"
    start_rival "${write[@]}" --latencies "beside-$2"
    echo >&5
    meter "$service_pid" call false "$1" 0
    us=$(microseconds)
    record tenants "$1" "$taken"
    tell_rival 'done'
    end_rival
    end_service
    [ "$(state | cut -d' ' -f1,2)" = "$(cut -d' ' -f1,2 <<<"$rewrapped")" ] || fail "after a run beside tenants: $(state)"

    reset "$1"
    start_rival "${write[@]}" --latencies "alone-$2"
    echo >&5
    sleep "$((us / 1000000)).$(printf %06d $((us % 1000000)))"
    tell_rival 'done'
    end_rival
}

# ---- main ------------------------------------------------------------------------------------------------------------

step "A throwaway site in $work"
choose_ports
make_certificates
make_keys
start_postgres
# With SETTINGS, so that an error in them is detected now and not in an hour.
write_config kv2 "$SETTINGS"
note "$("$PG_BIN/postgres" --version), default settings"
seed_rows
note "$most organizations"

if wants ceiling; then
    step "Find the fastest shape for the ceiling"
    best_shape barrier
    shape_barrier=$best
    best_shape each
    shape_each=$best
    note "barrier: $shape_barrier, each: $shape_each"
fi

for ((round = 1; round <= REPEAT; round++)); do
    step "Round $round of $REPEAT"
    for rows in "${row_counts[@]}"; do
        if wants dry || wants census || wants verify || wants barrier || wants on-target; then
            reset "$rows"
            ! wants dry || both dry "$rows" '' true "$rows" 0 "$expected" true
            ! wants census || reading_run census "$rows" RUN_KIND_CENSUS
            ! wants verify || reading_run verify "$rows" RUN_KIND_VERIFY
            { ! wants barrier && ! wants on-target; } || both barrier "$rows" '' false "$rows" 0 "$rewrapped" reset "$rows"
        fi
        ! wants on-target || both on-target "$rows" '' false 0 "$rows" "$rewrapped" compact
        # Directly after the way that it is compared with, because the speed of the machine may change within minutes.
        if wants_ceiling "$rows"; then
            ceiling ceiling-barrier "$rows" barrier "$shape_barrier"
            [ "$round" -gt 1 ] || proven "$rows"
        fi
        if wants each; then
            both each "$rows" 'durability = "per_row"' false "$rows" 0 "$rewrapped" reset "$rows"
        fi
        ! wants_ceiling "$rows" || ceiling ceiling-each "$rows" each "$shape_each"
        [ "$rows" -le "$RIVALS_UP_TO" ] || continue
        if wants reference; then
            rival reference "$rows" rust_rival reference
            [ "$round" -gt 1 ] || proven "$rows"
        fi
        if wants python; then
            rival python "$rows" python_rival
            [ "$round" -gt 1 ] || proven "$rows"
        fi
    done
    ! wants tenants || tenants "$most" "$round"
done

settings=${SETTINGS//\\/\\\\}
settings=${settings//\"/\\\"}
cat >facts.json <<JSON
{
    "postgres": "$(query 'SHOW server_version')",
    "settings": "$(query "SELECT string_agg(name || '=' || current_setting(name), ' ' ORDER BY name) FROM pg_settings
        WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'shared_buffers', 'max_wal_size')")",
    "filesystem": "$(stat -f -c %T .)",
    "commit": "$(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)",
    "binary_bytes": $(stat -c %s "$release/nico-rewrap"),
    "ticks_per_second": $(getconf CLK_TCK),
    "ceiling_barrier": "${shape_barrier:-}",
    "ceiling_each": "${shape_each:-}",
    "tenant_rate": $TENANT_RATE,
    "tenant_settings": "${settings//$'\n'/, }"
}
JSON
umask 022
mkdir -p "$target/bench"
"$PYTHON" "$root/scripts/bench_report.py" "$target/bench" ${MICRO:+"$target/criterion"}
note "results are in $target/bench: results.json, chart.svg"
