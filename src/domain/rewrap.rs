//! Decides what happens to one row: nothing, new texts, or failures. The decision is a pure
//! function of the keyring and the row's texts.
//!
//! This module has no clock, no SQL and no metrics. Its only I/O is the operating system's
//! randomness for nonces. So a decision can be tested alone and repeated when a row
//! changes.
//!
//! Every secret is decrypted, even if its envelope already names the target key, because the
//! key id may be wrong. Every new text is decrypted again and compared before it is returned.

use thiserror::Error;

use crate::domain::{
    envelope::{Buffers, Envelope, MAX_TEXT_BYTES, ParseError, Plaintext, SealError, seal},
    keyring::{Kek, Keyring, wipe_stack},
};

/// Number of secrets in a row.
pub const COLUMN_COUNT: usize = 3;

/// The columns of `tenant_identity_config` that hold envelopes, in the order of
/// [`Envelopes`].
pub const COLUMNS: [&str; COLUMN_COUNT] = [
    "encrypted_signing_key_1",
    "encrypted_signing_key_2",
    "encrypted_auth_method_config",
];

/// The three secrets of a row as the database stores them, in the order of [`COLUMNS`].
/// `None` is NULL.
pub type Envelopes = [Option<String>; COLUMN_COUNT];

/// Stands for a text of more than 1 MiB, which the program does not read. It is not a valid
/// envelope.
pub const OVERSIZED: &str = "<more than 1 MiB>";

/// The decision about a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Every secret decrypts under the target key. Nothing is written.
    OnTarget {
        /// The number of fields that were verified.
        fields: u32,
    },
    /// These texts replace the texts of the row.
    Replace {
        /// All three texts. Unchanged fields keep their old text.
        texts: Envelopes,
        /// The number of fields with a new text.
        reencrypted: u32,
        /// The number of fields that were already on target.
        on_target: u32,
    },
    /// The row is not changed. There is one entry for each bad field.
    Failed(Vec<FieldFailure>),
}

/// A field that cannot be re-wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFailure {
    /// The column.
    pub column: &'static str,
    /// What is wrong with it.
    pub error: FieldError,
}

/// Why a field cannot be re-wrapped. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FieldError {
    /// The text is not an envelope.
    #[error("unreadable envelope: {0}")]
    Unreadable(ParseError),
    /// The envelope has a scheme version that this program does not support.
    #[error("unsupported scheme version: only version 1 is supported")]
    SchemeVersion,
    /// The envelope names a key that is not in the secrets.
    #[error("key id {:?} is not in the secrets: add that key and run again", .0)]
    UnknownKey(String),
    /// The secrets have the key of the envelope, but it does not decrypt the text.
    #[error(
        "authentication failed under key id {:?}, which is in the secrets: \
         the text was altered, or that id has other key bytes here",
        .0
    )]
    NotAuthentic(String),
    /// The operating system gave no randomness for a nonce.
    #[error("{0}")]
    Seal(#[from] SealError),
    /// The id of the target key makes the new text too long to be read again.
    #[error("the re-wrapped text would be longer than 1 MiB; nothing was written")]
    TooLong,
    /// The new text does not decrypt to the same secret.
    #[error("the re-wrapped text does not decrypt to the same secret; nothing was written")]
    ReadBack,
}

impl FieldError {
    /// The stable reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(ParseError::TooLong) | Self::TooLong => "TOO_LONG",
            Self::Unreadable(_) => "UNREADABLE_ENVELOPE",
            Self::SchemeVersion => "UNSUPPORTED_SCHEME",
            Self::UnknownKey(_) => "KEY_NOT_IN_SECRETS",
            Self::NotAuthentic(_) => "NOT_AUTHENTIC",
            Self::Seal(_) => "NO_RANDOMNESS",
            Self::ReadBack => "READ_BACK",
        }
    }

    /// The key id that the envelope names, if it is known.
    #[must_use]
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Self::UnknownKey(id) | Self::NotAuthentic(id) => Some(id),
            _ => None,
        }
    }
}

impl From<ParseError> for FieldError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::SchemeVersion => Self::SchemeVersion,
            other => Self::Unreadable(other),
        }
    }
}

/// Memory for decisions. It is reused from row to row.
#[derive(Default)]
pub struct Scratch {
    /// For the current content of a field.
    opened: Buffers,
    /// For the new content, and for reading it back.
    rewrapped: Buffers,
}

/// Decides about a row: decrypts every secret, and encrypts those under other keys again
/// under the target key.
#[must_use]
pub fn decide(keyring: &Keyring, texts: &Envelopes, scratch: &mut Scratch) -> Decision {
    let mut new_texts = Envelopes::default();
    let mut reencrypted = 0;
    let mut on_target = 0;
    let mut failures = Vec::new();

    for ((text, new_text), column) in texts.iter().zip(&mut new_texts).zip(COLUMNS) {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        match field(keyring, text, scratch) {
            Ok(None) => on_target += 1,
            Ok(rewrapped) => {
                reencrypted += 1;
                *new_text = rewrapped;
            }
            Err(error) => failures.push(FieldFailure { column, error }),
        }
    }
    wipe_stack();

    if !failures.is_empty() {
        Decision::Failed(failures)
    } else if reencrypted == 0 {
        Decision::OnTarget { fields: on_target }
    } else {
        for (new_text, text) in new_texts.iter_mut().zip(texts) {
            if new_text.is_none() {
                new_text.clone_from(text);
            }
        }
        Decision::Replace {
            texts: new_texts,
            reencrypted,
            on_target,
        }
    }
}

/// The new text of a field, or `None` if the field is on target. Not inlined, so that its
/// whole stack frame is wiped afterwards.
#[inline(never)]
fn field(
    keyring: &Keyring,
    text: &str,
    scratch: &mut Scratch,
) -> Result<Option<String>, FieldError> {
    sealed_field(keyring, text, scratch, seal)
}

/// The same with any function that encrypts.
fn sealed_field(
    keyring: &Keyring,
    text: &str,
    scratch: &mut Scratch,
    seal: impl FnOnce(&Kek, &Plaintext<'_>, &mut Buffers) -> Result<String, SealError>,
) -> Result<Option<String>, FieldError> {
    let Scratch { opened, rewrapped } = scratch;
    let target = keyring.target();
    let opened = open(keyring, text, opened)?;
    if opened.kek.id() == target.id() {
        return Ok(None);
    }
    let new_text = seal(target, &opened.plaintext, rewrapped)?;
    if new_text.len() > MAX_TEXT_BYTES {
        return Err(FieldError::TooLong);
    }
    match open(keyring, &new_text, rewrapped) {
        Ok(again) if again.kek.id() == target.id() && again.plaintext == opened.plaintext => {
            Ok(Some(new_text))
        }
        _ => Err(FieldError::ReadBack),
    }
}

/// A secret that was decrypted.
pub(crate) struct Opened<'k, 'b> {
    /// The key that the envelope names.
    pub(crate) kek: &'k Kek,
    /// The secret.
    pub(crate) plaintext: Plaintext<'b>,
}

/// Decrypts a secret under the key that its envelope names.
pub(crate) fn open<'k, 'b>(
    keyring: &'k Keyring,
    text: &str,
    buffers: &'b mut Buffers,
) -> Result<Opened<'k, 'b>, FieldError> {
    if text == OVERSIZED {
        return Err(FieldError::Unreadable(ParseError::TooLong));
    }
    let envelope = Envelope::parse(text, buffers)?;
    let Some(kek) = keyring.get(envelope.key_id()) else {
        return Err(FieldError::UnknownKey(envelope.key_id().to_owned()));
    };
    match envelope.open(kek) {
        Ok(plaintext) => Ok(Opened { kek, plaintext }),
        Err(_) => Err(FieldError::NotAuthentic(kek.id().to_string())),
    }
}

#[cfg(test)]
mod tests {
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
}
