//! The machinery of the table in `certificates.rs`: its rows, the configurations, and the check of
//! each row.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::ca::Ca;
use crate::certs::{ADMIN_ISSUER_CN, admin_cert, admin_issuer, admin_root, root_ca, service_cert};
use crate::crl::Crl;
use crate::database::Database;
use crate::grpcurl::Call;
use crate::handshake::handshake;
use crate::pki::{Cert, Leaf, Strings};
use crate::server::{Server, field};
use crate::site::{Site, path, quote};
use crate::transport::assert_refused;

/// The configuration of the server to which the test shows a certificate. Each has one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Config {
    /// The usual one: an admin bundle, and one listed issuer below it.
    Usual,
    /// No listed issuer. `[auth.cli_certs]` requires all six components, those of [`CRITERIA`].
    Criteria,
    /// A listed issuer, weaker criteria, other allowed services, and an issuer below the service CA
    /// that makes administrators.
    Mixed,
    /// The usual one without an admin bundle.
    NoAdminBundle,
    /// The usual one with a revocation list of every issuer.
    Revoking,
}

pub(crate) const CONFIGS: [Config; 5] = [
    Config::Usual,
    Config::Criteria,
    Config::Mixed,
    Config::NoAdminBundle,
    Config::Revoking,
];

/// The six components that [`Config::Criteria`] requires, with their values.
pub(crate) const CRITERIA: [(&str, &str); 6] = [
    ("IssuerO", "Acme"),
    ("IssuerOU", "PKI"),
    ("IssuerCN", "Acme Issuing CA"),
    ("SubjectO", "Acme"),
    ("SubjectOU", "ops"),
    ("SubjectCN", "alice"),
];

/// The expected result. An identity has a kind, a name and, for an administrator, a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The identity may call.
    Permit(String),
    /// The identity is known but may not call: `PERMISSION_DENIED`.
    NotAllowed(String),
    /// There is no identity: `UNAUTHENTICATED`.
    Nobody,
    /// The handshake fails for this reason.
    Refused(&'static str),
}

/// A function that creates a certificate.
pub(crate) type Make = Box<dyn Fn() -> Leaf + Send + Sync>;

/// Creates a certificate of this issuer. The issuer, too, is created only when needed.
pub(crate) fn by(cert: Cert, issuer: impl Fn() -> Ca + Send + Sync + 'static) -> Make {
    Box::new(move || cert.signed_by(&issuer()))
}

/// The CA with this subject below `parent`. Each is created once, on first use.
pub(crate) fn below(parent: &Ca, subject: &str, strings: Strings) -> Ca {
    static MADE: Mutex<BTreeMap<String, Ca>> = Mutex::new(BTreeMap::new());
    let key = format!("{} {subject} {strings:?}", parent.cert.display());
    let mut made = MADE.lock().unwrap();
    let make = || parent.intermediate(subject, strings);
    made.entry(key).or_insert_with(make).clone()
}

pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) config: Config,
    make: Make,
    pub(crate) expected: Outcome,
    /// For an allowed certificate: the name of the denied row that differs from it in one thing.
    pub(crate) twin: Option<String>,
}

/// The rows, and the state of their builder.
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
    /// The configuration of the following rows.
    pub(crate) config: Config,
}

impl Table {
    pub(crate) fn allow(&mut self, name: &str, twin: &str, who: &str, make: Make) {
        self.add(name, Outcome::Permit(who.to_owned()), Some(twin), make);
    }

    pub(crate) fn not_allowed(&mut self, name: &str, who: &str, make: Make) {
        self.add(name, Outcome::NotAllowed(who.to_owned()), None, make);
    }

    pub(crate) fn nobody(&mut self, name: &str, make: Make) {
        self.add(name, Outcome::Nobody, None, make);
    }

    pub(crate) fn refused(&mut self, name: &str, reason: &'static str, make: Make) {
        self.add(name, Outcome::Refused(reason), None, make);
    }

    fn add(&mut self, name: &str, expected: Outcome, twin: Option<&str>, make: Make) {
        self.rows.push(Row {
            name: name.to_owned(),
            config: self.config,
            make,
            expected,
            twin: twin.map(str::to_owned),
        });
    }
}

/// The certificates that the lists of [`Config::Revoking`] revoke.
#[derive(Clone)]
pub(crate) struct Revoked {
    pub(crate) admin: Leaf,
    pub(crate) service: Leaf,
    /// A certificate that is not on any list.
    pub(crate) below: Leaf,
    /// The value of the setting `crl_files`.
    lists: String,
}

impl Revoked {
    /// Placeholders, for listing the table without creating certificates.
    pub(crate) fn none() -> Self {
        let nowhere = || Leaf {
            cert_chain: "/nowhere".into(),
            key: "/nowhere".into(),
        };
        Self {
            admin: nowhere(),
            service: nowhere(),
            below: nowhere(),
            lists: String::new(),
        }
    }

    pub(crate) fn make() -> Self {
        let admin = admin_cert().signed_by(admin_issuer());
        let service = service_cert("nico-api").signed_by(root_ca());
        let intermediate = below(admin_root(), "/O=Acme/CN=Revoked CA", Strings::Utf8);
        let leaf_below = admin_cert().signed_by(&intermediate);
        let lists = [
            Crl::of(admin_issuer()).revokes(&admin.key).issue(),
            Crl::of(root_ca()).revokes(&service.key).issue(),
            Crl::of(admin_root()).revokes(&intermediate.key).issue(),
            Crl::of(&intermediate).issue(),
        ];
        let lists = lists.map(path).join(", ");
        Self {
            admin,
            service,
            below: leaf_below,
            lists: format!("[{lists}]"),
        }
    }
}

fn site(database: &Database, config: Config, revoked: &Revoked) -> Site {
    let site = Site::new(database);
    match config {
        Config::Usual => site,
        Config::Criteria => {
            let equals =
                CRITERIA.map(|(component, value)| format!("{component} = {}", quote(value)));
            site.set("auth.trust.additional_issuer_cns", "[]")
                .set(
                    "auth.cli_certs.required_equals",
                    format!("{{ {} }}", equals.join(", ")),
                )
                .set("auth.cli_certs.group_from", "\"SubjectOU\"")
                .set("auth.cli_certs.username_from", "\"SubjectCN\"")
        }
        Config::Mixed => {
            let listed = [ADMIN_ISSUER_CN, "Legacy Admin CA"].map(quote).join(", ");
            site.set("auth.trust.additional_issuer_cns", format!("[{listed}]"))
                .set("auth.cli_certs.required_equals", "{ SubjectO = \"Acme\" }")
                .set("auth.cli_certs.group_from", "\"SubjectOU\"")
                .set("auth.cli_certs.username", "\"operator\"")
                .set("rewrap.allowed_services", "[\"nico-dhcp\"]")
                .set("rewrap.admin_issuers_in_root_ca", "[\"Legacy Admin CA\"]")
        }
        Config::NoAdminBundle => site.unset("tls.admin_root_cafile_path"),
        Config::Revoking => site.set("rewrap.crl_files", revoked.lists.as_str()),
    }
}

/// Shows the certificate of every row to its server. Returns the rows whose result is not the
/// expected one.
pub(crate) async fn show_all(rows: &[Row], revoked: &Revoked) -> Vec<String> {
    let leaves = make(rows);
    let database = Database::migrated().await;
    let shown = CONFIGS.map(async |config| {
        let server = site(&database, config, revoked).start().await;
        let mut refusals = BTreeMap::new();
        let mut wrong = Vec::new();
        let shown = rows.iter().zip(&leaves);
        for (row, leaf) in shown.filter(|(row, _)| row.config == config) {
            let outcome = show(&server, leaf, &row.expected, &mut refusals).await;
            if outcome != row.expected {
                let (name, expected) = (&row.name, &row.expected);
                wrong.push(format!("{config:?}: {name}: {outcome:?}, not {expected:?}"));
            }
        }
        wrong
    });
    futures_util::future::join_all(shown).await.concat()
}

/// Shows a certificate to a server. `refusals` counts the handshakes that the server has refused so
/// far, by reason.
async fn show(
    server: &Server,
    leaf: &Leaf,
    expected: &Outcome,
    refusals: &mut BTreeMap<&'static str, u32>,
) -> Outcome {
    // grpcurl retries after a refused handshake and does not show the reason.
    if let Outcome::Refused(reason) = expected {
        let count = refusals.entry(reason).or_default();
        if handshake(server, Some(leaf), &[]).await.is_err() {
            *count += 1;
            assert_refused(server, reason, *count).await;
            return Outcome::Refused(reason);
        }
    }
    let call = Call::new(server, leaf).without_reflection();
    let (code, run_id) = match call.reencrypt(&json!({"dryRun": true})).await {
        Ok(report) => ("OK".to_owned(), report.run_id),
        Err(error) => {
            let reason = error.reason().unwrap_or_default();
            (format!("{} {reason}", error.code), error.run_id)
        }
    };
    let Some(run_id) = run_id else {
        return Outcome::Refused("not as expected");
    };
    let who = audited(server, &run_id).await;
    match code.as_str() {
        "OK" => Outcome::Permit(who),
        "PERMISSION_DENIED NOT_ALLOWED" => Outcome::NotAllowed(who),
        "UNAUTHENTICATED NO_IDENTITY" => {
            assert_eq!(who, "none");
            Outcome::Nobody
        }
        _ => panic!("{code}"),
    }
}

/// The identity in the audit record of this call.
async fn audited(server: &Server, run_id: &str) -> String {
    let is_of_run = |record: &Value| field(record, "run_id").is_some_and(|id| id == run_id);
    loop {
        server.wait_log("call").await;
        if let Some(record) = server.logs_with("call").into_iter().find(is_of_run) {
            let text = |name: &str| field(&record, name).and_then(Value::as_str);
            let mut who = text("identity_kind").unwrap().to_owned();
            who.extend(text("identity").map(|name| format!(" {name}")));
            who.extend(text("identity_group").map(|group| format!(" in {group}")));
            return who;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Creates the certificates of all rows, with one thread for each processor.
fn make(rows: &[Row]) -> Vec<Leaf> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let made = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let leaf = (row.make)();
                    made.lock().unwrap().insert(row.name.clone(), leaf);
                }
            });
        }
    });
    let mut made = made.into_inner().unwrap();
    rows.iter()
        .map(|row| made.remove(&row.name).unwrap())
        .collect()
}
