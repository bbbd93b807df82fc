//! Fills an empty, migrated database with organizations like those of nico-api: real P-256
//! signing keys and delegation secrets, sealed under one key of the secrets file. It is for
//! the demo, the tests in containers and the benchmark.
//!
//! Every organization has a first signing key. Of 20 organizations, 6 have a second signing
//! key, and 10 have a delegation secret. That is 1.8 secrets per organization.

use std::{error::Error, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Parser;
use nico_rewrap::{
    config::{Config, SiteKeys},
    domain::{
        envelope::{self, Buffers, Plaintext},
        keyring::{Kek, KeyId},
    },
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Number of rows in one INSERT.
const BATCH: usize = 500;

/// The part of a P-256 SubjectPublicKeyInfo (RFC 5480) before the point.
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[derive(Parser)]
struct Args {
    /// The site config that names the database and the secrets file.
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
    /// The id of the key that seals the secrets.
    #[arg(long)]
    key_id: String,
    /// The number of organizations.
    #[arg(long)]
    organizations: usize,
}

/// The columns of a batch of rows.
#[derive(Default)]
struct Batch {
    ids: Vec<String>,
    signing_1: Vec<String>,
    public_1: Vec<serde_json::Value>,
    signing_2: Vec<Option<String>>,
    public_2: Vec<Option<serde_json::Value>>,
    auth_method: Vec<Option<&'static str>>,
    auth_config: Vec<Option<String>>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let environment = std::env::vars()
        .map(|(name, value)| (name, Some(value.into())))
        .collect();
    let config = Config::load(&args.config, &environment)?;
    let feature = config
        .machine_identity
        .ok_or("[machine_identity].enabled is not true")?;
    let key_id = KeyId::new(args.key_id)?;
    let SiteKeys::Complete(keyring) = &feature.keys else {
        return Err("the keys must be in a file or the environment".into());
    };
    let kek = keyring
        .get(key_id.as_str())
        .ok_or("no such key in the secrets file")?;
    let client = feature.database.connect().await?;

    let mut secrets = 0;
    for start in (0..args.organizations).step_by(BATCH) {
        let end = args.organizations.min(start + BATCH);
        let batch = batch(kek, start..end)?;
        secrets += batch.secrets();
        insert(&client, &batch).await?;
    }
    say(args.organizations, secrets);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the output of the program")]
fn say(organizations: usize, secrets: usize) {
    println!("organizations={organizations} secrets={secrets}");
}

fn batch(kek: &Kek, numbers: std::ops::Range<usize>) -> Result<Batch, Box<dyn Error>> {
    let mut batch = Batch::default();
    for number in numbers {
        batch.ids.push(format!("org-{number:07}"));
        let (sealed, public) = signing_key(kek)?;
        batch.signing_1.push(sealed);
        batch.public_1.push(public);
        let second = if number % 10 < 3 {
            Some(signing_key(kek)?)
        } else {
            None
        };
        let (sealed, public) = second.unzip();
        batch.signing_2.push(sealed);
        batch.public_2.push(public);
        let (method, secret) = match number % 20 {
            0 => (Some("none"), Some("{}".to_owned())),
            n if n % 2 == 0 => (Some("client_secret_basic"), Some(delegation(number)?)),
            _ => (None, None),
        };
        batch.auth_method.push(method);
        let sealed = secret
            .map(|secret| seal(kek, secret.into_bytes()))
            .transpose()?;
        batch.auth_config.push(sealed);
    }
    Ok(batch)
}

impl Batch {
    fn secrets(&self) -> usize {
        self.signing_1.len()
            + self.signing_2.iter().flatten().count()
            + self.auth_config.iter().flatten().count()
    }
}

/// A new signing key, sealed, and its public part.
fn signing_key(kek: &Kek) -> Result<(String, serde_json::Value), Box<dyn Error>> {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| "no key")?;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random)
        .map_err(|_| "the key does not parse")?;
    let spki = [&P256_SPKI[..], pair.public_key().as_ref()].concat();
    let public_pem = pem("PUBLIC KEY", &spki);
    let kid: String = Sha256::digest(public_pem.trim())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let sealed = seal(kek, pem("PRIVATE KEY", pkcs8.as_ref()).into_bytes())?;
    Ok((
        sealed,
        json!({"v": 1, "kid": kid, "alg": "ES256", "public_pem": public_pem}),
    ))
}

fn delegation(number: usize) -> Result<String, Box<dyn Error>> {
    let mut secret = [0; 24];
    getrandom::fill(&mut secret)?;
    let secret = STANDARD.encode(secret);
    Ok(json!({"client_id": format!("client-{number}"), "client_secret": secret}).to_string())
}

fn seal(kek: &Kek, mut secret: Vec<u8>) -> Result<String, Box<dyn Error>> {
    let plaintext = Plaintext::new(&mut secret);
    Ok(envelope::seal(kek, &plaintext, &mut Buffers::default())?)
}

/// PEM with lines of 64 characters (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

async fn insert(client: &tokio_postgres::Client, batch: &Batch) -> Result<(), Box<dyn Error>> {
    client
        .execute(
            "INSERT INTO tenants (organization_id, version, organization_name)
             SELECT id, 'V1-T' || (extract(epoch FROM now()) * 1000000)::bigint, id
             FROM unnest($1::text[]) AS id",
            &[&batch.ids],
        )
        .await?;
    client
        .execute(
            "INSERT INTO tenant_identity_config (
                 organization_id, issuer, default_audience, allowed_audiences, token_ttl_sec,
                 subject_prefix, encrypted_signing_key_1, signing_key_public_1,
                 encrypted_signing_key_2, signing_key_public_2, auth_method,
                 encrypted_auth_method_config)
             SELECT id, 'https://issuer.example/' || id, 'nico', '[\"nico\"]', 3600,
                 'spiffe://nico.local/' || id, key_1, public_1::jsonb, key_2, public_2::jsonb,
                 method::token_delegation_auth_method_t, config
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                 $7::text[]) AS row (id, key_1, public_1, key_2, public_2, method, config)",
            &[
                &batch.ids,
                &batch.signing_1,
                &batch
                    .public_1
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>(),
                &batch.signing_2,
                &batch
                    .public_2
                    .iter()
                    .map(|public| public.as_ref().map(ToString::to_string))
                    .collect::<Vec<_>>(),
                &batch.auth_method,
                &batch.auth_config,
            ],
        )
        .await?;
    Ok(())
}
