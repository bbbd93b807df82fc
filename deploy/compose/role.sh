#!/usr/bin/env bash
# The role for the service, with a password.
set -euo pipefail
psql() { command psql -qX -v ON_ERROR_STOP=1 -d "$DATABASE_URL" "$@"; }
psql -f /deploy/postgres/role.sql
psql -v password="$ROLE_PASSWORD" <<<"ALTER ROLE nico_rewrap PASSWORD :'password'"
