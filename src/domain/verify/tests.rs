use std::process::{Command, Stdio};

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::domain::{
    envelope::{Plaintext, seal},
    keyring::{KEY_BYTES, Kek, KeyId},
};

fn kek(id: &str) -> Kek {
    Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new([7; KEY_BYTES]))
}

fn keyring() -> Keyring {
    Keyring::new([kek("kv1"), kek("kv2")], KeyId::new("kv2").unwrap()).unwrap()
}

fn sealed(key_id: &str, secret: &str) -> Option<String> {
    let mut secret = secret.as_bytes().to_vec();
    let plaintext = Plaintext::new(&mut secret);
    Some(seal(&kek(key_id), &plaintext, &mut Buffers::default()).unwrap())
}

fn openssl(arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut openssl = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    openssl
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = openssl.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A private key on this curve, and the JSON about its public key.
fn pair(curve: &str) -> (String, String) {
    let curve = format!("ec_paramgen_curve:{curve}");
    let private = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", &curve], "");
    let public = openssl(&["pkey", "-pubout"], &private);
    let json = serde_json::json!({"v": 1, "kid": "00", "alg": "ES256", "public_pem": public});
    (private, json.to_string())
}

fn verify_row(row: &VerifyRow) -> Verified {
    verify(&keyring(), row, &mut Buffers::default())
}

/// The error of a first signing key.
fn signing_key_error(private: &str, public: Option<&str>) -> Option<VerifyError> {
    let row = VerifyRow {
        texts: [sealed("kv1", private), None, None],
        public_keys: [public.map(ToOwned::to_owned), None],
        auth_method: None,
    };
    match verify_row(&row) {
        Verified::Good { .. } => None,
        Verified::Bad(mut bad) => {
            assert_eq!((bad.len(), bad[0].0), (1, COLUMNS[0]));
            Some(bad.remove(0).1)
        }
    }
}

#[test]
fn a_good_row_is_good() {
    let (private_1, public_1) = pair("P-256");
    let (private_2, public_2) = pair("P-256");
    let delegation = r#"{"client_id": "a", "client_secret": "b\"c"}"#;
    let row = VerifyRow {
        texts: [
            sealed("kv1", &private_1),
            sealed("kv2", &private_2),
            sealed("kv2", delegation),
        ],
        public_keys: [Some(public_1), Some(public_2)],
        auth_method: Some("client_secret_basic".to_owned()),
    };
    let good = Verified::Good {
        on_target: 2,
        elsewhere: 1,
    };
    assert_eq!(verify_row(&row), good);
    assert_eq!(
        verify_row(&VerifyRow::default()),
        Verified::Good {
            on_target: 0,
            elsewhere: 0
        }
    );
}

#[test]
fn a_signing_key_must_belong_to_its_public_key() {
    let (private, public) = pair("P-256");
    let (_, other) = pair("P-256");
    let (wrong_curve, public_of_wrong_curve) = pair("P-384");
    let kv1 = || "kv1".to_owned();
    assert_eq!(signing_key_error(&private, Some(&public)), None);
    assert_eq!(
        signing_key_error(&private, Some(&other)),
        Some(VerifyError::WrongKeyPair("signing_key_public_1"))
    );
    for missing in [
        None,
        Some("{}"),
        Some("no JSON"),
        Some(public_of_wrong_curve.as_str()),
    ] {
        assert_eq!(
            signing_key_error(&private, missing),
            Some(VerifyError::PublicKeyMissing("signing_key_public_1"))
        );
    }
    let cut = &private[..private.len() / 2];
    for broken in [wrong_curve.as_str(), cut, "", "{}", public.as_str()] {
        assert_eq!(
            signing_key_error(broken, Some(&public)),
            Some(VerifyError::NotASigningKey(kv1()))
        );
    }
}

#[test]
fn a_private_key_without_its_public_part_can_be_compared() {
    let (private, public) = pair("P-256");
    let short = openssl(
        &["pkcs8", "-topk8", "-nocrypt", "-outform", "PEM"],
        &openssl(&["ec", "-no_public"], &private),
    );
    assert!(short.len() < private.len());
    assert_eq!(signing_key_error(&short, Some(&public)), None);
}

#[test]
fn a_delegation_must_have_the_form_of_its_method() {
    let basic = Some("client_secret_basic");
    for (text, auth_method, good) in [
        (r#"{"client_id":"a","client_secret":"b"}"#, basic, true),
        (r#"{"client_id":"a","client_secret":"b"}"#, None, true),
        ("{}", Some("none"), true),
        ("{}", basic, false),
        (
            r#"{"client_id":"a","client_secret":"b"}"#,
            Some("none"),
            false,
        ),
        (r#"{"client_id":"a"}"#, basic, false),
        (r#"{"client_id":1,"client_secret":"b"}"#, basic, false),
        (
            r#"{"client_id":"a","client_secret":"b","x":1}"#,
            basic,
            false,
        ),
        ("", basic, false),
        ("[]", Some("none"), false),
    ] {
        let row = VerifyRow {
            texts: [None, None, sealed("kv2", text)],
            auth_method: auth_method.map(ToOwned::to_owned),
            ..VerifyRow::default()
        };
        let bad = Verified::Bad(vec![(
            COLUMNS[2],
            VerifyError::NotADelegation("kv2".to_owned()),
        )]);
        let expected = if good {
            Verified::Good {
                on_target: 1,
                elsewhere: 0,
            }
        } else {
            bad
        };
        assert_eq!(verify_row(&row), expected, "{text} {auth_method:?}");
    }
}

#[test]
fn a_secret_that_does_not_decrypt_is_a_failure() {
    let other = Kek::new(KeyId::new("kv1").unwrap(), &Zeroizing::new([8; KEY_BYTES]));
    let mut secret = b"secret".to_vec();
    let text = seal(
        &other,
        &Plaintext::new(&mut secret),
        &mut Buffers::default(),
    )
    .unwrap();
    let row = VerifyRow {
        texts: [Some(text), Some("nonsense".to_owned()), sealed("kv1", "{}")],
        auth_method: Some("none".to_owned()),
        ..VerifyRow::default()
    };
    let Verified::Bad(bad) = verify_row(&row) else {
        panic!("the row is good")
    };
    assert_eq!(bad[0].1, FieldError::NotAuthentic("kv1".to_owned()).into());
    assert!(matches!(
        bad[1].1,
        VerifyError::Field(FieldError::Unreadable(_))
    ));
    assert_eq!(bad.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// No bytes make the reader of keys panic.
    #[test]
    fn any_bytes_are_a_key_or_an_error(bytes: Vec<u8>, public: Option<String>) {
        let _ = check_signing_key(&bytes, public.as_deref());
        let pem = format!("-----BEGIN PRIVATE KEY-----{}-----END PRIVATE KEY-----",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes));
        let _ = check_signing_key(pem.as_bytes(), public.as_deref());
    }
}
