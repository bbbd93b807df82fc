//! The subcommands other than `serve`: output, effect, errors.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use crate::database::Database;
use crate::grpcurl::run;
use crate::leaks;
use crate::seal::Key;
use crate::seed::Org;
use crate::site::{Exit, Site, run_binary};

async fn nico_rewrap(args: &[&str]) -> Exit {
    let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
    run_binary(&args, &[]).await
}

#[tokio::test]
async fn version_and_help_give_the_basic_facts() {
    let Exit { code, stdout, .. } = nico_rewrap(&["--version"]).await;
    let (version, revision) = stdout.trim().split_once(" (").unwrap();
    assert_eq!(
        (code, version),
        (0, concat!("nico-rewrap ", env!("CARGO_PKG_VERSION")))
    );
    let revision = revision.strip_suffix(')').unwrap();
    assert!(
        revision == "unknown"
            || revision.len() >= 12 && revision.chars().all(|c| c.is_ascii_hexdigit()),
        "{stdout}"
    );

    let help: &[(&[&str], &[&str])] = &[
        (
            &["--help"],
            &[
                "status",
                "can-i-delete",
                "serve",
                "state",
                "keys",
                "healthcheck",
                "dev",
                "machine-identity secrets",
                "current_encryption_key_id",
                "nico-rewrap rotate",
                "docs/rotate.md",
            ],
        ),
        (
            &["serve", "--help"],
            &[
                "--config <FILE>",
                "later files override earlier ones",
                "NICO_REWRAP__LISTEN",
                "NICO_API_DATABASE_URL",
                "CARBIDE_CREDENTIALS_FILE_PATH",
                "78",
                "lock_timeout [default: 2s] how long a run waits for a locked row",
            ],
        ),
        (
            &["dev", "migrate", "--help"],
            &[
                "--config <FILE>",
                "empty database",
                "nico-api owns the tables",
            ],
        ),
        (&["keys", "--help"], &["generate"]),
        (
            &["keys", "generate", "--help"],
            &["--id <ID>", "--config <FILE>", "--into <FILE>"],
        ),
        (&["keygen", "--help"], &["--id <ID>", "--into <FILE>"]),
        (
            &["healthcheck", "--help"],
            &["--config <FILE>", "--live", "/readyz", "metrics_endpoint"],
        ),
    ];
    for (args, words) in help {
        let Exit {
            code,
            stdout,
            stderr,
        } = nico_rewrap(args).await;
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        let unwrapped = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in *words {
            assert!(
                unwrapped.contains(word),
                "{args:?}: no {word:?} in {stdout}"
            );
        }
    }
}

#[tokio::test]
async fn unknown_arguments_are_refused() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["rewrap"], "unrecognized subcommand 'rewrap'"),
        (&["serve"], "--config <FILE>"),
        (
            &["serve", "--config", "/dev/null", "--port", "1"],
            "unexpected argument '--port'",
        ),
        (&["serve", "site.toml"], "unexpected argument 'site.toml'"),
        (&["migrate"], "--config <FILE>"),
        (&["keygen", "kv2"], "unexpected argument 'kv2'"),
        (&["keys"], "Usage"),
        (&["keys", "make"], "unrecognized subcommand 'make'"),
    ];
    for (args, words) in cases {
        let exit = nico_rewrap(args).await;
        assert_eq!((exit.code, exit.stdout.as_str()), (2, ""), "{args:?}");
        assert!(exit.stderr.contains(words), "{args:?}: {}", exit.stderr);
    }
}

/// The only line of stdout, parsed as a JSON member, and stderr.
async fn keygen(args: &[&str]) -> (String, Key, String) {
    let Exit {
        code,
        stdout,
        stderr,
    } = nico_rewrap(&[&["keygen"], args].concat()).await;
    assert_eq!((code, stdout.lines().count()), (0, 1), "{stdout}{stderr}");
    let member: Map<String, Value> = serde_json::from_str(&format!("{{{stdout}}}")).unwrap();
    let (id, text) = member.into_iter().next().unwrap();
    let text = text.as_str().unwrap();
    leaks::forms(text.as_bytes())
        .iter()
        .for_each(|form| assert!(!stderr.contains(form), "{stderr}"));
    assert!(
        !stderr.contains(text),
        "the key stands where it is asked for, and nowhere else: {stderr}"
    );
    (
        id,
        BASE64_STANDARD.decode(text).unwrap().try_into().unwrap(),
        stderr,
    )
}

#[tokio::test]
async fn keygen_prints_a_line_for_the_secrets_file() {
    let (id, key, advice) = keygen(&[]).await;
    let (date, suffix) = id.split_once('-').unwrap();
    assert!(
        date.starts_with("kv20")
            && date.len() == 10
            && date[2..].bytes().all(|b| b.is_ascii_digit()),
        "{id}"
    );
    assert!(
        advice.contains(&format!("key check value is {suffix}")),
        "{advice} {id}"
    );
    assert!(advice.contains("--config"), "{advice}");
    let (again, other_key, _) = keygen(&[]).await;
    assert!(key != other_key && again != id, "{id} {again}");
    assert!(
        advice.contains("machine_identity.encryption_keys"),
        "{advice}"
    );
    for id in ["kv2", "with \"quotes\" and \\", "\u{fc}", &"k".repeat(255)] {
        assert_eq!(keygen(&["--id", id]).await.0, id);
    }
    for bad in ["", &"k".repeat(256)] {
        let Exit {
            code,
            stdout,
            stderr,
        } = nico_rewrap(&["keygen", "--id", bad]).await;
        assert_eq!((code, stdout.as_str()), (64, ""), "{stderr}");
        assert!(
            stderr.contains("--id: a key id has 1 to 255 bytes"),
            "{stderr}"
        );
    }
}

#[tokio::test]
async fn the_server_logs_the_check_value_that_keygen_printed() {
    let (id, key, advice) = keygen(&["--id", "kv-new"]).await;
    let database = Database::migrated().await;
    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let mut keys = crate::seal::keys(&["kv1"]);
    keys.insert(id.clone(), key);
    let server = Site::new(&database).keys(&keys).target(&id).start().await;
    let told = server
        .logs_with("key")
        .into_iter()
        .find(|line| line["key_id"] == "kv-new")
        .unwrap();
    let value = told["key_check_value"].as_str().unwrap();
    assert!(
        value.len() == 8 && advice.contains(&format!("key check value is {value}.")),
        "{advice} {told}"
    );
    assert_eq!(run(&server, false).await.rows_updated, 1);
}

/// For each column its type, whether it may be NULL, and its default, as in section 4 of the
/// contract.
const TENANTS: &str = "
    organization_id text NO
    version character varying(64) NO
    organization_name text NO";
const TENANT_IDENTITY_CONFIG: &str = "
    organization_id text NO
    issuer character varying(512) NO
    default_audience character varying(255) NO
    allowed_audiences jsonb NO
    token_ttl_sec integer NO
    subject_prefix character varying(255) NO
    enabled boolean NO true
    created_at timestamp with time zone NO now()
    updated_at timestamp with time zone NO now()
    encrypted_signing_key_1 text YES
    encrypted_signing_key_2 text YES
    signing_key_public_1 jsonb YES
    signing_key_public_2 jsonb YES
    current_signing_key_slot tenant_identity_current_signing_key_slot_t NO 'signing_key_1'::tenant_identity_current_signing_key_slot_t
    non_active_slot_expires_at timestamp with time zone YES
    token_endpoint character varying(512) YES
    auth_method token_delegation_auth_method_t YES
    encrypted_auth_method_config text YES
    subject_token_audience character varying(255) YES
    token_delegation_created_at timestamp with time zone YES";
const KEYS: &str = "
    PRIMARY KEY (organization_id)
    FOREIGN KEY (organization_id) REFERENCES tenants(organization_id) ON DELETE CASCADE";

async fn migrate(database: &Database) -> Exit {
    let exit = Site::new(database).run("migrate").await;
    leaks::assert_none(&exit.stdout);
    leaks::assert_none(&exit.stderr);
    exit
}

async fn lines(database: &Database, sql: &str) -> Vec<String> {
    let rows = database.client().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn columns(database: &Database, table: &str) -> Vec<String> {
    let sql = "SELECT concat_ws(' ', column_name, CASE data_type WHEN 'USER-DEFINED' THEN udt_name ELSE data_type END
            || coalesce('(' || character_maximum_length || ')', ''), is_nullable, column_default)
        FROM information_schema.columns WHERE table_name = '?' ORDER BY ordinal_position";
    lines(database, &sql.replace('?', table)).await
}

/// All user-created objects of a database.
async fn everything(database: &Database) -> Vec<String> {
    let sql = "SELECT relkind::text || relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT 't' || typname FROM pg_type WHERE typnamespace = 'public'::regnamespace ORDER BY 1";
    lines(database, sql).await
}

fn trimmed(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}

#[tokio::test]
async fn migrate_creates_the_schema_of_the_contract_in_an_empty_database() {
    let database = Database::new().await;
    let exit = migrate(&database).await;
    assert_eq!(
        (exit.code, exit.stdout.as_str()),
        (0, "2 migrations applied\n"),
        "{}",
        exit.stderr
    );
    // The contract says that this table has other columns, too.
    assert_eq!(columns(&database, "tenants").await[..3], trimmed(TENANTS));
    assert_eq!(
        columns(&database, "tenant_identity_config").await,
        trimmed(TENANT_IDENTITY_CONFIG)
    );
    let constraints = "SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = 'tenant_identity_config'::regclass AND contype IN ('p', 'f') ORDER BY contype DESC";
    assert_eq!(lines(&database, constraints).await, trimmed(KEYS));
    let enums = "SELECT t.typname || ': ' || string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
        FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid GROUP BY t.typname ORDER BY t.typname";
    assert_eq!(
        lines(&database, enums).await,
        [
            "tenant_identity_current_signing_key_slot_t: signing_key_1, signing_key_2",
            "token_delegation_auth_method_t: none, client_secret_basic",
        ]
    );

    Org::under("acme", "kv1")
        .insert(&database.client().await)
        .await;
    let before = everything(&database).await;
    let again = migrate(&database).await;
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (0, "0 migrations applied\n"),
        "{}",
        again.stderr
    );
    assert_eq!(everything(&database).await, before);
    let server = Site::new(&database).start().await;
    assert_eq!(run(&server, false).await.rows_updated, 1);
}

#[tokio::test]
async fn migrate_does_not_change_a_database_that_it_did_not_create() {
    let foreign = [
        "CREATE TABLE tenants (id int)",
        "CREATE TABLE tenant_identity_config (id int)",
        "CREATE TYPE token_delegation_auth_method_t AS ENUM ('x')",
        "CREATE VIEW tenants AS SELECT 1 AS id",
    ];
    for ddl in foreign {
        let database = Database::new().await;
        database.client().await.batch_execute(ddl).await.unwrap();
        let before = everything(&database).await;
        let exit = migrate(&database).await;
        assert_eq!(
            (exit.code, exit.stdout.as_str()),
            (1, ""),
            "{}",
            exit.stderr
        );
        assert!(
            exit.stderr.contains("use an empty database"),
            "{}",
            exit.stderr
        );
        assert_eq!(everything(&database).await, before, "{ddl}");
    }
    // The tables that nico-api's own migrations create.
    let database = Database::migrated().await;
    let before = everything(&database).await;
    assert_eq!(migrate(&database).await.code, 1);
    assert_eq!(everything(&database).await, before);
    let other = Database::new().await;
    other
        .client()
        .await
        .batch_execute("CREATE TABLE somebody_elses (id int)")
        .await
        .unwrap();
    assert_eq!(migrate(&other).await.code, 0);
}

#[tokio::test]
async fn migrate_reads_only_the_database_settings() {
    let database = Database::new().await;
    let site = Site::new(&database)
        .missing_secrets()
        .without_section("tls")
        .without_section("auth");
    assert_eq!(
        site.without_section("machine_identity")
            .run("migrate")
            .await
            .code,
        0
    );

    let Exit { code, stderr, .. } = Site::new(&database)
        .unset("database_url")
        .run("migrate")
        .await;
    assert!(
        code == 78 && stderr.contains("site.toml: database_url: is missing; set it"),
        "{code} {stderr}"
    );
    let nowhere = format!("{}_nowhere", database.url());
    let Exit { code, stderr, .. } = Site::with_url(&nowhere).run("migrate").await;
    assert!(
        code == 1 && stderr.contains("database_url: "),
        "{code} {stderr}"
    );
    leaks::assert_none(&stderr);
}

#[tokio::test]
async fn migrate_times_out_if_the_server_is_silent() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://nico@{}/nico", silent.local_addr().unwrap());
    let site = Site::with_url(&url).set("rewrap.connect_timeout", "\"300ms\"");
    let Exit { code, stderr, .. } = site.run("migrate").await;
    let words = "database_url: no answer within [rewrap].connect_timeout, 300ms";
    assert!(code == 1 && stderr.contains(words), "{code} {stderr}");
}
