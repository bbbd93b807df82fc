//! Revoked certificates, and revocation lists that are old, missing or from another issuer.

use std::path::PathBuf;

use crate::anchors::{cross_signed, with_chain};
use crate::ca::Ca;
use crate::callers::{self, NO_IDENTITY, OK, outcome_of};
use crate::certs::{self, admin_cert, admin_issuer_named, admin_root, root_ca, service_cert};
use crate::configuration::{accepted, refused};
use crate::crl::{Crl, der, without_next_update};
use crate::database::Database;
use crate::handshake::handshake;
use crate::pki::{Cert, Leaf, Strings};
use crate::process::lasting_dir;
use crate::server::Server;
use crate::site::{Site, path};
use crate::transport::assert_refused;

fn site(files: &[&PathBuf]) -> Site {
    Site::with_url("postgres://nobody@127.0.0.1:1/none")
        .set("machine_identity.enabled", "false")
        .set("rewrap.crl_files", list(files))
}

fn list(files: &[&PathBuf]) -> String {
    let files: Vec<_> = files.iter().map(|file| path(*file)).collect();
    format!("[{}]", files.join(", "))
}

async fn is_accepted(server: &Server, leaf: &Leaf) -> bool {
    handshake(server, Some(leaf), &[]).await.is_ok()
}

/// An intermediate below the administrators' root, with two leaves.
struct Branch {
    issuer: Ca,
    good: Leaf,
    bad: Leaf,
}

fn branch() -> Branch {
    let issuer = admin_issuer_named(certs::ADMIN_ISSUER_CN, Strings::Utf8);
    let leaf = || admin_cert().signed_by(&issuer);
    let (good, bad) = (leaf(), leaf());
    Branch { issuer, good, bad }
}

#[tokio::test]
async fn a_revoked_leaf_is_refused_and_its_sibling_is_not() {
    let Branch { issuer, good, bad } = branch();
    let roots_list = Crl::of(admin_root()).issue();
    let issuers_list = Crl::of(&issuer).revokes(&bad.key).issue();
    let both = lasting_dir("crl").join("both.pem");
    let text = [&roots_list, &issuers_list].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(&both, text.concat()).unwrap();
    for files in [
        &[&roots_list, &issuers_list][..],
        &[&issuers_list, &roots_list],
        &[&both],
        &[&der(&roots_list), &der(&issuers_list)],
    ] {
        let server = site(files).start().await;
        assert!(is_accepted(&server, &good).await, "{files:?}");
        assert!(!is_accepted(&server, &bad).await, "{files:?}");
        assert_refused(&server, "revoked", 1).await;
        // The issuer of this certificate has no list.
        assert!(!is_accepted(&server, &certs::service("nico-api")).await);
        assert_refused(&server, "crl_missing", 1).await;
    }
    let server = site(&[]).start().await;
    assert!(is_accepted(&server, &bad).await);
}

#[tokio::test]
async fn a_revoked_intermediate_takes_all_its_leaves_with_it() {
    let (revoked, other) = (branch(), branch());
    let root = Crl::of(admin_root()).revokes(&revoked.issuer.key).issue();
    let lists = [&revoked, &other].map(|branch| Crl::of(&branch.issuer).issue());
    let server = site(&[&root, &lists[0], &lists[1]]).start().await;
    assert!(is_accepted(&server, &other.good).await);
    assert!(!is_accepted(&server, &revoked.good).await);
    assert_refused(&server, "revoked", 1).await;
}

#[tokio::test]
async fn a_ca_that_changes_its_key_has_a_list_of_each() {
    let (before, after) = (branch(), branch());
    let root = Crl::of(admin_root()).issue();
    let lists =
        [&before, &after].map(|branch| Crl::of(&branch.issuer).revokes(&branch.bad.key).issue());
    for files in [[&lists[0], &lists[1]], [&lists[1], &lists[0]]] {
        let server = site(&[&root, files[0], files[1]]).start().await;
        for branch in [&before, &after] {
            assert!(is_accepted(&server, &branch.good).await);
            assert!(!is_accepted(&server, &branch.bad).await);
        }
        assert_refused(&server, "revoked", 2).await;
    }
    // The list of the other key is not enough, under any policy.
    for policy in ["require_valid", "allow_expired_and_unknown"] {
        let policy = format!("\"{policy}\"");
        let site = site(&[&root, &lists[0]]).set("rewrap.crl_policy", policy);
        let server = site.start().await;
        assert!(is_accepted(&server, &before.good).await);
        assert!(!is_accepted(&server, &after.good).await);
        assert_refused(&server, "crl_unusable", 1).await;
    }
}

/// All three roots have the same name and are in the bundle. The server must therefore try several
/// keys, both for the signature of a certificate and for the signature of a list.
#[tokio::test]
async fn a_root_that_changes_its_key_and_its_kind_has_a_list_of_each() {
    let root = || {
        let usage = Some("critical,keyCertSign,cRLSign");
        Cert::new("/O=NICo/CN=changing").ca().key_usage(usage)
    };
    let roots = [root(), root(), root().rsa()].map(|cert| {
        let Leaf { cert_chain, key } = cert.self_signed();
        let (cert, chain) = (cert_chain, String::new());
        Ca { cert, key, chain }
    });
    let bundle = lasting_dir("bundle").join("roots.pem");
    let text = |root: &Ca| std::fs::read_to_string(&root.cert).unwrap();
    let point = |root: usize| format!("URI:http://ca.example/{root}.crl");
    for (order, pointed) in [([0, 1, 2], false), ([2, 1, 0], false), ([0, 1, 2], true)] {
        std::fs::write(&bundle, order.map(|root| text(&roots[root])).concat()).unwrap();
        let leaf = |root: usize| {
            let cert = service_cert("nico-api");
            let cert = if pointed {
                cert.extension(&format!("crlDistributionPoints = {}", point(root)))
            } else {
                cert
            };
            cert.signed_by(&roots[root])
        };
        let (good, bad) = ([0, 1, 2].map(leaf), [0, 1, 2].map(leaf));
        let list = |root: usize| {
            let list = Crl::of(&roots[root]).revokes(&bad[root].key);
            let list = if pointed {
                list.scope(&format!("fullname = {}", point(root)))
            } else {
                list
            };
            list.issue()
        };
        let lists = [0, 1, 2].map(list);
        let site = site(&[&lists[0], &lists[1], &lists[2]]);
        let site = site.set("tls.root_cafile_path", path(&bundle));
        let server = site.start_unready().await;
        for root in [0, 1, 2] {
            assert!(is_accepted(&server, &good[root]).await, "{order:?}, {root}");
            assert!(!is_accepted(&server, &bad[root]).await, "{order:?}, {root}");
        }
        assert_refused(&server, "revoked", 3).await;
    }
}

/// Lists of a key that the server does not know at the start: it belongs to an intermediate that
/// only clients send.
#[tokio::test]
async fn a_list_without_a_key_identifier_hides_nobody_whom_another_names() {
    let Branch { issuer, good, bad } = branch();
    let root = Crl::of(admin_root()).issue();
    let list = || Crl::of(&issuer);
    let without = || list().without_key_id();
    let (old, new) = (without().issue(), list().revokes(&bad.key).issue());
    let expired = without().expired().issue();
    let (old_with, new_without) = (without().revokes(&bad.key).issue(), list().issue());
    for files in [
        [&old, &new],
        [&new, &old],
        [&expired, &new],
        [&old_with, &new_without],
    ] {
        let server = site(&[&root, files[0], files[1]]).start().await;
        assert!(is_accepted(&server, &good).await, "{files:?}");
        assert!(!is_accepted(&server, &bad).await, "{files:?}");
        assert_refused(&server, "revoked", 1).await;
    }
}

/// rustls reports the worst error of all paths, which is not necessarily a revocation.
#[tokio::test]
async fn a_revoked_leaf_gains_nothing_by_what_it_sends_along() {
    let Branch { issuer, good, bad } = branch();
    let root = Crl::of(admin_root()).issue();
    let old = Crl::of(&issuer).without_key_id().issue();
    let new = Crl::of(&issuer).revokes(&bad.key).issue();
    let server = site(&[&root, &old, &new]).start().await;
    let namesake = Cert::new(&format!("/O=Acme/CN={}", certs::ADMIN_ISSUER_CN));
    let namesake = namesake.strings(Strings::Utf8).ca();
    let (expired, _) = namesake.clone().expired().issue(None);
    let (current, _) = namesake.issue(None);
    // More signatures than rustls looks at.
    for along in [expired, current.repeat(40)] {
        let with = |leaf| with_chain(leaf, &[&issuer.chain, &along]);
        assert!(is_accepted(&server, &with(&good)).await);
        assert!(!is_accepted(&server, &with(&bad)).await);
    }
}

/// For each policy, whether it admits a client with a current, an old and no list of the issuer. No
/// policy admits a revoked certificate.
const POLICIES: [(&str, bool, bool, bool); 4] = [
    ("require_valid", true, false, false),
    ("allow_expired", true, true, false),
    ("allow_unknown", true, false, true),
    ("allow_expired_and_unknown", true, true, true),
];

#[tokio::test]
async fn the_policy_says_what_an_old_or_a_missing_list_means() {
    let root = Ca::root("/O=NICo/CN=lists", Strings::Utf8);
    let leaf = || service_cert("nico-api").signed_by(&root);
    let (good, bad) = (leaf(), leaf());
    let current = Crl::of(&root).revokes(&bad.key).issue();
    let old = Crl::of(&root).revokes(&bad.key).expired().issue();
    let of_another = Crl::of(admin_root()).issue();
    for (policy, with_current, with_old, without) in POLICIES {
        let states = [
            (&current, with_current, false, "revoked", "revoked"),
            (&old, with_old, false, "crl_expired", "revoked"),
            (&of_another, without, without, "crl_missing", "none"),
        ];
        for (list, good_expected, bad_expected, refused_for, bad_refused_for) in states {
            let server = site(&[list])
                .set("rewrap.crl_policy", format!("\"{policy}\""))
                .set("tls.root_cafile_path", path(&root.cert))
                // A server's certificate has nothing to do with its clients' lists.
                .start_unready()
                .await;
            let what = format!("{policy} {}", list.display());
            assert_eq!(is_accepted(&server, &good).await, good_expected, "{what}");
            assert_eq!(is_accepted(&server, &bad).await, bad_expected, "{what}");
            if !good_expected {
                assert_refused(&server, refused_for, 2).await;
            } else if !bad_expected {
                assert_refused(&server, bad_refused_for, 1).await;
            }
        }
    }
}

#[tokio::test]
async fn the_newest_list_of_an_issuer_counts() {
    let root = Ca::root("/O=NICo/CN=newest", Strings::Utf8);
    let leaf = || service_cert("nico-api").signed_by(&root);
    let (good, bad) = (leaf(), leaf());
    let before = Crl::of(&root).expired().issue();
    let after = Crl::of(&root).revokes(&bad.key).issue();
    for files in [[&before, &after], [&after, &before]] {
        let server = site(&files).set("tls.root_cafile_path", path(&root.cert));
        let server = server.start().await;
        assert!(is_accepted(&server, &good).await, "{files:?}");
        assert!(!is_accepted(&server, &bad).await, "{files:?}");
        assert_refused(&server, "revoked", 1).await;
    }
}

/// A list can be limited to the certificates that name a distribution point. If one of several such
/// lists revoked a certificate that names no distribution point, the others would still admit it.
#[tokio::test]
async fn a_list_in_parts_is_refused_and_one_with_a_scope_counts() {
    let root = Ca::root("/O=NICo/CN=parts", Strings::Utf8);
    let point = "URI:http://ca.example/1.crl";
    let leaf = |points: &str| {
        let extension = format!("crlDistributionPoints = {points}");
        let cert = service_cert("nico-api");
        let cert = if points.is_empty() {
            cert
        } else {
            cert.extension(&extension)
        };
        cert.signed_by(&root)
    };
    let (good, bad) = (leaf(""), leaf(""));
    let (good_here, bad_here) = (leaf(point), leaf(point));
    let list = || Crl::of(&root).revokes(&bad.key).revokes(&bad_here.key);
    let this = format!("fullname = {point}");
    let with = |files: &[&PathBuf]| site(files).set("tls.root_cafile_path", path(&root.cert));
    let for_users = format!("{this}\nonlyuser = TRUE");
    for scope in [&this, &for_users] {
        let server = with(&[&list().scope(scope).issue()]).start_unready().await;
        assert!(is_accepted(&server, &good).await && is_accepted(&server, &good_here).await);
        assert!(!is_accepted(&server, &bad).await && !is_accepted(&server, &bad_here).await);
    }
    // A list for CAs only, or for another distribution point, does not cover the certificate.
    let for_cas = list().scope(&format!("{this}\nonlyCA = TRUE")).issue();
    let server = with(&[&for_cas]).start_unready().await;
    assert!(!is_accepted(&server, &good).await);
    assert_refused(&server, "crl_missing", 1).await;
    let elsewhere = leaf("URI:http://ca.example/2.crl");
    let server = with(&[&list().scope(&this).issue()]).start_unready().await;
    assert!(!is_accepted(&server, &elsewhere).await);
    assert_refused(&server, "crl_missing", 1).await;

    let part = |line: &str| Crl::of(&root).scope(line).issue();
    let parts = [part(&this), part("fullname = URI:http://ca.example/2.crl")];
    let whole = list().issue();
    for files in [[&parts[0], &parts[1]], [&whole, &parts[1]]] {
        let exit = with(&files).run_to_exit().await;
        assert_eq!(exit.code, 78, "{}", exit.stderr);
        let words = "[rewrap].crl_files has lists of one issuer for different distribution points";
        assert!(exit.stderr.contains(words), "{}", exit.stderr);
    }
}

/// The administrators' issuing CA has two certificates: one of the administrators' root, which is
/// revoked, and one of the service CA.
#[tokio::test]
async fn a_revoked_path_to_the_admin_bundle_makes_no_administrators() {
    let Branch { issuer, good, .. } = branch();
    let cross = cross_signed(&issuer, root_ca());
    let both_ways = with_chain(&good, &[&issuer.chain, &cross]);
    let others = [Crl::of(&issuer).issue(), Crl::of(root_ca()).issue()];
    let current = Crl::of(admin_root()).issue();
    let revoking = Crl::of(admin_root()).revokes(&issuer.key).issue();
    for (of_root, expected) in [(&current, OK), (&revoking, NO_IDENTITY)] {
        let files = list(&[of_root, &others[0], &others[1]]);
        let site = callers::site().await.set("rewrap.crl_files", files);
        let server = site.start().await;
        assert_eq!(outcome_of(&server, &both_ways, None).await, expected);
    }
}

#[tokio::test]
async fn an_unusable_list_stops_the_start_and_an_old_one_is_warned_about() {
    let database = Database::migrated().await;
    let dir = lasting_dir("crl");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let pretender = Ca::root("/O=NICo/CN=site-root", Strings::Printable);
    let good = Crl::of(root_ca()).issue();
    let mut cut = std::fs::read(der(&good)).unwrap();
    cut.truncate(cut.len() - 5);
    std::fs::write(dir.join("cut.der"), cut).unwrap();
    let garbage = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let lacks = "holds no certificate revocation list in PEM or DER";
    let unreadable = "this certificate revocation list can't be read";
    for (bad, words) in [
        (dir.join("missing.pem"), "missing.pem can't be read ("),
        (file("empty.pem", ""), lacks),
        (root_ca().cert.clone(), lacks),
        (file("garbage.pem", garbage), unreadable),
        (dir.join("cut.der"), unreadable),
        (
            Crl::of(root_ca()).version_1().issue(),
            "has version 1, which is not supported: issue a list of version 2. openssl does so if crlnumber",
        ),
        (
            without_next_update(),
            "the revocation list of CN=lists has no nextUpdate",
        ),
        (
            Crl::of(&pretender).issue(),
            "the revocation list of O=NICo, CN=site-root is not signed by that issuer",
        ),
        (
            Crl::of(root_ca()).scope("indirectCRL = TRUE").issue(),
            "of a kind that is not supported (invalid certificate revocation list: UnsupportedIndirectCrl)",
        ),
        (
            Crl::of(root_ca())
                .extension("2.5.29.27 = critical,DER:020101")
                .issue(),
            "of a kind that is not supported (invalid certificate revocation list: UnsupportedDeltaCrl)",
        ),
        (
            Crl::of(root_ca())
                .scope("onlysomereasons = keyCompromise")
                .issue(),
            "UnsupportedRevocationReasonsPartitioning",
        ),
        (
            Crl::of(root_ca()).scope("onlyAA = TRUE").issue(),
            "of a kind that is not supported (invalid certificate revocation list: ParseError)",
        ),
        (
            Crl::of(root_ca())
                .extension("1.2.3.4 = critical,DER:0500")
                .issue(),
            "of a kind that is not supported (invalid certificate revocation list: UnsupportedCriticalExtension)",
        ),
    ] {
        let words = ["site.toml: [rewrap].crl_files: ", words];
        refused(&database, &words, |site| {
            site.set("rewrap.crl_files", list(&[&good, &bad]))
        })
        .await;
    }
    accepted(&database, |site| {
        site.set("rewrap.crl_files", list(&[&good]))
    })
    .await;
    let words = ["site.toml: [rewrap].crl_policy: must be one of \"require_valid\""];
    refused(&database, &words, |site| {
        site.set("rewrap.crl_policy", "\"none\"")
    })
    .await;

    let warning = |server: &Server| {
        server
            .log_text()
            .contains("is out of date: publish a new one")
    };
    let old = Crl::of(root_ca()).expired().issue();
    for (list, expected) in [(&old, true), (&good, false)] {
        let server = site(&[list]).start().await;
        assert_eq!(warning(&server), expected);
        let end = server
            .metric("nico_rewrap_crl_next_update_timestamp_seconds", &[])
            .await;
        assert_eq!(end.unwrap() < 1.7e9, expected);
    }
}
