use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::domain::keyring::{KEY_BYTES, Kek, KeyId};

fn decide(keyring: &Keyring, texts: &Envelopes) -> Decision {
    super::decide(keyring, texts, &mut Scratch::default())
}

fn kek(id: &str, byte: u8) -> Kek {
    Kek::new(KeyId::new(id).unwrap(), &Zeroizing::new([byte; KEY_BYTES]))
}

/// `kv1` and `kv2`, with the target `kv2`.
fn keyring() -> Keyring {
    Keyring::new([kek("kv1", 1), kek("kv2", 2)], KeyId::new("kv2").unwrap()).unwrap()
}

fn sealed(kek: &Kek, secret: &[u8]) -> Option<String> {
    let mut secret = secret.to_vec();
    let plaintext = Plaintext::new(&mut secret);
    Some(seal(kek, &plaintext, &mut Buffers::default()).unwrap())
}

fn opened(text: Option<&String>) -> (String, Vec<u8>) {
    let mut buffers = Buffers::default();
    let text = text.unwrap();
    let id = Envelope::parse(text, &mut buffers)
        .unwrap()
        .key_id()
        .to_owned();
    let keyring = keyring();
    let opened = open(&keyring, text, &mut buffers).unwrap();
    (id, opened.plaintext.expose().to_vec())
}

fn errors(texts: &Envelopes) -> Vec<(&'static str, FieldError)> {
    match decide(&keyring(), texts) {
        Decision::Failed(failures) => failures
            .into_iter()
            .map(|failure| (failure.column, failure.error))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_secrets_under_other_keys_are_rewrapped() {
    let on_target = sealed(&kek("kv2", 2), b"b");
    let texts = [sealed(&kek("kv1", 1), b"a"), None, on_target.clone()];
    match decide(&keyring(), &texts) {
        Decision::Replace {
            texts,
            reencrypted: 1,
            on_target: 1,
        } => {
            assert_eq!(opened(texts[0].as_ref()), ("kv2".to_owned(), b"a".to_vec()));
            assert_eq!(texts[1], None);
            assert_eq!(texts[2], on_target);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_error_has_its_reason_and_the_key_id_that_it_names() {
    let id = || "kv9".to_owned();
    let table = [
        (
            FieldError::Unreadable(ParseError::TooLong),
            "TOO_LONG",
            None,
        ),
        (FieldError::TooLong, "TOO_LONG", None),
        (FieldError::SchemeVersion, "UNSUPPORTED_SCHEME", None),
        (
            FieldError::UnknownKey(id()),
            "KEY_NOT_IN_SECRETS",
            Some("kv9"),
        ),
        (FieldError::NotAuthentic(id()), "NOT_AUTHENTIC", Some("kv9")),
        (FieldError::ReadBack, "READ_BACK", None),
    ];
    for (error, reason, key_id) in table {
        assert_eq!(
            (error.reason(), error.key_id()),
            (reason, key_id),
            "{error}"
        );
    }
}

#[test]
fn a_new_text_that_does_not_open_to_the_secret_is_a_failure() {
    let text = sealed(&kek("kv1", 1), b"a").unwrap();
    let field = |key: Kek, secret: &[u8]| {
        let mut secret = secret.to_vec();
        let seal = |_: &Kek, _: &Plaintext<'_>, buffers: &mut Buffers| {
            super::seal(&key, &Plaintext::new(&mut secret), buffers)
        };
        sealed_field(&keyring(), &text, &mut Scratch::default(), seal)
    };
    assert!(field(kek("kv2", 2), b"a").unwrap().is_some());
    // Another secret, other key bytes, another key.
    for (key, secret) in [
        (kek("kv2", 2), b"b"),
        (kek("kv2", 9), b"a"),
        (kek("kv1", 1), b"a"),
    ] {
        assert_eq!(field(key, secret), Err(FieldError::ReadBack));
    }
}

#[test]
fn null_and_empty_texts_need_no_rewrap() {
    let texts = [None, Some(String::new()), None];
    assert_eq!(decide(&keyring(), &texts), Decision::OnTarget { fields: 0 });
}

#[test]
fn an_empty_text_beside_a_secret_is_kept() {
    let texts = [sealed(&kek("kv1", 1), b"a"), Some(String::new()), None];
    match decide(&keyring(), &texts) {
        Decision::Replace { texts, .. } => assert_eq!(texts[1], Some(String::new())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wrong_label_is_a_failure() {
    // The envelope names kv2, but is sealed with other key bytes.
    let texts = [sealed(&kek("kv2", 9), b"a"), None, None];
    assert_eq!(
        errors(&texts),
        [(COLUMNS[0], FieldError::NotAuthentic("kv2".to_owned()))]
    );
}

#[test]
fn one_bad_field_fails_the_row_and_every_bad_field_is_named() {
    let texts = [
        sealed(&kek("kv1", 1), b"a"),
        sealed(&kek("kv9", 9), b"b"),
        Some("?".to_owned()),
    ];
    let found = errors(&texts);
    assert_eq!(
        found[0],
        (COLUMNS[1], FieldError::UnknownKey("kv9".to_owned()))
    );
    assert_eq!(found[1].0, COLUMNS[2]);
    assert!(matches!(found[1].1, FieldError::Unreadable(_)));
    assert_eq!(found.len(), 2);
}

#[test]
fn an_oversized_text_is_reported_as_too_long() {
    let texts = [Some(OVERSIZED.to_owned()), None, None];
    let too_long = FieldError::Unreadable(ParseError::TooLong);
    assert_eq!(errors(&texts), [(COLUMNS[0], too_long)]);
}

#[derive(Debug, Clone)]
enum Field {
    Null,
    Empty,
    Under(u8, Vec<u8>),
    Garbage(String),
}

fn field() -> impl Strategy<Value = Field> {
    prop_oneof![
        Just(Field::Null),
        Just(Field::Empty),
        (1..4_u8, proptest::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(key, secret)| Field::Under(key, secret)),
        ".{1,20}".prop_map(Field::Garbage),
    ]
}

fn text(field: &Field) -> Option<String> {
    match field {
        Field::Null => None,
        Field::Empty => Some(String::new()),
        Field::Under(key, secret) => sealed(&kek(&format!("kv{key}"), *key), secret),
        Field::Garbage(text) => Some(text.clone()),
    }
}

proptest! {
    /// Compares with a model that knows how the fields were made. `kv3` is not in the
    /// keyring.
    #[test]
    fn decisions_follow_the_rules(fields in [field(), field(), field()]) {
        let texts = [text(&fields[0]), text(&fields[1]), text(&fields[2])];
        let count = |wanted: fn(&Field) -> bool| fields.iter().filter(|f| wanted(f)).count();
        let bad = count(|f| matches!(f, Field::Garbage(_) | Field::Under(3, _)));
        let to_do = count(|f| matches!(f, Field::Under(1, _)));
        let done = count(|f| matches!(f, Field::Under(2, _)));
        match decide(&keyring(), &texts) {
            Decision::Failed(failures) => prop_assert_eq!(failures.len(), bad),
            Decision::OnTarget { fields } => {
                prop_assert_eq!((0, 0, done), (bad, to_do, fields as usize));
            }
            Decision::Replace { texts: new, reencrypted, on_target } => {
                prop_assert_eq!((bad, to_do, done), (0, reencrypted as usize, on_target as usize));
                for ((field, old), new) in fields.iter().zip(&texts).zip(&new) {
                    match field {
                        Field::Under(1, secret) => prop_assert_eq!(
                            opened(new.as_ref()), ("kv2".to_owned(), secret.clone())),
                        _ => prop_assert_eq!(old, new),
                    }
                }
                let again = decide(&keyring(), &new);
                prop_assert_eq!(again, Decision::OnTarget { fields: reencrypted + on_target });
            }
        }
    }
}
