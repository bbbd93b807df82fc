-- What nico-rewrap remembers: runs, their failures, censuses, receipts, and who holds the guard of a site-wide apply.
-- `nico-rewrap state migrate` creates these tables. The server never does.

-- One row for each file of migrations/state that has been applied.
CREATE TABLE nico_rewrap.schema_version (
    version integer PRIMARY KEY,
    applied timestamptz NOT NULL DEFAULT now()
);

-- One row for each run. `document` is the run as JSON.
CREATE TABLE nico_rewrap.runs (
    id text PRIMARY KEY,
    started timestamptz NOT NULL DEFAULT now(),
    state text NOT NULL CHECK (state IN ('RUNNING', 'FINISHED', 'STOPPED', 'FAILED')),
    -- Set by the client to start a run only once, with what it asked for.
    request_id text UNIQUE,
    request text,
    -- Set by any instance. The instance that executes the run looks here.
    stop_requested boolean NOT NULL DEFAULT false,
    -- When the executing instance last wrote this row. An old time means that the instance has ended.
    heartbeat timestamptz NOT NULL DEFAULT now(),
    document text NOT NULL
);
CREATE INDEX ON nico_rewrap.runs (started DESC, id DESC);

-- Organization ids and columns sort by their bytes, in every database.
CREATE TABLE nico_rewrap.failures (
    run_id text NOT NULL REFERENCES nico_rewrap.runs (id) ON DELETE CASCADE,
    organization_id text COLLATE "C" NOT NULL,
    field text COLLATE "C" NOT NULL,
    reason text NOT NULL,
    key_id text NOT NULL,
    message text NOT NULL,
    PRIMARY KEY (run_id, organization_id, field)
);

CREATE TABLE nico_rewrap.censuses (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL,
    document text NOT NULL
);

-- One row: what the series of censuses has shown. `sequence` counts the censuses in it.
CREATE TABLE nico_rewrap.ledger (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    sequence bigint NOT NULL,
    document text NOT NULL
);
INSERT INTO nico_rewrap.ledger (sequence, document) VALUES (0, '{"last":null,"keys":{}}');

-- Receipts are never deleted.
CREATE TABLE nico_rewrap.receipts (
    sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id text NOT NULL UNIQUE,
    sha256 text NOT NULL,
    document text NOT NULL
);

-- What only one instance may do at a time, where a session lock cannot be used.
CREATE TABLE nico_rewrap.leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    document text NOT NULL,
    expires timestamptz NOT NULL
);

-- The role of the server, if it exists already. deploy/postgres/role.sql grants the same.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nico_rewrap') THEN
        GRANT USAGE ON SCHEMA nico_rewrap TO nico_rewrap;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA nico_rewrap TO nico_rewrap;
        REVOKE INSERT, UPDATE, DELETE ON nico_rewrap.schema_version FROM nico_rewrap;
    END IF;
END $$;
