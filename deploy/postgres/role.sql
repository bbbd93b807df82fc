-- Creates the database role of nico-rewrap. The role may read and update the columns that nico-rewrap needs. It has no
-- privilege to insert, delete or create.
--
-- The role also has every privilege of PUBLIC. In databases from before PostgreSQL 15, PUBLIC may create tables in the
-- schema public. To prevent this, run: REVOKE CREATE ON SCHEMA public FROM PUBLIC.
--
-- Run this file in nico-api's database, as its owner or as a superuser. You can run it again at any time, before or after
-- nico-api's migration of June 2026:
--
--   psql -v ON_ERROR_STOP=1 -d nico -f role.sql
--   psql -d nico -c '\password nico_rewrap'
--
-- tests/least_privilege.rs tests a run with this role, and tests what the role must not be able to do.

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nico_rewrap') THEN
        CREATE ROLE nico_rewrap LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT;
    END IF;

    -- Revoke what an earlier version of this file granted.
    REVOKE ALL ON tenants, tenant_identity_config FROM nico_rewrap;

    EXECUTE format('GRANT CONNECT ON DATABASE %I TO nico_rewrap', current_database());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO nico_rewrap',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'tenant_identity_config'::regclass));

    GRANT SELECT (organization_id, version), UPDATE (version) ON tenants TO nico_rewrap;

    GRANT SELECT (organization_id, encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config),
        UPDATE (encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config, updated_at)
        ON tenant_identity_config TO nico_rewrap;

    -- This column exists at sites from before June 2026. It is written together with the texts, and never read.
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tenant_identity_config'::regclass
            AND attname = 'encryption_key_id' AND NOT attisdropped) THEN
        GRANT UPDATE (encryption_key_id) ON tenant_identity_config TO nico_rewrap;
    END IF;
END $$;

-- Optional: let the role see the lag of replicas. Run these two lines as a superuser, in this order. From PostgreSQL 16 on,
-- a grant is inherited only if the role has INHERIT at the time of the grant.
-- ALTER ROLE nico_rewrap INHERIT;
-- GRANT pg_read_all_stats TO nico_rewrap;

COMMIT;
