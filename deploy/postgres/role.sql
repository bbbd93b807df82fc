-- The role that nico-rewrap connects as: it reads what it reads, writes the columns that it writes, and is granted nothing
-- else, neither to insert nor to delete nor to create. What PUBLIC may, it may as well: before PostgreSQL 15, and in
-- databases that come from there, that is to create tables in the schema public, unless the site has taken that back
-- (REVOKE CREATE ON SCHEMA public FROM PUBLIC). For nico-api's database, as its owner or a superuser, any number of times,
-- before or after nico-api's migration of June 2026:
--
--   psql -v ON_ERROR_STOP=1 -d nico -f role.sql
--   psql -d nico -c '\password nico_rewrap'
--
-- tests/least_privilege.rs has a run under this role, and tries what it must not be able to do.

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nico_rewrap') THEN
        CREATE ROLE nico_rewrap LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT;
    END IF;

    -- What an earlier version of this file granted, and this one does not.
    REVOKE ALL ON tenants, tenant_identity_config FROM nico_rewrap;

    EXECUTE format('GRANT CONNECT ON DATABASE %I TO nico_rewrap', current_database());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO nico_rewrap',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'tenant_identity_config'::regclass));

    GRANT SELECT (organization_id, version), UPDATE (version) ON tenants TO nico_rewrap;

    GRANT SELECT (organization_id, encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config),
        UPDATE (encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config, updated_at)
        ON tenant_identity_config TO nico_rewrap;

    -- Sites from before June 2026. It is written along with the texts and never read.
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tenant_identity_config'::regclass
            AND attname = 'encryption_key_id' AND NOT attisdropped) THEN
        GRANT UPDATE (encryption_key_id) ON tenant_identity_config TO nico_rewrap;
    END IF;
END $$;

-- To let it see how far replicas are behind, which pg_stat_replication shows to few. A superuser has to do this, in this
-- order: from PostgreSQL 16 on, a grant is inherited if the role inherits when it is made.
-- ALTER ROLE nico_rewrap INHERIT;
-- GRANT pg_read_all_stats TO nico_rewrap;

COMMIT;
