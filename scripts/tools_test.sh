#!/usr/bin/env bash
# Tests scripts/tools.sh: what it says before it installs something, NO_INSTALL=1, and PostgreSQL without a cluster.
#
# The test runs a copy of the script in a temporary directory, with a separate PATH. On this PATH, apt-get, sudo and id are
# stand-ins that record each call, so the test installs nothing on this machine.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset NO_INSTALL PG_BIN PGBOUNCER PROMETHEUS CHROMIUM GRPCURL
bash=$(command -v bash)
setting=$work/etc/postgresql-common/createcluster.d/nico-rewrap.conf

fail() {
    printf 'tools_test failed: %s: %s\n' "$name" "$*" >&2
    sed 's/^/  stderr: /' "$work/stderr" >&2
    sed 's/^/  called: /' "$work/calls" >&2
    exit 1
}

# stand_in COMMAND SCRIPT
stand_in() {
    printf '#!%s\n%s\n' "$bash" "$2" >"$work/bin/$1"
    chmod +x "$work/bin/$1"
}

# machine NAME UID : makes a new machine for the test NAME. It has apt-get and sudo, and no tools.
machine() {
    local command
    name=$1
    rm -rf "${work:?}"/*
    mkdir -p "$work/bin" "$work/scripts" "$work/etc" "$work/usr/lib" "$work/usr/sbin"
    # The copy looks for servers and settings in $work.
    sed "s#/etc/postgresql#$work&#g; s#/usr/lib/postgresql#$work&#g; s#/usr/sbin#$work&#g" \
        "$root/scripts/tools.sh" >"$work/scripts/tools.sh"
    for command in bash cat dirname env mkdir mktemp rm rmdir sed sort tee touch true chmod uname; do
        ln -s "$(type -P "$command")" "$work/bin/$command"
    done
    stand_in id "echo $2"
    stand_in sudo "echo \"sudo \$*\" >>$work/calls; exec \"\$@\""
    # Installs openssl, PostgreSQL, PgBouncer or Prometheus, and records the setting that exists during the installation.
    stand_in apt-get "PATH=$PATH
        echo \"apt-get \$*\" >>$work/calls
        echo 'apt-get is called' >&2
        case \"\$*\" in
        *openssl) ln -s /bin/true $work/bin/openssl ;;
        *postgresql)
            cat $setting >$work/seen
            [ ! -e $work/apt-fails ] || exit 1
            mkdir -p $work/usr/lib/postgresql/15/bin
            for program in initdb postgres psql; do ln -s /bin/true $work/usr/lib/postgresql/15/bin/\$program; done
            ;;
        *pgbouncer)
            cat $work/usr/sbin/policy-rc.d >$work/seen
            ln -s /bin/true $work/usr/sbin/pgbouncer
            ;;
        *prometheus)
            cat $work/usr/sbin/policy-rc.d >$work/seen
            ln -s /bin/true $work/bin/prometheus
            ;;
        esac"
    : >"$work/calls"
    : >"$work/stderr"
}

# tools [SETTING=VALUE...] TOOL... : runs the copy. Sets $code to its exit code, and $stdout to its output.
tools() {
    local settings=()
    while [[ $1 == *=* ]]; do
        settings+=("$1")
        shift
    done
    code=0
    stdout=$(env -i PATH="$work/bin" "${settings[@]}" "$bash" "$work/scripts/tools.sh" "$@" 2>"$work/stderr") || code=$?
}

ends_well() { [ "$code" -eq 0 ] || fail "exit code $code, expected 0"; }
ends_badly() {
    [ "$code" -ne 0 ] || fail 'exit code 0, expected an error'
    [ -z "$stdout" ] || fail "stdout has a path: $stdout"
}
says() { grep -qF -- "$1" "$work/stderr" || fail "stderr does not have: $1"; }
# installs_nothing : no installer was called, and no file was written.
installs_nothing() {
    [ ! -s "$work/calls" ] || fail 'a stand-in was called'
    [ ! -e "$work/target" ] || fail 'target was created'
    [ ! -e "$work/etc/postgresql-common" ] || fail 'a setting of PostgreSQL was written'
}
setting_is_gone() {
    [ ! -e "${setting%/*}" ] || fail "${setting%/*} is still there"
}

machine 'an installation is announced before it starts' 1000
tools openssl
ends_well
[ "$stdout" = "$work/bin/openssl" ] || fail "stdout: $stdout"
[ "$(head -n 1 "$work/stderr")" = 'tools: installing openssl with apt-get (needed to make certificates)' ] || fail 'first line'
grep -q '^sudo .*apt-get .*install .*openssl$' "$work/calls" || fail 'apt-get must be called with sudo'

machine 'a tool that is there is not installed' 1000
ln -s /bin/true "$work/bin/openssl"
tools NO_INSTALL=1 openssl
ends_well
installs_nothing

for user in 0 1000; do
    sudo=''
    [ "$user" -eq 0 ] || sudo='sudo '
    machine "NO_INSTALL=1 prints the commands for all tools, as user $user" "$user"
    tools NO_INSTALL=1 openssl cc postgres pgbouncer
    ends_badly
    installs_nothing
    for package in openssl 'gcc libc6-dev' postgresql pgbouncer; do
        says "${sudo}apt-get update && ${sudo}apt-get install --no-install-recommends $package"
    done
    says "echo 'create_main_cluster = false' | ${sudo}install -D -m 644 /dev/stdin $setting"
    [ "$(wc -l <"$work/stderr")" -eq 4 ] || fail 'each tool must have one line'
done

machine 'NO_INSTALL=1 prints the commands of pip' 1000
tools NO_INSTALL=1 GRPCURL= grpcurl
ends_badly
installs_nothing
says 'sudo apt-get install --no-install-recommends python3 python3-venv'
says "$work/target/tools/venv/bin/pip"

# Two targets of make can run at the same time. Each installation removes its build directory at the end.
machine 'every crate has its own build directory' 1000
for command in head cut; do ln -s "$(type -P "$command")" "$work/bin/$command"; done
stand_in cargo true
stand_in cc true
stand_in rustc "echo 'rustc 1.95.0'"
echo 'rust-version = "1.89"' >"$work/Cargo.toml"
for crate in cargo-deny cargo-fuzz; do
    tools NO_INSTALL=1 "$crate"
    ends_badly
    installs_nothing
    says "--target-dir $work/target/tools/build-$crate"
done

machine 'NO_INSTALL=0 installs' 0
tools NO_INSTALL=0 openssl
ends_well

machine 'a user without sudo is told the commands' 1000
rm "$work/bin/sudo"
tools openssl postgres
ends_badly
installs_nothing
says 'Run as root: apt-get update && apt-get install --no-install-recommends openssl'
says "Run as root: echo 'create_main_cluster = false' | install"

machine 'a user whom sudo refuses is told the commands' 1000
stand_in sudo "echo \"sudo \$*\" >>$work/calls; exit 1"
tools openssl postgres
ends_badly
says 'Run as root: apt-get update && apt-get install --no-install-recommends openssl'
says "Run as root: echo 'create_main_cluster = false' | install"
[ "$(cat "$work/calls")" = 'sudo true' ] || fail 'sudo must be tried once'

machine 'a system without apt-get is told the packages' 1000
rm "$work/bin/apt-get"
tools openssl
ends_badly
installs_nothing
says 'openssl (needed to make certificates). Install it with the package manager of this system'

for user in 0 1000; do
    machine "PostgreSQL is installed without a cluster, as user $user" "$user"
    tools postgres
    ends_well
    [ "$stdout" = "$work/usr/lib/postgresql/15/bin" ] || fail "stdout: $stdout"
    grep -qx 'create_main_cluster = false' "$work/seen" || fail 'the setting was not there during the installation'
    setting_is_gone
done

machine 'PostgreSQL and PgBouncer in one call leave no setting behind' 1000
tools postgres pgbouncer
ends_well
grep -qx 'exit 101' "$work/seen" || fail 'PgBouncer could start'
setting_is_gone
[ ! -e "$work/usr/sbin/policy-rc.d" ] || fail 'policy-rc.d is still there'
[ "$(grep -c '^apt-get .*update' "$work/calls")" -eq 1 ] || fail 'the package lists must be updated once'

machine 'Prometheus is installed without its service' 1000
tools prometheus
ends_well
[ "$stdout" = "$work/bin/prometheus" ] || fail "stdout: $stdout"
grep -qx 'exit 101' "$work/seen" || fail 'Prometheus could start'
[ ! -e "$work/usr/sbin/policy-rc.d" ] || fail 'policy-rc.d is still there'

machine 'a variable names a program' 1000
stand_in mine true
tools NO_INSTALL=1 PROMETHEUS="$work/bin/mine" prometheus
ends_well
[ "$stdout" = "$work/bin/mine" ] || fail "stdout: $stdout"
tools NO_INSTALL=1 PROMETHEUS="$work/bin/none" prometheus
ends_badly
says "PROMETHEUS=$work/bin/none is not a program"

machine 'the setting goes away if the installation fails' 1000
touch "$work/apt-fails"
tools postgres
ends_badly
says 'could not install postgresql'
setting_is_gone

machine 'nothing else is installed after a failure' 1000
touch "$work/apt-fails"
tools postgres openssl
ends_badly
! grep -q 'install .*openssl' "$work/calls" || fail 'openssl was installed'

machine 'the files of the owner stay' 1000
mkdir -p "${setting%/*}"
echo '# mine' >"${setting%/*}/other.conf"
tools postgres
ends_well
[ -e "${setting%/*}/other.conf" ] || fail 'other.conf is gone'
[ ! -e "$setting" ] || fail 'the setting is still there'

machine 'an existing cluster stops the installation of PostgreSQL' 1000
mkdir -p "$work/etc/postgresql/13/main"
touch "$work/etc/postgresql/13/main/postgresql.conf"
tools postgres
ends_badly
installs_nothing
says 'PG_BIN'

echo 'tools_test: all passed'
