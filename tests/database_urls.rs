//! The `database_url`: errors that do not quote it, warnings, and the URLs that nico-api accepts.

use crate::config_sources::warned;
use crate::configuration::{accepted, refused};
use crate::database::Database;
use crate::leaks;
use crate::pg::PASSWORD;
use crate::site::{Site, quote};

#[tokio::test]
async fn an_error_about_a_bad_database_url_does_not_quote_it() {
    let database = Database::migrated().await;
    let (p, url) = (PASSWORD, database.url());
    let bad = [
        (
            format!("mysql://u:{p}@h/d"),
            "is not of the form postgres://",
        ),
        (
            format!("host=h password={p}"),
            "is not of the form postgres://",
        ),
        (p.to_owned(), "is not of the form postgres://"),
        (
            format!("postgres://u:{p}@h:{p}/d"),
            "is not of the form postgres://",
        ),
        (
            format!("postgres://u:{p}%ff@h/%ff"),
            "is not of the form postgres://",
        ),
        (format!("postgres://u:{p}@/d"), "names no host"),
        (
            format!("postgres://u:{p}@fd00::5:6432/d"),
            "write the IPv6 address in brackets",
        ),
        (
            format!("{url}?sslmode={p}"),
            "sslmode must be one of disable, allow, prefer, require, verify-ca and verify-full",
        ),
        (
            format!("{url}?sslmode=verify-full"),
            "need sslrootcert=FILE in the URL",
        ),
        (
            format!("{url}?sslmode=verify-ca&sslrootcert="),
            "sslrootcert: ",
        ),
        (
            format!("{url}?sslmode=verify-ca&sslrootcert=/nowhere.pem"),
            "sslrootcert: /nowhere.pem can't be read (",
        ),
        (
            format!("{url}?sslmode=require&sslrootcert=/dev/null"),
            "sslrootcert: /dev/null can't be read (it is a device, not a regular file)",
        ),
        (
            format!("{url}?connect_timeout={p}"),
            "is not of the form postgres://",
        ),
    ];
    for (url, words) in bad {
        refused(&database, &["site.toml: database_url: ", words], |site| {
            site.set("database_url", quote(&url))
        })
        .await;
        let variable = |site: Site| site.env("NICO_API_DATABASE_URL", &url);
        refused(
            &database,
            &[
                "environment variable NICO_API_DATABASE_URL: database_url: ",
                words,
            ],
            variable,
        )
        .await;
    }
    refused(&database, &["database_url: ", "need sslrootcert"], |site| {
        site.set("rewrap.database_sslmode", "\"verify-full\"")
    })
    .await;
    let good = format!("{url}?sslmode=prefer&connect_timeout=3&statement-cache-capacity=7");
    accepted(&database, |site| site.set("database_url", quote(&good))).await;
}

#[tokio::test]
async fn variables_of_libpq_that_would_matter_are_named() {
    let database = Database::migrated().await;
    let not_read = "environment variables PGHOST, PGHOSTADDR are not read here, but nico-api \
                    reads such variables: write their values into database_url";
    refused(
        &database,
        &["site.toml: database_url: names no host", not_read],
        |site| {
            site.set("database_url", quote("postgres:///nico"))
                .env("PGHOST", "localhost")
                .env("PGHOSTADDR", "::1")
                .env("PGPORT", "")
        },
    )
    .await;
    let url = database.url();
    let server = Site::with_url(&url)
        .env("PGPASSWORD", PASSWORD)
        .env("PGOPTIONS", PASSWORD)
        .start()
        .await;
    let words = "environment variable PGOPTIONS is not read here";
    assert!(warned(&server, words), "{}", server.log_text());
    assert!(!server.log_text().contains("PGPASSWORD"), "the URL has one");
    leaks::assert_none(&server.log_text());

    let nowhere = || Site::with_url("postgres://nico@127.0.0.1:1/nico").env("PGPASSWORD", PASSWORD);
    let words = "environment variable PGPASSWORD is not read here";
    let exit = nowhere().run("migrate").await;
    let said = exit.stderr;
    assert!(
        exit.code == 1 && said.contains("refused") && said.contains(words),
        "{said}"
    );
    let server = nowhere().start_unready().await;
    let (_, body) = server.readiness().await;
    assert!(body.contains("refused") && body.contains(words), "{body}");
    leaks::assert_none(&(said + &server.log_text()));
}

/// The server accepts every URL that nico-api's own parser accepts.
#[tokio::test]
async fn urls_are_parsed_as_in_nico_api() {
    let database = Database::migrated().await;
    let url = database.url();
    let end = |text: &str| format!("{url}{text}");
    for url in [
        end("\n"),
        format!(" {url}\r\n"),
        url.replace(PASSWORD, &format!("{PASSWORD}\n")),
        url.replace(":5", "\n:5"),
        end("?options[search_path]=public"),
        end("?options%5Bsearch_path%5D=public&options=-c+work_mem%3D1MB"),
        end("?currentSchema=public&SSLMODE=verify-full&sslmode=allow"),
    ] {
        let server = Site::new(&database)
            .env("NICO_API_DATABASE_URL", &url)
            .start()
            .await;
        leaks::assert_none(&server.log_text());
        if url.contains("SSLMODE") {
            let words = "database_url: parameter \"SSLMODE\" is unknown and ignored; names \
                         are case-sensitive, did you mean \"sslmode\"?";
            assert!(warned(&server, words), "{}", server.log_text());
        }
    }
}

#[tokio::test]
async fn a_password_in_the_wrong_part_of_the_url_is_not_logged() {
    // nico-api's own parser reads everything up to the last @ as the password.
    let url = Database::migrated()
        .await
        .url()
        .replace(PASSWORD, &format!("p@{PASSWORD}@x"));
    let server = Site::with_url(&url).start().await;
    leaks::assert_none(&server.log_text());
}
