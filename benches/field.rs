//! Measures the work on one secret: open, seal, and the whole re-wrap (open, seal, read
//! back, compare). The baseline is a simple implementation of the same steps.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should end")]

mod plain;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use nico_rewrap::domain::{
    envelope::{Buffers, Envelope, Plaintext, seal},
    keyring::{Kek, KeyId, Keyring},
    rewrap::{Decision, Scratch, decide},
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
    let mut secret = SIGNING_KEY;
    let secret = Plaintext::new(&mut secret);
    let mut buffers = Buffers::default();
    let mut scratch = Scratch::default();
    let text = seal(&old, &secret, &mut buffers).unwrap();
    let texts = [Some(text.clone()), None, None];
    let keyring = Keyring::new(
        [kek("kv1", OLD), kek("kv2", NEW)],
        KeyId::new("kv2").unwrap(),
    )
    .unwrap();

    let mut open = criterion.benchmark_group("open");
    open.bench_function("ours", |b| {
        b.iter(|| {
            let envelope = Envelope::parse(black_box(&text), &mut buffers).unwrap();
            envelope.open(&old).unwrap().expose().len()
        })
    });
    open.bench_function("plain", |b| b.iter(|| plain_open(&OLD, black_box(&text))));
    open.finish();

    let mut sealing = criterion.benchmark_group("seal");
    sealing.bench_function("ours", |b| {
        b.iter(|| seal(&old, black_box(&secret), &mut buffers).unwrap())
    });
    sealing.bench_function("plain", |b| {
        b.iter(|| plain::seal(&OLD, "kv1", black_box(&SIGNING_KEY)))
    });
    sealing.finish();

    let mut rewrap = criterion.benchmark_group("rewrap");
    rewrap.bench_function("ours", |b| {
        b.iter(|| match decide(&keyring, black_box(&texts), &mut scratch) {
            decision @ Decision::Replace { .. } => decision,
            other => panic!("{other:?}"),
        })
    });
    rewrap.bench_function("plain", |b| b.iter(|| plain_rewrap(black_box(&text))));
    rewrap.finish();
}

criterion_group!(field, benches);
criterion_main!(field);
