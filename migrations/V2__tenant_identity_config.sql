-- nico-api's table since June 2026: the envelopes alone say which key they are under.
CREATE TYPE token_delegation_auth_method_t AS ENUM ('none', 'client_secret_basic');

CREATE TYPE tenant_identity_current_signing_key_slot_t AS ENUM ('signing_key_1', 'signing_key_2');

CREATE TABLE tenant_identity_config (
    organization_id text PRIMARY KEY REFERENCES tenants (organization_id) ON DELETE CASCADE,
    issuer varchar(512) NOT NULL,
    default_audience varchar(255) NOT NULL,
    allowed_audiences jsonb NOT NULL,
    token_ttl_sec integer NOT NULL,
    subject_prefix varchar(255) NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    encrypted_signing_key_1 text,
    encrypted_signing_key_2 text,
    signing_key_public_1 jsonb,
    signing_key_public_2 jsonb,
    current_signing_key_slot tenant_identity_current_signing_key_slot_t
        NOT NULL DEFAULT 'signing_key_1',
    non_active_slot_expires_at timestamptz,
    token_endpoint varchar(512),
    auth_method token_delegation_auth_method_t,
    encrypted_auth_method_config text,
    subject_token_audience varchar(255),
    token_delegation_created_at timestamptz
);
