//! Programs that `make bench` compares with nico-rewrap: other ways to re-wrap the same
//! rows, and tenants that write at the same time.
//!
//! Each program connects and prepares its statements, prints `ready`, and waits for a line
//! on standard input. Then it works, prints `done`, and waits until its standard input is
//! closed. So the benchmark script can read clocks and CPU times while the program is idle.

#[path = "../benches/plain/mod.rs"]
mod plain;

use std::{
    collections::BTreeMap,
    error::Error,
    fmt::Write as _,
    fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Parser, Subcommand, ValueEnum};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_postgres::{Client, NoTls, Row, Statement};

/// The target key id. The envelopes name the old keys.
const TARGET: &str = "kv2";

/// Number of adjacent rows that one connection of the ceiling takes at a time. If all
/// connections shared adjacent rows, they would wait for each other's pages.
const CHUNK: usize = 32;

/// Number of connections of the tenants. One slow write must not delay the next.
const TENANT_CONNECTIONS: u32 = 4;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
type Envelopes = [Option<String>; 3];
type Keys = BTreeMap<String, [u8; 32]>;

#[derive(Parser)]
struct Args {
    /// postgres://…, without TLS.
    #[arg(long)]
    database: String,
    /// The secrets file.
    #[arg(long)]
    secrets: PathBuf,
    #[command(subcommand)]
    way: Way,
}

#[derive(Subcommand)]
enum Way {
    /// The algorithm of nico-api: one row after the other, on one connection.
    Reference,
    /// nico-rewrap's row transaction with texts that are computed beforehand. It shows how
    /// fast Postgres can commit one transaction per row.
    Ceiling {
        #[arg(long)]
        connections: usize,
        /// Number of statements in flight on each connection.
        #[arg(long)]
        in_flight: usize,
        #[arg(long)]
        commit: Commit,
    },
    /// Tenants that write their own rows at a fixed rate, until the second line on standard
    /// input. Each write's latency in microseconds goes to a line of FILE.
    Tenants {
        /// Writes per second.
        #[arg(long)]
        rate: u32,
        #[arg(long, value_name = "FILE")]
        latencies: PathBuf,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Commit {
    /// Asynchronous for each row, with one durable commit at the end.
    Barrier,
    /// Durable for each row.
    Each,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.way {
        Way::Reference => reference(&args),
        Way::Ceiling {
            connections,
            in_flight,
            commit,
        } => ceiling(&args, connections, in_flight, commit),
        Way::Tenants {
            rate,
            ref latencies,
        } => tenants(&args, rate, latencies),
    }
}

// ---- nico-api's algorithm

fn reference(args: &Args) -> Result<()> {
    let keys = read_keys(args)?;
    // One thread, so that a round trip does not wake another thread.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let mut client = runtime.block_on(connect(args))?;
    say("ready");
    hear()?;
    runtime.block_on(rewrap_in_turn(&mut client, &keys))?;
    say("done");
    hear()
}

async fn rewrap_in_turn(client: &mut Client, keys: &Keys) -> Result<()> {
    const ROW: &str = "SELECT encrypted_signing_key_1, encrypted_signing_key_2, \
        encrypted_auth_method_config FROM tenant_identity_config WHERE organization_id = $1";
    let list = "SELECT organization_id FROM tenant_identity_config ORDER BY organization_id";
    let read = client.prepare(ROW).await?;
    let lock = client.prepare(&format!("{ROW} FOR UPDATE")).await?;
    let update = "UPDATE tenant_identity_config SET encrypted_signing_key_1 = $2, \
        encrypted_signing_key_2 = $3, encrypted_auth_method_config = $4, updated_at = now() \
        WHERE organization_id = $1";
    let update = client.prepare(update).await?;
    let lock_tenant = "SELECT version FROM tenants WHERE organization_id = $1 FOR UPDATE";
    let lock_tenant = client.prepare(lock_tenant).await?;
    let update_tenant = "UPDATE tenants SET version = $2 WHERE organization_id = $1";
    let update_tenant = client.prepare(update_tenant).await?;

    for row in client.query(list, &[]).await? {
        let id: &str = row.try_get(0)?;
        let found = texts(&client.query_one(&read, &[&id]).await?, 0)?;
        let [new_1, new_2, new_3] = rewrapped(keys, &found)?;
        let transaction = client.transaction().await?;
        transaction.query_one(&lock, &[&id]).await?;
        transaction
            .execute(&update, &[&id, &new_1, &new_2, &new_3])
            .await?;
        let tenant = transaction.query_one(&lock_tenant, &[&id]).await?;
        let version = next_version(tenant.try_get(0)?)?;
        transaction
            .execute(&update_tenant, &[&id, &version])
            .await?;
        transaction.commit().await?;
    }
    Ok(())
}

fn next_version(version: &str) -> Result<String> {
    let counter = version
        .strip_prefix('V')
        .and_then(|rest| rest.split_once("-T"))
        .ok_or("not a version")?
        .0;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    Ok(format!("V{}-T{now}", counter.parse::<u64>()? + 1))
}

// ---- the ceiling

/// The statement of `src/store/replace.rs`, without its name.
const REPLACE_ROW: &str = "WITH written AS (\
       UPDATE tenant_identity_config \
       SET encrypted_signing_key_1 = $2, encrypted_signing_key_2 = $3, \
           encrypted_auth_method_config = $4, updated_at = now() \
         WHERE organization_id = $1 \
         AND encrypted_signing_key_1 IS NOT DISTINCT FROM $5 \
         AND encrypted_signing_key_2 IS NOT DISTINCT FROM $6 \
         AND encrypted_auth_method_config IS NOT DISTINCT FROM $7 \
       RETURNING organization_id\
     ) \
     UPDATE tenants SET version = CASE \
       WHEN version = $8 THEN $9 \
       WHEN version ~ '^V[0-9]{1,20}-T[0-9]{1,19}$' \
         AND substring(version from '^V([0-9]+)')::numeric < 18446744073709551615 \
       THEN 'V' || substring(version from '^V([0-9]+)')::numeric + 1 || '-T' \
         || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint \
       END \
     FROM written WHERE tenants.organization_id = written.organization_id";

/// The write of one row, with all values computed.
struct Write {
    organization_id: String,
    old: Envelopes,
    new: Envelopes,
    version: String,
    next_version: String,
}

fn ceiling(args: &Args, connections: usize, in_flight: usize, commit: Commit) -> Result<()> {
    let keys = read_keys(args)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let clients = runtime.block_on(connect_writers(args, connections, commit))?;
    let writes = runtime.block_on(compute_writes(args, &keys))?;
    say("ready");
    hear()?;
    runtime.block_on(write_all(clients, writes, in_flight))?;
    if let Commit::Barrier = commit {
        runtime.block_on(make_durable(args))?;
    }
    say("done");
    hear()
}

async fn connect_writers(
    args: &Args,
    connections: usize,
    commit: Commit,
) -> Result<Vec<(Client, Statement)>> {
    let mut writers = Vec::new();
    for _ in 0..connections {
        let client = connect(args).await?;
        if let Commit::Barrier = commit {
            client.batch_execute("SET synchronous_commit = off").await?;
        }
        let statement = client.prepare(REPLACE_ROW).await?;
        writers.push((client, statement));
    }
    Ok(writers)
}

async fn compute_writes(args: &Args, keys: &Keys) -> Result<Vec<Write>> {
    let list = "SELECT organization_id, encrypted_signing_key_1, encrypted_signing_key_2, \
        encrypted_auth_method_config, version \
        FROM tenant_identity_config JOIN tenants USING (organization_id) ORDER BY organization_id";
    let client = connect(args).await?;
    let micros = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let none: [&str; 0] = [];
    let rows = client.query_raw(list, none).await?;
    rows.map(|row| {
        let row = row?;
        let old = texts(&row, 1)?;
        let version: String = row.try_get(4)?;
        let count = version[1..].split('-').next().unwrap_or_default();
        let next: u64 = count.parse::<u64>()? + 1;
        Ok(Write {
            organization_id: row.try_get(0)?,
            next_version: format!("V{next}-T{micros}"),
            version,
            new: rewrapped(keys, &old)?,
            old,
        })
    })
    .try_collect()
    .await
}

async fn write_all(
    clients: Vec<(Client, Statement)>,
    writes: Vec<Write>,
    in_flight: usize,
) -> Result<()> {
    let writes = Arc::new(writes);
    let next_row = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for (client, statement) in clients {
        let (writes, next_row) = (writes.clone(), next_row.clone());
        workers.spawn(async move {
            let rows = std::iter::from_fn(|| {
                let start = next_row.fetch_add(CHUNK, Relaxed);
                (start < writes.len()).then(|| start..writes.len().min(start + CHUNK))
            });
            stream::iter(rows.flatten())
                .map(|row| replace(&client, &statement, &writes[row]))
                .buffer_unordered(in_flight)
                .try_collect::<()>()
                .await
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(())
}

async fn replace(client: &Client, statement: &Statement, write: &Write) -> Result<()> {
    let ([new_1, new_2, new_3], [old_1, old_2, old_3]) = (&write.new, &write.old);
    let id = &write.organization_id;
    let (version, next) = (&write.version, &write.next_version);
    let written = client
        .execute(
            statement,
            &[id, new_1, new_2, new_3, old_1, old_2, old_3, version, next],
        )
        .await?;
    match written {
        1 => Ok(()),
        _ => Err(format!("{id} was not written").into()),
    }
}

/// A commit is flushed only if its transaction wrote WAL, and it then flushes all earlier
/// WAL too. The message is the WAL that this transaction writes. Nobody reads it.
async fn make_durable(args: &Args) -> Result<()> {
    let barrier = "SELECT pg_logical_emit_message(true, 'barrier', '')";
    connect(args).await?.batch_execute(barrier).await?;
    Ok(())
}

// ---- tenants who write

fn tenants(args: &Args, rate: u32, latencies: &PathBuf) -> Result<()> {
    let runtime = Runtime::new()?;
    let (clients, ids) = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..TENANT_CONNECTIONS {
            clients.push(connect(args).await?);
        }
        let list = "SELECT organization_id FROM tenant_identity_config";
        let ids = clients[0].query(list, &[]).await?;
        let ids = ids
            .iter()
            .map(|row| row.try_get(0))
            .collect::<std::result::Result<_, _>>()?;
        Result::Ok((clients, Arc::<Vec<String>>::new(ids)))
    })?;
    say("ready");
    hear()?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let interval = Duration::from_secs(TENANT_CONNECTIONS.into()) / rate;
    let start = Instant::now();
    for (client, number) in clients.into_iter().zip(0..) {
        let first = start + interval * number / TENANT_CONNECTIONS;
        let writing = write_as_tenants(client, ids.clone(), first, interval, stop.clone());
        tasks.spawn_on(writing, runtime.handle());
    }
    hear()?;
    stop.store(true, Relaxed);

    let mut lines = String::new();
    while let Some(task) = runtime.block_on(tasks.join_next()) {
        for latency in task?? {
            writeln!(lines, "{}", latency.as_micros())?;
        }
    }
    fs::write(latencies, lines)?;
    say("done");
    hear()
}

/// Writes at `first` and then at every `interval`. If the previous write delays a write,
/// its latency is counted from the time when it was due.
async fn write_as_tenants(
    mut client: Client,
    ids: Arc<Vec<String>>,
    first: Instant,
    interval: Duration,
    stop: Arc<AtomicBool>,
) -> Result<Vec<Duration>> {
    let row = "UPDATE tenant_identity_config SET token_ttl_sec = token_ttl_sec + 1, \
        updated_at = now() WHERE organization_id = $1";
    let row = client.prepare(row).await?;
    let tenant = "UPDATE tenants SET version = 'V' \
        || substring(version from '^V([0-9]+)')::numeric + 1 || '-T' \
        || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint WHERE organization_id = $1";
    let tenant = client.prepare(tenant).await?;

    let mut latencies = Vec::new();
    let mut due = first;
    loop {
        let late = Instant::now() > due;
        if !late {
            sleep_until(due).await;
        }
        if stop.load(Relaxed) {
            return Ok(latencies);
        }
        let begin = if late { due } else { Instant::now() };
        let id = &ids[fastrand::usize(..ids.len())];
        let transaction = client.transaction().await?;
        transaction.execute(&row, &[id]).await?;
        transaction.execute(&tenant, &[id]).await?;
        transaction.commit().await?;
        latencies.push(begin.elapsed());
        due += interval;
    }
}

// ---- shared functions

async fn connect(args: &Args) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(&args.database, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn read_keys(args: &Args) -> Result<Keys> {
    let file: serde_json::Value = serde_json::from_slice(&fs::read(&args.secrets)?)?;
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

/// The three texts of a row, beginning with the column `first`.
fn texts(row: &Row, first: usize) -> Result<Envelopes> {
    Ok([
        row.try_get(first)?,
        row.try_get(first + 1)?,
        row.try_get(first + 2)?,
    ])
}

/// Opens and seals each text, without reading the result back.
fn rewrapped(keys: &Keys, old: &Envelopes) -> Result<Envelopes> {
    let mut new = Envelopes::default();
    for (new, old) in new.iter_mut().zip(old) {
        if let Some(old) = old {
            let envelope = plain::parse(old);
            let key = keys.get(&envelope.key_id).ok_or("no such key")?;
            let secret = plain::open(key, &envelope);
            *new = Some(plain::seal(&keys[TARGET], TARGET, &secret));
        }
    }
    Ok(new)
}

#[expect(
    clippy::print_stdout,
    reason = "the benchmark script waits for this word"
)]
fn say(word: &str) {
    println!("{word}");
}

/// Waits for a line or the end of standard input.
fn hear() -> Result<()> {
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}
