-- Creates the database role of nico-rewrap. The role may read and update the columns that nico-rewrap needs. On nico-api's
-- tables, it has no privilege to insert, delete or create. If the schema nico_rewrap exists, the role may use its tables.
--
-- The role also has every privilege of PUBLIC. In databases from before PostgreSQL 15, PUBLIC may create tables in the
-- schema public. To prevent this, run: REVOKE CREATE ON SCHEMA public FROM PUBLIC.
--
-- Run this file in nico-api's database, as its owner or as a superuser. You can run it again at any time, before or after
-- nico-api's migration of June 2026 and `nico-rewrap state migrate`. After an upgrade of nico-rewrap, run it again:
--
--   psql -v ON_ERROR_STOP=1 -d nico -f role.sql
--   psql -d nico -c '\password nico_rewrap'
--
-- tests/least_privilege.rs tests a run with this role, and checks that the role has no other privileges.

BEGIN;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nico_rewrap') THEN
        CREATE ROLE nico_rewrap LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT;
    END IF;

    -- Revoke the privileges that an earlier version of this file granted.
    REVOKE ALL ON tenants, tenant_identity_config FROM nico_rewrap;

    EXECUTE format('GRANT CONNECT ON DATABASE %I TO nico_rewrap', current_database());
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO nico_rewrap',
        (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'tenant_identity_config'::regclass));

    GRANT SELECT (organization_id, version), UPDATE (version) ON tenants TO nico_rewrap;

    -- A verify compares the secrets with signing_key_public_1, signing_key_public_2 and auth_method. A census, a verify
    -- and a run over damaged blocks find rows by ctid, the address of a row.
    GRANT SELECT (organization_id, encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config,
            signing_key_public_1, signing_key_public_2, auth_method, ctid),
        UPDATE (encrypted_signing_key_1, encrypted_signing_key_2, encrypted_auth_method_config, updated_at)
        ON tenant_identity_config TO nico_rewrap;

    -- This column exists at sites from before June 2026. nico-rewrap writes it together with the texts, and never reads it.
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tenant_identity_config'::regclass
            AND attname = 'encryption_key_id' AND NOT attisdropped) THEN
        GRANT UPDATE (encryption_key_id) ON tenant_identity_config TO nico_rewrap;
    END IF;

    -- The history of nico-rewrap. `nico-rewrap state migrate` creates this schema.
    IF to_regclass('nico_rewrap.schema_version') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA nico_rewrap TO nico_rewrap;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nico_rewrap TO nico_rewrap;
        REVOKE INSERT, UPDATE, DELETE ON nico_rewrap.schema_version FROM nico_rewrap;
    END IF;
END $$;

-- Optional: let the role see the lag of replicas. Run these two lines as a superuser, in this order. From PostgreSQL 16 on,
-- a grant is inherited only if the role has INHERIT at the time of the grant.
-- ALTER ROLE nico_rewrap INHERIT;
-- GRANT pg_read_all_stats TO nico_rewrap;

COMMIT;
