-- nico-api's table, as far as this service, its tests and its demo need it.
CREATE TABLE tenants (
    organization_id text PRIMARY KEY,
    version varchar(64) NOT NULL,
    organization_name text NOT NULL,
    routing_profile_type varchar(64)
);
