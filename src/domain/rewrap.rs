//! The decision about one row, taken as a pure function of the keyring and the
//! row's texts: nothing to do, these new texts, or these failures.
//!
//! No I/O but the operating system's randomness for nonces, no clock, no SQL, no
//! metrics: what is decided here can be tested on its own, and can be decided
//! again as often as a row changes under our hands.
//!
//! Every secret is opened, also one that already names the target (a label is no
//! proof), and every new text is read back and compared before it is handed out.

use thiserror::Error;

use crate::domain::{
    envelope::{Buffers, Envelope, MAX_TEXT_BYTES, ParseError, Plaintext, SealError, seal},
    keyring::{Keyring, wipe_stack},
};

/// How many secrets a row has room for.
pub const COLUMN_COUNT: usize = 3;

/// The columns of `tenant_identity_config` that hold envelopes, in the order of
/// [`Envelopes`].
pub const COLUMNS: [&str; COLUMN_COUNT] = [
    "encrypted_signing_key_1",
    "encrypted_signing_key_2",
    "encrypted_auth_method_config",
];

/// The three secrets of a row as they stand in the database, in the order of
/// [`COLUMNS`]. `None` is NULL.
pub type Envelopes = [Option<String>; COLUMN_COUNT];

/// Stands for a text of more than 1 MiB, which is not read. No envelope looks like it.
pub const OVERSIZED: &str = "<more than 1 MiB>";

/// What is to be done with a row.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Every secret opens under the target key; nothing is written.
    OnTarget {
        /// Fields that were verified.
        fields: u32,
    },
    /// The row's texts are to be replaced by these.
    Replace {
        /// All three texts: new ones, and the old ones where nothing changes.
        texts: Envelopes,
        /// Fields with a new text.
        reencrypted: u32,
        /// Fields that were on target already.
        on_target: u32,
    },
    /// The row stays as it is; one entry for each field that is wrong.
    Failed(Vec<FieldFailure>),
}

/// A field that can't be re-wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFailure {
    /// The column.
    pub column: &'static str,
    /// What is wrong with it.
    pub error: FieldError,
}

/// Why a field can't be re-wrapped, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FieldError {
    /// The text is not an envelope at all.
    #[error("unreadable envelope: {0}")]
    Unreadable(ParseError),
    /// An envelope of a version that this program does not know.
    #[error("unsupported scheme version: only version 1 is known")]
    SchemeVersion,
    /// The envelope names a key that is not in the secrets.
    #[error("key id {:?} is not in the secrets: add that key and run again", .0)]
    UnknownKey(String),
    /// The envelope's key is there, and does not open it.
    #[error(
        "authentication failed under key id {:?}, which the secrets have: \
         the text was altered, or that id has other key bytes here",
        .0
    )]
    NotAuthentic(String),
    /// No randomness for a nonce.
    #[error("{0}")]
    Seal(#[from] SealError),
    /// The target's key id makes the text too long to be read again.
    #[error("the re-wrapped text would be longer than 1 MiB; nothing was written")]
    TooLong,
    /// The new text did not read back as what was sealed.
    #[error("the re-wrapped text did not read back as the same secret; nothing was written")]
    ReadBack,
}

impl From<ParseError> for FieldError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::SchemeVersion => Self::SchemeVersion,
            other => Self::Unreadable(other),
        }
    }
}

/// Memory that decisions are taken in, kept from one row to the next.
#[derive(Default)]
pub struct Scratch {
    /// For what a field holds.
    opened: Buffers,
    /// For what it is to hold, and for reading that back.
    rewrapped: Buffers,
}

/// Decides about a row: opens every secret, and seals those that are not yet
/// under the target key anew.
#[must_use]
pub fn decide(keyring: &Keyring, texts: &Envelopes, workspace: &mut Scratch) -> Decision {
    let mut new_texts = Envelopes::default();
    let mut reencrypted = 0;
    let mut on_target = 0;
    let mut failures = Vec::new();

    for ((text, new_text), column) in texts.iter().zip(&mut new_texts).zip(COLUMNS) {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        match field(keyring, text, workspace) {
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

/// The new text of a field, or `None` when it is on target. Not inlined, so that all of its frame
/// is wiped afterwards.
#[inline(never)]
fn field(
    keyring: &Keyring,
    text: &str,
    workspace: &mut Scratch,
) -> Result<Option<String>, FieldError> {
    if text == OVERSIZED {
        return Err(FieldError::Unreadable(ParseError::TooLong));
    }
    let Scratch { opened, rewrapped } = workspace;
    let target = keyring.target();
    let under_target = target.id().as_str();
    let (is_on_target, plaintext) = open(keyring, text, opened, under_target)?;
    if is_on_target {
        return Ok(None);
    }
    let new_text = seal(target, &plaintext, rewrapped)?;
    if new_text.len() > MAX_TEXT_BYTES {
        return Err(FieldError::TooLong);
    }
    match open(keyring, &new_text, rewrapped, under_target) {
        Ok((true, again)) if again == plaintext => Ok(Some(new_text)),
        _ => Err(FieldError::ReadBack),
    }
}

/// The plaintext, and whether it was under the key `expected`.
fn open<'b>(
    keyring: &Keyring,
    text: &str,
    buffers: &'b mut Buffers,
    expected: &str,
) -> Result<(bool, Plaintext<'b>), FieldError> {
    let envelope = Envelope::parse(text, buffers)?;
    let Some(kek) = keyring.get(envelope.key_id()) else {
        return Err(FieldError::UnknownKey(envelope.key_id().to_owned()));
    };
    let is_expected = envelope.key_id() == expected;
    match envelope.open(kek) {
        Ok(plaintext) => Ok((is_expected, plaintext)),
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

    /// `kv1` and `kv2`, wrapping to `kv2`.
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
        let (_, plaintext) = open(&keyring(), text, &mut buffers, "").unwrap();
        (id, plaintext.expose().to_vec())
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
    fn what_is_under_another_key_is_rewrapped_and_the_rest_kept() {
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
    fn absent_and_empty_are_nothing_to_do() {
        let texts = [None, Some(String::new()), None];
        assert_eq!(decide(&keyring(), &texts), Decision::OnTarget { fields: 0 });
    }

    #[test]
    fn an_empty_text_beside_a_secret_is_kept_as_it_is() {
        let texts = [sealed(&kek("kv1", 1), b"a"), Some(String::new()), None];
        match decide(&keyring(), &texts) {
            Decision::Replace { texts, .. } => assert_eq!(texts[1], Some(String::new())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_label_is_no_proof() {
        // Says kv2, and is sealed with other bytes.
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
    fn what_stands_for_an_oversized_text_is_a_failure_of_that_kind() {
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
        /// Against a model that knows how the fields were made: `kv3` is not in the keyring.
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
