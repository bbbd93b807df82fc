-- Creates the role that nico-rewrap connects as. The role may read and update only the columns that nico-rewrap uses. This
-- file grants no privilege to insert, delete or create anything. The role also has all privileges of PUBLIC. Before
-- PostgreSQL 15, and in databases that were upgraded from such a version, PUBLIC may create tables in the schema public,
-- unless the site has run REVOKE CREATE ON SCHEMA public FROM PUBLIC.
--
-- Run this file in nico-api's database, as the database's owner or as a superuser. You can run it again at any time, before
-- or after nico-api's migration of June 2026:
--
--   psql -v ON_ERROR_STOP=1 -d nico -f role.sql
--   psql -d nico -c '\password nico_rewrap'
--
-- tests/least_privilege.rs does a run with this role, and checks that the role can do nothing else.

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nico_rewrap') THEN
        CREATE ROLE nico_rewrap LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT;
    END IF;

    -- Removes privileges that an earlier version of this file granted.
    REVOKE ALL ON tenants, tenant_identity_config FROM nico_rewrap;

    EXECUTE format('GRANT CONNECT ON DATABASE %I TO nico_rewrap', current_database());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO nico_rewrap',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'tenant_identity_config'::regclass));

    GRANT SELECT (organization_id, version), UPDATE (version) ON tenants TO nico_rewrap;

    GRANT SELECT (organization_id, encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config),
        UPDATE (encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config, updated_at)
        ON tenant_identity_config TO nico_rewrap;

    -- Sites from before June 2026 have this column. nico-rewrap writes it together with the secrets and never reads it.
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tenant_identity_config'::regclass
            AND attname = 'encryption_key_id' AND NOT attisdropped) THEN
        GRANT UPDATE (encryption_key_id) ON tenant_identity_config TO nico_rewrap;
    END IF;
END $$;

-- Optional: lets the role see the lag of replicas in pg_stat_replication. A superuser must run both statements, in this
-- order. From PostgreSQL 16 on, the role inherits a grant only if the role has INHERIT at the time of the grant.
-- ALTER ROLE nico_rewrap INHERIT;
-- GRANT pg_read_all_stats TO nico_rewrap;

COMMIT;
