#!/usr/bin/env bash
# Creates the owner of nico-api's tables. As at a site, it is not a superuser.
set -euo pipefail
psql -qX -v ON_ERROR_STOP=1 -v password="$OWNER_PASSWORD" -U postgres -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE nico LOGIN PASSWORD :'password';
ALTER DATABASE nico OWNER TO nico;
SQL
