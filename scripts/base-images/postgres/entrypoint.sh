#!/usr/bin/env bash
# The part of the public image's entrypoint that deploy/compose uses: POSTGRES_PASSWORD, POSTGRES_DB, and the scripts in
# /docker-entrypoint-initdb.d. As in the public image, the scripts run while the server does not listen on TCP.
set -euo pipefail

if [ "$(id -u)" -eq 0 ]; then
    exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
fi
if [ "$1" = postgres ]; then
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        initdb -D "$PGDATA" -U postgres --auth-local=trust --auth-host=scram-sha-256 \
            --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:?}")
        echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
        pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
        [ -z "${POSTGRES_DB:-}" ] || createdb -U postgres "$POSTGRES_DB"
        for file in /docker-entrypoint-initdb.d/*; do
            case $file in
            *.sql) psql -v ON_ERROR_STOP=1 -U postgres -d "${POSTGRES_DB:-postgres}" -f "$file" ;;
            *.sh) bash "$file" ;;
            esac
        done
        pg_ctl -D "$PGDATA" -m fast -w stop
    fi
    shift
    set -- postgres -c listen_addresses='*' "$@"
fi
exec "$@"
