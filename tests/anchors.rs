//! The CA bundle in which a chain ends decides the identity. With an admin bundle, only the CAs
//! of that bundle make administrators. Names in the certificate and other certificates from the
//! client do not change this.

use std::path::PathBuf;
use std::process::Command;

use crate::ca::Ca;
use crate::callers::{NO_IDENTITY, OK, assert_outcomes, site};
use crate::certs::{
    self, ADMIN_ISSUER_CN, admin_cert, admin_issuer, admin_root, root_ca, service, service_cert,
};
use crate::configuration::{accepted, refused};
use crate::database::Database;
use crate::handshake::handshake;
use crate::pki::{Cert, Leaf, Strings};
use crate::process::{lasting_dir, run};
use crate::site::{path, quote};

/// A CA below the service CA that has the name of the administrators' CA.
pub(crate) fn impostor() -> Ca {
    let subject = format!("/O=Acme/CN={ADMIN_ISSUER_CN}");
    root_ca().intermediate(&subject, Strings::Printable)
}

/// The same leaf, with these certificates after it in the chain file.
pub(crate) fn with_chain(leaf: &Leaf, chain: &[&str]) -> Leaf {
    let leafs_own = std::fs::read_to_string(leaf.key.with_file_name("cert.pem")).unwrap();
    let cert_chain = lasting_dir("chain").join("chain.pem");
    std::fs::write(&cert_chain, leafs_own + &chain.concat()).unwrap();
    Leaf {
        cert_chain,
        key: leaf.key.clone(),
    }
}

/// A certificate with the name and key of one CA, issued by another CA.
pub(crate) fn cross_signed(ca: &Ca, by: &Ca) -> String {
    let dir = lasting_dir("cross");
    std::fs::write(
        dir.join("extensions"),
        "basicConstraints = critical,CA:TRUE\n",
    )
    .unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-req", "-set_serial", "7", "-days", "30"]);
    openssl.args(["-extfile", "extensions", "-out", "cross.pem", "-in"]);
    openssl.arg(ca.key.with_file_name("csr.pem"));
    openssl.arg("-CA").arg(&by.cert).arg("-CAkey").arg(&by.key);
    run(openssl.current_dir(&dir));
    std::fs::read_to_string(dir.join("cross.pem")).unwrap()
}

#[tokio::test]
async fn a_service_ca_with_the_name_of_a_listed_issuer_gives_no_administrator() {
    let server = site().await.start().await;
    let root_of_that_name = admin_cert().signed_by(&impostor());
    let table = [
        ("the administrators'", certs::admin().clone(), OK),
        ("below the service CA", root_of_that_name, NO_IDENTITY),
        ("a service is one all the same", service("nico-api"), OK),
    ];
    assert_outcomes(&server, &table).await;

    // The name of the service CA itself is listed.
    let list = format!("[{}]", quote("site-root"));
    let listed = site().await.set("auth.trust.additional_issuer_cns", list);
    let table = [("", admin_cert().signed_by(root_ca()), NO_IDENTITY)];
    assert_outcomes(&listed.start().await, &table).await;
}

#[tokio::test]
async fn extra_certificates_of_a_client_do_not_change_its_identity() {
    let server = site().await.start().await;
    let (genuine, impostor) = (admin_issuer(), impostor());
    let false_admin = admin_cert().signed_by(&impostor);
    let genuine_pem = genuine.chain.as_str();
    let self_made = {
        let subject = format!("/O=Acme/CN={ADMIN_ISSUER_CN}");
        let ca = Ca::root(&subject, Strings::Printable);
        std::fs::read_to_string(ca.cert).unwrap()
    };
    let admin_root_pem = std::fs::read_to_string(&admin_root().cert).unwrap();
    let root_pem = std::fs::read_to_string(&root_ca().cert).unwrap();
    let cross = cross_signed(genuine, root_ca());
    let false_with =
        |chain: &[&str]| with_chain(&false_admin, &[&[&*impostor.chain], chain].concat());
    let true_with = |chain: &[&str]| with_chain(certs::admin(), chain);
    let table = [
        ("the way it should be", true_with(&[genuine_pem]), OK),
        (
            "roots are not needed",
            true_with(&[genuine_pem, &admin_root_pem]),
            OK,
        ),
        (
            "in any order",
            true_with(&[&admin_root_pem, &self_made, genuine_pem]),
            OK,
        ),
        (
            "the genuine CA as well",
            false_with(&[genuine_pem]),
            NO_IDENTITY,
        ),
        (
            "and its root",
            false_with(&[genuine_pem, &admin_root_pem]),
            NO_IDENTITY,
        ),
        (
            "one of the same name",
            false_with(&[&self_made]),
            NO_IDENTITY,
        ),
        // The administrators' CA is also cross-signed by the service CA. A chain to the admin
        // bundle exists, and it counts.
        ("with both ways", true_with(&[&cross, genuine_pem]), OK),
        ("with the other way only", true_with(&[&cross]), NO_IDENTITY),
        (
            "and the root of that",
            true_with(&[&cross, &root_pem]),
            NO_IDENTITY,
        ),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn a_ca_in_both_bundles_gives_administrators() {
    let both = lasting_dir("bundle").join("both.pem");
    let pems = [root_ca(), admin_root()].map(|ca| std::fs::read_to_string(&ca.cert).unwrap());
    std::fs::write(&both, pems.concat()).unwrap();
    let server = site().await.set("tls.admin_root_cafile_path", path(&both));
    let table = [
        ("of the one", certs::admin().clone(), OK),
        ("of the other", admin_cert().signed_by(&impostor()), OK),
    ];
    assert_outcomes(&server.start().await, &table).await;
    let in_the_root_bundle = site().await.set("tls.root_cafile_path", path(&both));
    let table = [
        ("in both", certs::admin().clone(), OK),
        (
            "in that one alone",
            admin_cert().signed_by(&impostor()),
            NO_IDENTITY,
        ),
    ];
    assert_outcomes(&in_the_root_bundle.start().await, &table).await;
}

#[tokio::test]
async fn an_intermediate_in_the_admin_bundle_is_an_anchor_for_its_own_leaves_only() {
    // Both roots are in the bundle for services.
    let root = lasting_dir("bundle").join("root.pem");
    let pems = [root_ca(), admin_root()].map(|ca| std::fs::read_to_string(&ca.cert).unwrap());
    std::fs::write(&root, pems.concat()).unwrap();
    let sibling = certs::admin_issuer_named(ADMIN_ISSUER_CN, Strings::Utf8);
    let site = site().await.set("tls.root_cafile_path", path(&root));
    let site = site.set("tls.admin_root_cafile_path", path(&admin_issuer().cert));
    let server = site.start().await;
    let sibling_leaf = admin_cert().signed_by(&sibling);
    let with_the_other = [&*sibling.chain, &*admin_issuer().chain];
    let table = [
        ("below it", certs::admin().clone(), OK),
        ("without it", with_chain(certs::admin(), &[]), OK),
        ("below its sibling", sibling_leaf.clone(), NO_IDENTITY),
        (
            "with both",
            with_chain(&sibling_leaf, &with_the_other),
            NO_IDENTITY,
        ),
        ("a service", service("nico-api"), OK),
    ];
    assert_outcomes(&server, &table).await;
}

#[tokio::test]
async fn constraints_of_a_ca_are_enforced() {
    let server = site().await.start().await;
    let issuer = |extension: &str| {
        let subject = format!("/O=Acme/CN={ADMIN_ISSUER_CN}");
        let cert = Cert::new(&subject).ca();
        issuing(&cert.extension(extension))
    };
    let is_accepted = async |cert: &Cert, issuer: &Ca| {
        let leaf = cert.signed_by(issuer);
        handshake(&server, Some(&leaf), &[]).await.is_ok()
    };
    let named = |san: &str| admin_cert().san(san);
    let uri = format!("URI:{}nico-api", certs::SERVICE_BASE);
    // rustls does not support constraints on URIs and directory names: it refuses every certificate
    // that has such a name.
    for (constraint, cert, expected) in [
        (
            "permitted;DNS:acme.example",
            named("DNS:a.acme.example"),
            true,
        ),
        (
            "permitted;DNS:acme.example",
            named("DNS:a.nico.local"),
            false,
        ),
        ("excluded;DNS:nico.local", named("DNS:a.nico.local"), false),
        ("excluded;DNS:nico.local", named("DNS:a.acme.example"), true),
        ("permitted;DNS:acme.example", named(&uri), true),
        ("permitted;URI:acme.example", named(&uri), false),
        ("excluded;URI:nico.local", named(&uri), false),
        ("permitted;dirName:acme", admin_cert(), false),
    ] {
        let section = if constraint.contains("dirName") {
            "\n[acme]\nO = Acme\n[extensions]"
        } else {
            ""
        };
        let line = format!("nameConstraints = critical,{constraint}{section}");
        let came = is_accepted(&cert, &issuer(&line)).await;
        assert_eq!(came, expected, "{constraint} {cert:?}");
    }

    let sub_ca =
        |issuer: &Ca| issuer.intermediate(&format!("/O=Acme/CN={ADMIN_ISSUER_CN}"), Strings::Utf8);
    let any = issuer("1.2.3.4 = DER:0500");
    assert!(is_accepted(&admin_cert(), &sub_ca(&any)).await);
    let none_below = Cert::new("/O=Acme/CN=None Below").path_length(0);
    let none_below = issuing(&none_below);
    assert!(is_accepted(&admin_cert(), &none_below).await);
    assert!(!is_accepted(&admin_cert(), &sub_ca(&none_below)).await);
    let expired = Cert::new(&format!("/O=Acme/CN={ADMIN_ISSUER_CN}"));
    for dated in [expired.clone().expired(), expired.not_yet_valid()] {
        assert!(!is_accepted(&admin_cert(), &issuing(&dated.ca())).await);
    }
}

/// A CA below the administrators' root.
pub(crate) fn issuing(cert: &Cert) -> Ca {
    let usage = Some("critical,keyCertSign,cRLSign");
    let (chain, key) = cert.clone().key_usage(usage).issue(Some(admin_root()));
    Ca {
        cert: key.with_file_name("cert.pem"),
        key,
        chain,
    }
}

/// rustls trusts every certificate in a bundle. If a bundle contained a leaf, the owner of its key
/// could issue certificates for any name.
#[tokio::test]
async fn a_bundle_with_a_leaf_certificate_is_refused() {
    let database = Database::migrated().await;
    let with = |other: &PathBuf| {
        let bundle = lasting_dir("bundle").join("bundle.pem");
        let pems = [&root_ca().cert, other].map(|file| std::fs::read_to_string(file).unwrap());
        std::fs::write(&bundle, pems.concat()).unwrap();
        bundle
    };
    let signs_nothing = service_cert("ca").ca().self_signed();
    let no_cas = [
        service("nico-api"),
        admin_cert().self_signed(),
        signs_nothing,
    ];
    for leaf in no_cas {
        let bundle = with(&leaf.key.with_file_name("cert.pem"));
        for setting in ["root_cafile_path", "admin_root_cafile_path"] {
            let setting_spelled = format!("[tls].{setting}: ");
            let line = pem_lines(&root_ca().cert) + 1;
            let place = format!("bundle.pem line {line}: the certificate of ");
            let words = "is not a CA certificate";
            refused(&database, &[&setting_spelled, &place, words], |site| {
                site.set(&format!("tls.{setting}"), path(&bundle))
            })
            .await;
        }
    }
    for good in [&admin_root().cert, &version_1("/CN=old").cert_chain] {
        accepted(&database, |site| {
            site.set("tls.root_cafile_path", path(with(good)))
        })
        .await;
    }
}

fn pem_lines(file: &PathBuf) -> usize {
    std::fs::read_to_string(file).unwrap().lines().count()
}

/// A root certificate of version 1, without extensions. OpenSSL 3.3 and later need an option for
/// that. Earlier versions create one if there are no extensions.
pub(crate) fn version_1(subject: &str) -> Leaf {
    let dir = lasting_dir("version_1");
    let shell = |line: &str| run(Command::new("/bin/sh").args(["-c", line]).current_dir(&dir));
    shell(&format!(
        "touch empty; openssl req -x509 $(openssl req -help 2>&1 | grep -o -e -x509v1) -config empty \
         -newkey rsa:2048 -noenc -keyout key.pem -subj {subject} -days 30 -out cert.pem",
    ));
    let text = shell("openssl x509 -in cert.pem -noout -text");
    assert!(text.contains("Version: 1 (0x0)"), "{text}");
    Leaf {
        cert_chain: dir.join("cert.pem"),
        key: dir.join("key.pem"),
    }
}
