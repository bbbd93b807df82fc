//! Rows as `nico-api` writes them, with the secret texts that a test needs, and snapshots of rows.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use tokio_postgres::Client;

use crate::database::Database;
use crate::process::{self, temp_dir};
use crate::seal::seal;

/// The three secret columns, in the order of the texts in [`Org`] and [`Row`].
pub(crate) const COLUMNS: [&str; 3] = [
    "encrypted_signing_key_1",
    "encrypted_signing_key_2",
    "encrypted_auth_method_config",
];

/// `tenants.version` of a seeded row.
pub(crate) const VERSION: &str = "V7-T1700000000000000";

/// The JSON of a delegation secret.
pub(crate) const DELEGATION: &str =
    r#"{"client_id": "client", "client_secret": "the secret of a test"}"#;

/// An organization with its row of secrets, to insert.
#[derive(Clone, Debug)]
pub(crate) struct Org {
    id: String,
    texts: [Option<String>; 3],
    version: String,
    encryption_key_id: String,
}

impl Org {
    /// An organization without any secret.
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            texts: [None, None, None],
            version: VERSION.into(),
            encryption_key_id: "kv1".into(),
        }
    }

    /// The usual organization: a signing key and a delegation secret under this key id, no second
    /// signing key.
    pub(crate) fn under(id: &str, key_id: &str) -> Self {
        Self::new(id)
            .text(0, seal(signing_key_pem(), key_id))
            .text(2, seal(DELEGATION, key_id))
    }

    /// Sets the text of a secret column, by its index in [`COLUMNS`].
    pub(crate) fn text(mut self, column: usize, text: impl Into<String>) -> Self {
        self.texts[column] = Some(text.into());
        self
    }

    /// Sets all three texts.
    pub(crate) fn texts(mut self, texts: [Option<String>; 3]) -> Self {
        self.texts = texts;
        self
    }

    /// Sets the tenant's version, by default [`VERSION`].
    pub(crate) fn version(mut self, version: &str) -> Self {
        self.version = version.into();
        self
    }

    /// Sets the column of the old schema, by default `kv1`. Ignored in the new schema.
    pub(crate) fn encryption_key_id(mut self, key_id: &str) -> Self {
        self.encryption_key_id = key_id.into();
        self
    }

    /// Inserts this one organization.
    pub(crate) async fn insert(&self, client: &Client) {
        insert(client, std::slice::from_ref(self)).await;
    }
}

/// A database with one organization, `acme`.
pub(crate) async fn one_under_kv1() -> Database {
    let database = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    database
}

/// Inserts any number of organizations with one statement for each of the two tables.
pub(crate) async fn insert(client: &Client, orgs: &[Org]) {
    let column = |text: fn(&Org) -> Option<&str>| orgs.iter().map(text).collect::<Vec<_>>();
    let ids = column(|org| Some(&org.id));
    let tenants = "-- seed tenants
        INSERT INTO tenants (organization_id, version, organization_name)
        SELECT id, version, 'Organization ' || id FROM unnest($1::text[], $2::text[]) AS seeded (id, version)";
    client
        .execute(tenants, &[&ids, &column(|org| Some(&org.version))])
        .await
        .unwrap();
    let (old_column, old_value) = match has_encryption_key_id(client).await {
        true => (", encryption_key_id", ", old_key_id"),
        false => ("", ""),
    };
    let configs = format!(
        "-- seed configs
        INSERT INTO tenant_identity_config (organization_id, issuer, default_audience, allowed_audiences,
            token_ttl_sec, subject_prefix, created_at, updated_at, encrypted_signing_key_1, encrypted_signing_key_2,
            encrypted_auth_method_config, signing_key_public_1, signing_key_public_2, token_endpoint, auth_method,
            subject_token_audience, token_delegation_created_at{old_column})
        SELECT id, 'https://issuer.example/' || id, 'audience', '[\"audience\"]', 3600, 'spiffe://nico.local/' || id,
            '2026-01-01Z', '2026-01-02Z', key_1, key_2, delegation,
            CASE WHEN key_1 IS NOT NULL THEN public_key END, CASE WHEN key_2 IS NOT NULL THEN public_key END,
            CASE WHEN delegated THEN 'https://token.example' END,
            CASE WHEN delegated THEN 'client_secret_basic'::token_delegation_auth_method_t END,
            CASE WHEN delegated THEN 'audience' END, CASE WHEN delegated THEN '2026-01-01Z'::timestamptz END{old_value}
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                AS seeded (id, key_1, key_2, delegation, old_key_id),
            LATERAL (SELECT delegation IS NOT NULL AS delegated,
                '{{\"v\": 1, \"kid\": \"00\", \"alg\": \"ES256\", \"public_pem\": \"\"}}'::jsonb AS public_key) AS rest"
    );
    let text = |i: usize| {
        orgs.iter()
            .map(|org| org.texts[i].as_deref())
            .collect::<Vec<_>>()
    };
    let old_key_ids = column(|org| Some(&org.encryption_key_id));
    client
        .execute(
            &configs,
            &[&ids, &text(0), &text(1), &text(2), &old_key_ids],
        )
        .await
        .unwrap();
}

/// Deletes an organization.
pub(crate) async fn delete(client: &Client, id: &str) {
    let sql = "DELETE FROM tenants WHERE organization_id = $1";
    assert_eq!(client.execute(sql, &[&id]).await.unwrap(), 1);
}

/// A PKCS#8 PEM P-256 private key, the same for the whole process.
pub(crate) fn signing_key_pem() -> &'static str {
    static PEM: LazyLock<String> = LazyLock::new(|| {
        let der =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .unwrap();
        let base64 = BASE64_STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = base64
            .as_bytes()
            .chunks(64)
            .map(|line| str::from_utf8(line).unwrap())
            .collect();
        format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            lines.join("\n")
        )
    });
    &PEM
}

/// Gives every row the public key of [`signing_key_pem`], so that a verify finds a pair.
pub(crate) async fn set_public_keys(client: &Client) {
    let dir = temp_dir("public-key");
    let file = dir.path().join("key.pem");
    std::fs::write(&file, signing_key_pem()).unwrap();
    let mut openssl = std::process::Command::new("openssl");
    let public = process::run(openssl.args(["pkey", "-pubout", "-in"]).arg(&file));
    let sql = "UPDATE tenant_identity_config
        SET signing_key_public_1 = jsonb_set(signing_key_public_1, '{public_pem}', to_jsonb($1::text))";
    client.execute(sql, &[&public]).await.unwrap();
}

/// Changes the schema to that of a site before June 2026.
pub(crate) async fn add_encryption_key_id(client: &Client) {
    let ddl = "ALTER TABLE tenant_identity_config ADD COLUMN encryption_key_id varchar(255) NOT NULL DEFAULT 'kv1';
        ALTER TABLE tenant_identity_config ALTER COLUMN encryption_key_id DROP DEFAULT";
    client.batch_execute(ddl).await.unwrap();
}

/// Changes the schema as `nico-api`'s migration of June 2026 does.
pub(crate) async fn drop_encryption_key_id(client: &Client) {
    client
        .batch_execute("ALTER TABLE tenant_identity_config DROP COLUMN encryption_key_id")
        .await
        .unwrap();
}

async fn has_encryption_key_id(client: &Client) -> bool {
    let sql = "SELECT FROM pg_attribute WHERE attrelid = 'tenant_identity_config'::regclass
        AND attname = 'encryption_key_id' AND NOT attisdropped";
    client.query_opt(sql, &[]).await.unwrap().is_some()
}

/// The complete content of an organization. Two snapshots are equal only if there was no write
/// between them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// The three secrets.
    pub(crate) texts: [Option<String>; 3],
    /// `tenant_identity_config.updated_at`.
    pub(crate) updated_at: SystemTime,
    /// `tenants.version`.
    pub(crate) version: String,
    /// The column of the old schema.
    pub(crate) encryption_key_id: Option<String>,
    /// Every other column of both tables, as JSON. A re-wrap never changes these.
    pub(crate) others: String,
    /// The transactions that last wrote the two rows. They show even a write without a change.
    pub(crate) written_by: (String, String),
}

impl Row {
    /// The number and the time of the version. Panics if the version does not have the format of
    /// the contract.
    pub(crate) fn version_parts(&self) -> (u64, SystemTime) {
        let parts = self
            .version
            .strip_prefix('V')
            .and_then(|rest| rest.split_once("-T"));
        let (number, micros) = parts.unwrap_or_else(|| panic!("not a version: {}", self.version));
        (
            number.parse().unwrap(),
            UNIX_EPOCH + Duration::from_micros(micros.parse().unwrap()),
        )
    }
}

/// All organizations with a row of secrets.
pub(crate) async fn snapshot(client: &Client) -> BTreeMap<String, Row> {
    let sql = "-- snapshot
        SELECT c.organization_id, c.encrypted_signing_key_1, c.encrypted_signing_key_2, c.encrypted_auth_method_config,
            c.updated_at, t.version, to_jsonb(c) ->> 'encryption_key_id',
            ((to_jsonb(c) - $1::text[]) || jsonb_build_object('tenant', to_jsonb(t) - $1::text[]))::text,
            c.xmin::text, t.xmin::text
        FROM tenant_identity_config AS c JOIN tenants AS t USING (organization_id)";
    let known = [
        &COLUMNS[..],
        &["updated_at", "version", "encryption_key_id"],
    ]
    .concat();
    let rows = client.query(sql, &[&known]).await.unwrap();
    let read = |row: &tokio_postgres::Row| Row {
        texts: [row.get(1), row.get(2), row.get(3)],
        updated_at: row.get(4),
        version: row.get(5),
        encryption_key_id: row.get(6),
        others: row.get(7),
        written_by: (row.get(8), row.get(9)),
    };
    rows.iter().map(|row| (row.get(0), read(row))).collect()
}
