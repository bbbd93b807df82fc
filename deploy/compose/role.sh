#!/usr/bin/env bash
# Creates the database role of the service and sets its password, as docs/install/postgres.md says. Without a terminal,
# \password reads standard input. The server sees only a hash.
set -euo pipefail
psql() { command psql -qX -d "$DATABASE_URL" "$@"; }
psql -v ON_ERROR_STOP=1 -f /deploy/postgres/role.sql
printf '%s\n' "$ROLE_PASSWORD" "$ROLE_PASSWORD" | psql -c '\password nico_rewrap'
