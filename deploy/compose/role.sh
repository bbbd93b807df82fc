#!/usr/bin/env bash
# The role for the service, with a password: as docs/deploy.md has it. Where there is no terminal, \password reads its
# input; the server gets to see a hash.
set -euo pipefail
psql() { command psql -qX -d "$DATABASE_URL" "$@"; }
psql -v ON_ERROR_STOP=1 -f /deploy/postgres/role.sql
printf '%s\n' "$ROLE_PASSWORD" "$ROLE_PASSWORD" | psql -c '\password nico_rewrap'
