//! A stand-in for nico-api in the container tests. It makes the writes of tenants, with
//! nico-api's order of locks and its own version bumps. It can also decrypt every secret,
//! with code that it does not share with the service.

#[path = "../benches/plain/mod.rs"]
mod plain;

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Parser, Subcommand};
use nico_rewrap::store::database::Database;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use sha2::{Digest, Sha256};
use tokio_postgres::Client;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Keys = BTreeMap<String, [u8; 32]>;

#[derive(Parser)]
struct Args {
    /// postgres://…, with `sslmode` and `sslrootcert` as for nico-rewrap.
    #[arg(long)]
    database: String,
    /// The secrets file, in JSON.
    #[arg(long)]
    secrets: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Opens every secret. Prints how many secrets each key has, and a digest of all
    /// plaintexts, which a re-wrap must not change.
    Look,
    /// Rotates signing keys while COMMAND runs, and then checks that no rotation was lost.
    /// Exits with COMMAND's exit code.
    Rotate {
        /// The id of the key that seals new signing keys.
        #[arg(long)]
        key_id: String,
        /// The command to run at the same time.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        meanwhile: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let keys = read_keys(&args.secrets)?;
    let database = Database::parse(&args.database, None, None::<Duration>)?;
    let mut client = database.connect().await?;
    match args.command {
        Command::Look => look(&client, &keys).await,
        Command::Rotate { key_id, meanwhile } => {
            rotate(&mut client, &keys, &key_id, &meanwhile).await
        }
    }
}

// ---- looking

async fn look(client: &Client, keys: &Keys) -> Result<ExitCode> {
    let sql = "SELECT organization_id, slot, text FROM tenant_identity_config, \
        LATERAL (VALUES (1, encrypted_signing_key_1), (2, encrypted_signing_key_2), \
            (3, encrypted_auth_method_config)) AS secrets (slot, text) \
        WHERE text <> '' ORDER BY organization_id COLLATE \"C\", slot";
    let mut counts = BTreeMap::<_, usize>::new();
    let mut digest = Sha256::new();
    for row in client.query(sql, &[]).await? {
        let (id, slot): (&str, i32) = (row.try_get(0)?, row.try_get(1)?);
        let envelope = plain::parse(row.try_get(2)?);
        let key = keys.get(&envelope.key_id).ok_or("no such key")?;
        digest.update(format!("{id} {slot} "));
        digest.update(plain::open(key, &envelope));
        *counts.entry(envelope.key_id).or_default() += 1;
    }
    for (key_id, count) in counts {
        say(&format!("{key_id} {count}"));
    }
    say(&format!("digest {}", STANDARD.encode(digest.finalize())));
    Ok(ExitCode::SUCCESS)
}

// ---- writing

/// The last write of this program to an organization.
struct Written {
    slot: usize,
    signing_key: String,
    version: u64,
}

async fn rotate(
    client: &mut Client,
    keys: &Keys,
    key_id: &str,
    meanwhile: &[String],
) -> Result<ExitCode> {
    let key = keys.get(key_id).ok_or("no such key in the secrets file")?;
    let list = "SELECT organization_id FROM tenant_identity_config";
    let rows = client.query(list, &[]).await?;
    let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut written = BTreeMap::new();
    let mut rotations = 0;

    let over = AtomicBool::new(false);
    let command = async {
        let status = tokio::process::Command::new(&meanwhile[0])
            .args(&meanwhile[1..])
            .status()
            .await;
        over.store(true, Relaxed);
        status
    };
    let rotating = async {
        while !over.load(Relaxed) {
            let id = &ids[fastrand::usize(..ids.len())];
            let known = written.get(id).map(|known: &Written| known.version);
            let new = rotate_one(client, id, |secret| plain::seal(key, key_id, secret)).await?;
            if known.is_some_and(|known| known >= new.version) {
                return Err(format!("{id}: the version went back").into());
            }
            written.insert(id.clone(), new);
            rotations += 1;
        }
        Result::Ok(())
    };
    let (status, rotated) = tokio::join!(command, rotating);
    rotated?;

    for (id, written) in &written {
        find(client, keys, id, written).await?;
    }
    warn(&format!(
        "rotations={rotations} organizations={} lost=0",
        written.len()
    ));
    let code = status?.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

/// Writes a new signing key to the slot that is not current, and makes this slot current. It
/// does not change the public key, because nobody issues tokens in these tests.
async fn rotate_one(
    client: &mut Client,
    id: &str,
    seal: impl Fn(&[u8]) -> String,
) -> Result<Written> {
    let transaction = client.transaction().await?;
    let lock = "SELECT CASE current_signing_key_slot WHEN 'signing_key_1' THEN 2 ELSE 1 END \
        FROM tenant_identity_config WHERE organization_id = $1 FOR UPDATE";
    let slot: i32 = transaction.query_one(lock, &[&id]).await?.try_get(0)?;
    let signing_key = signing_key()?;
    let update = format!(
        "UPDATE tenant_identity_config SET encrypted_signing_key_{slot} = $2, \
            current_signing_key_slot = 'signing_key_{slot}', updated_at = now() \
            WHERE organization_id = $1"
    );
    let sealed = seal(signing_key.as_bytes());
    transaction.execute(&update, &[&id, &sealed]).await?;
    let bump = "UPDATE tenants SET version = 'V' \
        || substring(version from '^V([0-9]+)')::numeric + 1 || '-T' \
        || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
        WHERE organization_id = $1 RETURNING version";
    let version = transaction.query_one(bump, &[&id]).await?;
    let version = number(version.try_get(0)?)?;
    transaction.commit().await?;
    Ok(Written {
        slot: usize::try_from(slot)?,
        signing_key,
        version,
    })
}

/// Fails if the organization does not have the signing key that this program wrote last, or if
/// its version is older.
async fn find(client: &Client, keys: &Keys, id: &str, written: &Written) -> Result<()> {
    let sql = "SELECT version, encrypted_signing_key_1, encrypted_signing_key_2 \
        FROM tenant_identity_config JOIN tenants USING (organization_id) \
        WHERE organization_id = $1";
    let row = client.query_one(sql, &[&id]).await?;
    let envelope = plain::parse(row.try_get(written.slot)?);
    let key = keys.get(&envelope.key_id).ok_or("no such key")?;
    if plain::open(key, &envelope) != written.signing_key.as_bytes() {
        return Err(format!("{id}: lost the signing key that was written last").into());
    }
    if number(row.try_get(0)?)? < written.version {
        return Err(format!("{id}: the version went back").into());
    }
    Ok(())
}

fn signing_key() -> Result<String> {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|_| "no signing key")?;
    let base64 = STANDARD.encode(der.as_ref());
    Ok(format!(
        "-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n"
    ))
}

fn number(version: &str) -> Result<u64> {
    let number = version.strip_prefix('V').and_then(|v| v.split('-').next());
    Ok(number.ok_or("not a version")?.parse()?)
}

fn read_keys(file: &PathBuf) -> Result<Keys> {
    let file: serde_json::Value = serde_json::from_slice(&fs::read(file)?)?;
    let keys = file["machine_identity"]["encryption_keys"].as_object();
    keys.ok_or("no keys in the secrets file")?
        .iter()
        .map(|(id, key)| {
            let key = STANDARD.decode(key.as_str().ok_or("a key is not text")?)?;
            let key = key.try_into().map_err(|_| "a key has not 32 bytes")?;
            Ok((id.clone(), key))
        })
        .collect()
}

#[expect(clippy::print_stdout, reason = "the output of the command")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "standard output belongs to COMMAND")]
fn warn(line: &str) {
    eprintln!("{line}");
}
