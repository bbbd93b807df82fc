#!/usr/bin/env bash
# Creates the owner of nico-api's tables. As at a site, the owner is not a superuser. From the network, Postgres then
# accepts only connections with TLS.
set -euo pipefail
psql -qX -v ON_ERROR_STOP=1 -v password="$OWNER_PASSWORD" -U postgres -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE nico LOGIN PASSWORD :'password';
ALTER DATABASE nico OWNER TO nico;
SQL
sed -i 's/^host all all all /hostssl all all all /' "$PGDATA/pg_hba.conf"
