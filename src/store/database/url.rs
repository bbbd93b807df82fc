//! Parses `database_url` as nico-api's own parser does (the crates `url` and `sqlx`). It is
//! more lenient in two places, as long as the meaning is clear. Special characters in user
//! and password need not be percent-encoded, because nico-api's chart writes the password
//! into the URL unchanged. IPv6 addresses need no brackets.

use std::{net::Ipv6Addr, path::PathBuf};

use percent_encoding::percent_decode_str;
use tokio_postgres::config::Host;

use super::error::DatabaseError;

/// The default port of Postgres.
pub(super) const DEFAULT_PORT: u16 = 5432;

/// Parameters that this program reads or passes on to the driver. Only their values may
/// contain an `@`. Elsewhere an `@` is the end of a password.
const KNOWN: [&str; 22] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "user",
];

/// The parts of a URL, percent-decoded.
#[derive(Default)]
pub(super) struct Url {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) hosts: Vec<(Host, Option<u16>)>,
    pub(super) dbname: Option<String>,
    /// In the order of the URL.
    pub(super) parameters: Vec<(String, String)>,
}

impl Url {
    /// Parses `text`.
    pub(super) fn parse(text: &str) -> Result<Self, DatabaseError> {
        let text = without_line_breaks(text);
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| problem("it has no scheme"))?;
        if !["postgres", "postgresql"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return Err(problem("its scheme is not postgres"));
        }
        // User and password end at the first `@` after which the rest can be parsed.
        let ends = rest.match_indices('@').map(|(at, _)| Some(at));
        let mut reason = String::new();
        for end in std::iter::once(None).chain(ends) {
            let rest_of_url = end.map_or(rest, |end| &rest[end + 1..]);
            match Self::after_credentials(rest_of_url) {
                Ok(mut url) => {
                    if let Some(end) = end {
                        url.take_credentials(&rest[..end]);
                    }
                    return Ok(url);
                }
                Err(why) => reason = why,
            }
        }
        if rest.contains('@') {
            reason += "; special characters in user and password must be percent-encoded if the \
                       URL could be read in two ways";
        }
        Err(DatabaseError::Url(reason))
    }

    /// Parses `hosts/database?parameters#fragment`.
    fn after_credentials(text: &str) -> Result<Self, String> {
        let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (text, query) = text.split_once('?').unwrap_or((text, ""));
        let (hosts, dbname) = text.split_once('/').unwrap_or((text, ""));
        if dbname.contains('@') || fragment.contains('@') {
            return Err("there is an @ after the host".to_owned());
        }
        let mut url = Self::default();
        if !hosts.is_empty() {
            let hosts = hosts.split(',').map(host_and_port);
            url.hosts = hosts.collect::<Result<_, _>>()?;
        }
        if !dbname.is_empty() {
            url.dbname = Some(decoded(dbname).ok_or("the database's name is not UTF-8")?);
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            url.parameters.push(name_and_value(parameter)?);
        }
        Ok(url)
    }

    fn take_credentials(&mut self, text: &str) {
        // A text that can't be decoded was not percent-encoded.
        let decoded = |text: &str| decoded(text).unwrap_or_else(|| text.to_owned());
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (text, None),
        };
        self.user = Some(user).filter(|user| !user.is_empty()).map(decoded);
        self.password = password
            .filter(|password| !password.is_empty())
            .map(decoded);
    }
}

/// Removes blanks around a URL, and tabs and line breaks anywhere in it, as the URL
/// standard says. A Secret that was made with `echo` ends with a line break.
fn without_line_breaks(text: &str) -> String {
    let text = text.trim_matches(|c| c <= ' ');
    text.replace(['\t', '\n', '\r'], "")
}

fn decoded(text: &str) -> Option<String> {
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// Parses one host and its optional port.
fn host_and_port(text: &str) -> Result<(Host, Option<u16>), String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
        if !is_ipv6(host) {
            return Err("the text in brackets is not an IPv6 address".to_owned());
        }
        match rest.strip_prefix(':') {
            Some(port) => (host, port),
            None if rest.is_empty() => (host, ""),
            None => return Err("there is text after a closing bracket".to_owned()),
        }
    } else if text.matches(':').count() > 1 {
        ipv6_without_brackets(text)?
    } else {
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        if host.is_empty() || !host.chars().all(is_in_hosts) {
            return Err("a host is empty or contains special characters".to_owned());
        }
        (host, port)
    };
    let port = match port {
        "" => None,
        port => Some(parse_port(port)?),
    };
    Ok((parse_host(host)?, port))
}

/// Parses a host of the URL or of its parameter `host`: a name, an address, or the
/// directory of a socket.
pub(super) fn parse_host(text: &str) -> Result<Host, String> {
    let host = decoded(text).ok_or("a host is not UTF-8")?;
    Ok(if host.starts_with('/') {
        Host::Unix(PathBuf::from(host))
    } else {
        Host::Tcp(host)
    })
}

/// Parses a port of the URL or of its parameter `port`.
pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| "a port is not a number from 1 to 65535".to_owned())
}

fn is_in_hosts(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '%' | '~')
}

fn is_ipv6(text: &str) -> bool {
    let address = text.split('%').next().unwrap_or_default();
    address.parse::<Ipv6Addr>().is_ok()
}

/// The last part may belong to the address or be the port. If both are possible, it is the
/// port only if it is the default port.
fn ipv6_without_brackets(text: &str) -> Result<(&str, &str), String> {
    let (address, last) = text.rsplit_once(':').unwrap_or((text, ""));
    let with_port = is_ipv6(address) && parse_port(last).is_ok();
    match (is_ipv6(text), with_port) {
        (true, false) => Ok((text, "")),
        (false, true) => Ok((address, last)),
        (true, true) if last.parse() == Ok(DEFAULT_PORT) => Ok((address, last)),
        (true, true) => Err("write the IPv6 address in brackets, like [fd00::1]:5432".to_owned()),
        (false, false) => Err("a host contains special characters".to_owned()),
    }
}

fn name_and_value(parameter: &str) -> Result<(String, String), String> {
    // As in an HTML form, `+` stands for a blank.
    let decoded = |text: &str| decoded(&text.replace('+', " ")).ok_or("a parameter is not UTF-8");
    let (raw_name, raw_value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let (name, value) = (decoded(raw_name)?, decoded(raw_value)?);
    let is_in_names = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let base = match option_name(&name) {
        Some(option) => option,
        None => &name,
    };
    let is_known = KNOWN.contains(&name.as_str()) || option_name(&name).is_some();
    // Otherwise this is probably part of a password with a question mark in it.
    if base.is_empty() || !base.chars().all(is_in_names) || (!is_known && raw_value.contains('@')) {
        return Err("the name of a parameter contains special characters".to_owned());
    }
    Ok((name, value))
}

/// `search_path` of `options[search_path]`. sqlx sets a setting of the server with this
/// form.
pub(super) fn option_name(name: &str) -> Option<&str> {
    name.strip_prefix("options[")?.strip_suffix(']')
}

/// The known parameter that a misspelled name probably means. Names are case-sensitive.
pub(super) fn meant(name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    KNOWN
        .into_iter()
        .find(|known| *known == lower && name != lower)
}

fn problem(what: &str) -> DatabaseError {
    DatabaseError::Url(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Url {
        Url::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn problem_of(text: &str) -> String {
        let error = Url::parse(text).err();
        error.unwrap_or_else(|| panic!("{text}")).to_string()
    }

    #[test]
    fn line_breaks_and_blanks_around_are_dropped() {
        for text in [
            "postgres://u:secret@db:5432/nico?sslmode=require\n",
            " \u{1}postgres://u:secret@db:5432/nico?sslmode=require \r\n",
            "postgres://u:sec\nret@db:54\t32\n/ni\r\nco?sslm\node=require",
            "POSTGRESQL://u:secret@db:5432/nico?sslmode=require#fragment",
        ] {
            let url = parse(text);
            assert_eq!(url.user.as_deref(), Some("u"), "{text:?}");
            assert_eq!(url.password.as_deref(), Some("secret"), "{text:?}");
            assert_eq!(url.hosts, [(Host::Tcp("db".to_owned()), Some(5432))]);
            assert_eq!(url.dbname.as_deref(), Some("nico"));
            let require = ("sslmode".to_owned(), "require".to_owned());
            assert_eq!(url.parameters, [require]);
        }
    }

    #[test]
    fn special_characters_in_user_and_password_need_not_be_encoded() {
        let rests = [
            "db",
            "db/nico",
            "db:5432/nico?sslmode=require",
            "db/nico?application_name=x@y",
            "[fd00::1]:5432,b/nico?options=-c%20a%3D1",
        ];
        for password in [
            "plain",
            "a@b",
            "a:b",
            "a/b",
            "1/2",
            "100%",
            "a%zz",
            "a%ff",
            "a#b",
            "1#b",
            "a?b",
            "1?b",
            "1?b=c",
            "a b",
            "a@b/c",
            "a@1/c?d",
            "@",
            "/",
            "?",
            "#",
            "p@ss:w/o%r#d?",
            "a=b&c",
            "a,b",
            "a[b]",
            "1?b@c&d",
            "é/ü",
        ] {
            for rest in rests {
                let url = parse(&format!("postgres://us er:{password}@{rest}"));
                assert_eq!(url.password.as_deref(), Some(password), "{rest}");
                assert_eq!(url.user.as_deref(), Some("us er"), "{password} {rest}");
                assert!(!url.hosts.is_empty());
            }
        }
        for user in ["a@b", "a/b", "a?b", "a#b"] {
            let url = parse(&format!("postgres://{user}:pass@db/nico"));
            assert_eq!(url.user.as_deref(), Some(user));
            assert_eq!(url.password.as_deref(), Some("pass"), "{user}");
        }
        let encoded = parse("postgres://a%40b:%2F%3A%25%20@db/nico");
        assert_eq!(encoded.user.as_deref(), Some("a@b"));
        assert_eq!(encoded.password.as_deref(), Some("/:% "));
    }

    #[test]
    fn a_url_without_a_user_is_valid() {
        let url = parse("postgres://db/nico?application_name=a@b&user=c@d");
        assert_eq!(url.user, None);
        assert_eq!(url.hosts, [(Host::Tcp("db".to_owned()), None)]);
        let url = parse("postgres:///nico?host=%2Frun");
        assert!(url.hosts.is_empty());
    }

    #[test]
    fn ipv6_needs_no_brackets_if_the_meaning_is_clear() {
        for (host, address, port) in [
            ("[fd00::1]:5433", "fd00::1", Some(5433)),
            ("[fe80::1%eth0]", "fe80::1%eth0", None),
            ("::1", "::1", None),
            ("fd00::abcd", "fd00::abcd", None),
            ("fd00::5:5432", "fd00::5", Some(5432)),
            ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8", None),
            ("1:2:3:4:5:6:7:8:6432", "1:2:3:4:5:6:7:8", Some(6432)),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1", None),
        ] {
            for before in ["", "u:p@ss@"] {
                let url = parse(&format!("postgres://{before}{host}/nico"));
                assert_eq!(url.hosts, [(Host::Tcp(address.to_owned()), port)], "{host}");
            }
        }
        let unclear = problem_of("postgres://u:s3cr3t@fd00::5:6432/nico");
        assert!(
            unclear.contains("in brackets, like [fd00::1]:5432"),
            "{unclear}"
        );
    }

    #[test]
    fn parameters_are_decoded_like_an_html_form() {
        let url =
            parse("postgres://db?options=-c+a%3Db&options%5Bc%5D=d&options[e]=f&currentSchema=x");
        let names: Vec<_> = url
            .parameters
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            names,
            ["options", "options[c]", "options[e]", "currentSchema"]
        );
        assert_eq!(url.parameters[0].1, "-c a=b");
        assert_eq!(option_name(names[1]), Some("c"));
        assert_eq!(meant("sslMode"), Some("sslmode"));
        assert_eq!(meant("sslmode"), None);
        assert_eq!(meant("currentSchema"), None);
    }

    #[test]
    fn errors_do_not_quote_the_url() {
        for text in [
            "s3cr3t",
            "mysql://u:s3cr3t@db/nico",
            "host=db password=s3cr3t",
            "postgres://u:s3cr3t@db:port/nico",
            "postgres://u:s3cr3t@db:70000/nico",
            "postgres://u:s3cr3t@[s3cr3t]/nico",
            "postgres://u:s3cr3t@[::1/nico",
            "postgres://u:s3cr3t@[::1]x/nico",
            "postgres://u:s3cr3t@db,,db/nico",
            "postgres://u:s3cr3t@db/s3cr3t%ff",
            "postgres://u:s3cr3t@db?s3cr3t/=1",
            "postgres://u:s3cr3t",
        ] {
            let error = problem_of(text);
            assert!(!error.contains("s3cr3t"), "{error}");
            assert!(error.contains("postgres://user:password@host"), "{error}");
        }
    }
}
