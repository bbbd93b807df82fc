//! URLs, parameters and their errors.

use super::*;

fn parse(url: &str) -> Result<Database, DatabaseError> {
    Database::parse(url, None, None::<Duration>)
}

fn servers_of(url: &str) -> Vec<(String, u16)> {
    let servers = parse(url).unwrap().connector.servers;
    let name = |server: &Server| match server.host_or_address() {
        Host::Tcp(name) => name,
        Host::Unix(path) => path.display().to_string(),
    };
    servers
        .iter()
        .map(|server| (name(server), server.port))
        .collect()
}

fn ssl_mode_of(url: &str) -> SslMode {
    parse(url).unwrap().connector.ssl_mode.mode
}

#[test]
fn without_sslmode_tls_is_required_unless_all_hosts_are_local() {
    for local in [
        "postgres://u:s3cr3t@127.0.0.1:5432/nico",
        "postgres://127.1.2.3/nico",
        "postgres://[::1]/nico",
        "postgres://::1/nico",
        "postgres://[::ffff:127.0.0.1]/nico",
        "postgres://localhost/nico",
        "postgres://LocalHost/nico",
        "postgres://%2Frun/nico",
        "postgres:///nico?host=%2Frun",
        "postgres:///nico?hostaddr=127.0.0.1",
        // The connection goes to the address.
        "postgres://db/nico?hostaddr=127.0.0.1",
        "postgres://db/nico?host=localhost",
        "postgres://localhost,127.0.0.1,[::1]/nico",
        "postgres:///nico?host=localhost,%2Frun",
    ] {
        assert_eq!(ssl_mode_of(local), SslMode::Prefer, "{local}");
    }
    for remote in [
        "postgres://u:s3cr3t@db:5432/nico",
        "postgres://10.0.0.1/nico",
        "postgres://0.0.0.0/nico",
        "postgres://128.0.0.1/nico",
        "postgres://[::2]/nico",
        "postgres://[fd00::1]/nico",
        "postgres://localhost.example/nico",
        "postgres://127.0.0.1.example/nico",
        "postgres:///nico?hostaddr=10.0.0.1",
        "postgres://localhost/nico?hostaddr=10.0.0.1",
        "postgres://localhost/nico?host=db",
        "postgres://localhost,db/nico",
        "postgres://db,localhost/nico",
        "postgres:///nico?host=%2Frun,db",
    ] {
        assert_eq!(ssl_mode_of(remote), SslMode::Require, "{remote}");
    }
    let allowed = ssl_mode_of("postgres://db/nico?sslmode=allow");
    assert_eq!(allowed, SslMode::Prefer);
}

#[test]
fn debug_shows_where_the_database_is_and_no_password() {
    let debug = format!("{:?}", parse("postgres://u:s3cr3t@db:5433/nico").unwrap());
    for shown in ["\"db\"", "5433", "\"nico\"", "\"u\"", "Require"] {
        assert!(debug.contains(shown), "no {shown} in {debug}");
    }
    assert!(!debug.contains("s3cr3t"), "{debug}");
}

#[test]
fn the_setting_wins_over_the_url() {
    let url = "postgres://db/nico?sslmode=disable&connect_timeout=3";
    let database = parse(url).unwrap();
    assert_eq!(database.connector.ssl_mode.mode, SslMode::Disable);
    let limit = database.connector.limit.to_string();
    assert_eq!(limit, "connect_timeout of database_url, 3s");
    let ours = Some(Duration::from_secs(7));
    let forced = Database::parse(url, Some(SslMode::Require), ours).unwrap();
    assert_eq!(forced.connector.ssl_mode.mode, SslMode::Require);
    let limit = forced.connector.limit.to_string();
    assert_eq!(limit, "[rewrap].connect_timeout, 7s");
    // In libpq, these mean no limit. Here the default limit applies.
    for none in ["", "?connect_timeout=0", "?connect_timeout=-1"] {
        let database = parse(&format!("postgres://db/nico{none}")).unwrap();
        assert_eq!(database.connector.limit.duration, CONNECT_TIMEOUT);
    }
}

#[test]
fn parameters_of_other_programs_are_ignored_and_named() {
    let database =
        parse("postgres://db/nico?statement-cache-capacity=5&ssl-mode=require&currentSchema=x");
    let database = database.unwrap();
    let ignored = ["statement-cache-capacity", "currentSchema"];
    assert_eq!(database.ignored_parameters(), ignored);
    assert_eq!(database.connector.ssl_mode.mode, SslMode::Require);
    assert_eq!(Database::meant_parameter("SSLMode"), Some("sslmode"));
}

#[test]
fn options_are_joined() {
    let url = "postgres://db/nico?options=-c+a%3D1&options[search_path]=x+y&options%5Bb%5D=c\\";
    let driver = parse(url).unwrap().driver;
    let options = r"-c a=1 -c search_path=x\ y -c b=c\\";
    assert_eq!(driver.get_options(), Some(options));
}

#[test]
fn servers_come_from_the_url_and_its_parameters() {
    for (url, servers) in [
        ("postgres://a,b:1/x", &[("a", 5432), ("b", 1)][..]),
        ("postgres://a,b/x?port=7", &[("a", 7), ("b", 7)]),
        ("postgres://a,b:9/x?port=7,8", &[("a", 7), ("b", 8)]),
        ("postgres://a:9/x?host=c", &[("c", 9)]),
        ("postgres:///x?host=%2Frun&port=7", &[("/run", 7)]),
        ("postgres://%2Frun:7/x", &[("/run", 7)]),
        (
            "postgres:///x?hostaddr=::1,10.0.0.1",
            &[("::1", 5432), ("10.0.0.1", 5432)],
        ),
        ("postgres://u:p@[::1]:7/x", &[("::1", 7)]),
    ] {
        let servers: Vec<_> = servers
            .iter()
            .map(|(name, port)| ((*name).to_owned(), *port))
            .collect();
        assert_eq!(servers_of(url), servers, "{url}");
    }
    for url in [
        "postgres:///x",
        "postgres://",
        "postgres://u:p@/x",
        "postgres:///x?host=",
    ] {
        assert!(matches!(parse(url), Err(DatabaseError::NoHost)), "{url}");
    }
    for url in [
        "postgres://a,b/x?port=1,2,3",
        "postgres://a,b/x?hostaddr=::1",
        "postgres://a/x?hostaddr=b",
        "postgres://a/x?port=http",
    ] {
        assert!(matches!(parse(url), Err(DatabaseError::Url(_))), "{url}");
    }
}

#[test]
fn with_several_servers_the_primary_is_used() {
    for (url, attributes) in [
        ("postgres://a/x", TargetSessionAttrs::Any),
        ("postgres://a,b/x", TargetSessionAttrs::ReadWrite),
        (
            "postgres://a,b/x?target_session_attrs=any",
            TargetSessionAttrs::Any,
        ),
        (
            "postgres://a/x?target_session_attrs=primary",
            TargetSessionAttrs::ReadWrite,
        ),
    ] {
        let driver = parse(url).unwrap().driver;
        assert_eq!(driver.get_target_session_attrs(), attributes, "{url}");
    }
}

#[test]
fn omitted_parts_of_the_url_are_listed_by_variable() {
    let nothing = parse("postgres://u:p@db:1/x?sslmode=require&sslrootcert=&options=a");
    // An empty `sslrootcert` is not a file.
    assert!(nothing.is_err());
    let all = [
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGPASSFILE",
        "PGDATABASE",
        "PGSSLMODE",
    ];
    let all: Vec<_> = all
        .into_iter()
        .chain(["PGSSLROOTCERT", "PGOPTIONS"])
        .collect();
    assert_eq!(parse("postgres://db").unwrap().left_out(), all);
    let full = "postgres://u:p@db:1/x?sslmode=prefer&sslrootcert=/x&options=a";
    assert!(parse(full).unwrap().left_out().is_empty());
    let ours = Database::parse(
        "postgres://u:p@db:1/x",
        Some(SslMode::Disable),
        None::<Duration>,
    );
    assert_eq!(ours.unwrap().left_out(), ["PGSSLROOTCERT", "PGOPTIONS"]);
}

#[test]
fn user_and_password_end_at_the_last_at_sign() {
    for url in [
        "postgres://u:a@s3cr3t@db/nico",
        "postgres://u:a%40s3cr3t@db/nico",
        "postgres://u:a@s3cr3t@db/nico?application_name=x@y",
    ] {
        let driver = parse(url).unwrap().driver;
        assert_eq!(driver.get_password(), Some(b"a@s3cr3t".as_slice()), "{url}");
        assert_eq!(servers_of(url), [("db".to_owned(), 5432)]);
    }
}

#[test]
fn errors_do_not_quote_the_url() {
    for url in [
        "postgres://u:s3cr3t@db/nico?sslmode=s3cr3t",
        "postgres://u:s3cr3t@db/nico?connect_timeout=s3cr3t",
        "postgres://u:s3cr3t@db/nico?target_session_attrs=s3cr3t",
        "postgres://u:s3cr3t@db/nico?keepalives=s3cr3t",
        "postgres://u:s3cr3t@db/nico?port=s3cr3t",
        "postgres://u:s3cr3t@db/nico?hostaddr=s3cr3t",
        "postgres://u:s3cr3t@/nico",
        "postgres://u:s3cr3t@db/nico?sslmode=verify-full",
        "postgres://u:s3cr3t@db/nico?sslmode=verify-full&sslrootcert=/nowhere",
    ] {
        let error = parse(url).unwrap_err().to_string();
        assert!(!error.contains("s3cr3t"), "{error}");
    }
}
