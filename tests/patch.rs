//! Certificates that `openssl` cannot issue: one of its certificates with a few bytes replaced and
//! a new signature by `openssl`.

use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::ca::Ca;
use crate::pki::Leaf;
use crate::process::{lasting_dir, run};

/// The first certificate of `leaf`, with every `from` replaced by `to`, which has the same length,
/// and a new signature of `issuer`.
pub(crate) fn patched(leaf: &Leaf, issuer: &Ca, from: &[u8], to: &[u8]) -> Leaf {
    assert_eq!(from.len(), to.len());
    let der = first_der(&std::fs::read_to_string(&leaf.cert_chain).unwrap());
    let (certificate, _) = inside(&der);
    let (_, after_tbs) = inside(certificate);
    let mut tbs = certificate[..certificate.len() - after_tbs.len()].to_vec();
    let (_, after_algorithm) = inside(after_tbs);
    let algorithm = &after_tbs[..after_tbs.len() - after_algorithm.len()];
    let found: Vec<_> = (0..tbs.len())
        .filter(|&i| tbs[i..].starts_with(from))
        .collect();
    assert!(!found.is_empty(), "nothing to replace");
    for at in found {
        tbs[at..at + to.len()].copy_from_slice(to);
    }

    let dir = lasting_dir("patched");
    std::fs::write(dir.join("tbs"), &tbs).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-out", "signature", "-sign"]);
    run(openssl.arg(&issuer.key).arg("tbs").current_dir(&dir));
    let signature = std::fs::read(dir.join("signature")).unwrap();
    let bits = element(0x03, &[&[0], &signature[..]].concat());
    let der = element(0x30, &[&tbs, algorithm, &bits].concat());

    std::fs::write(dir.join("der"), der).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-inform", "DER", "-in", "der"]);
    let pem = run(openssl.current_dir(&dir));
    let cert_chain = dir.join("chain.pem");
    std::fs::write(&cert_chain, pem + &issuer.chain).unwrap();
    Leaf {
        cert_chain,
        key: leaf.key.clone(),
    }
}

/// The first certificate of a PEM file.
pub(crate) fn first_der(pem: &str) -> Vec<u8> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----").unwrap();
    let (body, _) = rest.split_once("-----END CERTIFICATE-----").unwrap();
    let body: String = body.split_whitespace().collect();
    BASE64_STANDARD.decode(body).unwrap()
}

/// The content of the first DER element, and the bytes after the element.
fn inside(der: &[u8]) -> (&[u8], &[u8]) {
    let (length, start) = match der[1] {
        0x81 => (usize::from(der[2]), 3),
        0x82 => (usize::from(u16::from_be_bytes([der[2], der[3]])), 4),
        short => (usize::from(short), 2),
    };
    der[start..].split_at(length)
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let header = match (high, low) {
        (0, ..0x80) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&header, content].concat()
}
