#!/usr/bin/env bash
# Creates the role of the service and sets its password, as in docs/deploy.md. Without a terminal, \password reads the
# password from standard input. psql sends only a hash to the server.
set -euo pipefail
psql() { command psql -qX -d "$DATABASE_URL" "$@"; }
psql -v ON_ERROR_STOP=1 -f /deploy/postgres/role.sql
printf '%s\n' "$ROLE_PASSWORD" "$ROLE_PASSWORD" | psql -c '\password nico_rewrap'
