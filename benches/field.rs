//! One secret: opening, sealing, and the whole re-wrap (open, seal, read back,
//! compare), against the plain way of doing the same.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should end")]

mod plain;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nico_rewrap::{
    envelope::{Envelope, Plaintext},
    keyring::{Kek, KeyId, Keyring},
    rewrap::{Decision, decide},
};
use zeroize::Zeroizing;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

/// As long as a PKCS#8 PEM of a P-256 key.
const SIGNING_KEY: [u8; 241] = [b'k'; 241];

fn plain_open(key: &[u8; 32], text: &str) -> Vec<u8> {
    plain::open(key, &plain::parse(text))
}

fn plain_rewrap(text: &str) -> String {
    let secret = plain_open(&OLD, text);
    let rewrapped = plain::seal(&NEW, "kv2", &secret);
    assert!(plain_open(&NEW, &rewrapped) == secret);
    rewrapped
}

fn kek(id: &str, key: [u8; 32]) -> Kek {
    Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new(key))
}

fn benches(criterion: &mut Criterion) {
    let old = kek("kv1", OLD);
    let secret = Plaintext::new(SIGNING_KEY.to_vec());
    let text = Envelope::seal(&old, &secret).unwrap().to_text();
    let texts = [Some(text.clone()), None, None];
    let keyring = Keyring::new(
        [kek("kv1", OLD), kek("kv2", NEW)],
        KeyId::new("kv2").unwrap(),
    )
    .unwrap();

    let mut open = criterion.benchmark_group("open");
    open.bench_function("ours", |b| {
        b.iter(|| {
            Envelope::parse(black_box(&text))
                .unwrap()
                .open(&old)
                .unwrap()
        })
    });
    open.bench_function("plain", |b| b.iter(|| plain_open(&OLD, black_box(&text))));
    open.finish();

    let mut seal = criterion.benchmark_group("seal");
    seal.bench_function("ours", |b| {
        b.iter(|| Envelope::seal(&old, black_box(&secret)).unwrap().to_text())
    });
    seal.bench_function("plain", |b| {
        b.iter(|| plain::seal(&OLD, "kv1", black_box(&SIGNING_KEY)))
    });
    seal.finish();

    let mut rewrap = criterion.benchmark_group("rewrap");
    rewrap.bench_function("ours", |b| {
        b.iter(|| match decide(&keyring, black_box(&texts)) {
            decision @ Decision::Replace { .. } => decision,
            other => panic!("{other:?}"),
        })
    });
    rewrap.bench_function("plain", |b| b.iter(|| plain_rewrap(black_box(&text))));
    rewrap.finish();
}

criterion_group!(field, benches);
criterion_main!(field);
