//! Decodes the text of one key: standard base64 of 32 bytes. White space around it is
//! ignored.
//!
//! If a text has another form, this module tries to recognize it. The key may be in use, so
//! the advice says how to write the same bytes, and never to make a new key. No message
//! quotes the text.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use zeroize::Zeroizing;

use crate::domain::keyring::KEY_BYTES;

/// Accepts base64 with and without padding.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE_LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

const RESTORE: &str = "copy it again from the source of nico-api's keys; a new key cannot decrypt \
                       what this key encrypted";

/// Decodes the bytes of a key.
///
/// # Errors
///
/// What is wrong with the text, and how to write the same key. It is the end of a sentence
/// that begins with the name of the key.
pub(super) fn decode(text: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, String> {
    let text = text.trim();
    if let Some(what) = foreign(text) {
        return Err(format!("is not standard base64: it {what}"));
    }
    let decoded = STANDARD
        .decode(text)
        .map(Zeroizing::new)
        .map_err(|_| format!("is not standard base64: {}", misspelled(text)))?;
    key(&decoded).ok_or_else(|| {
        format!(
            "decodes to {} bytes instead of {KEY_BYTES}: {}",
            decoded.len(),
            wrong_length(&decoded)
        )
    })
}

/// Whether `text` could be a key in any common encoding.
pub(super) fn is_like_a_key(text: &str) -> bool {
    let text = text.trim();
    let decodes = |engine: &GeneralPurpose| {
        let decoded = engine.decode(text).map(Zeroizing::new);
        decoded.is_ok_and(|bytes| bytes.len() == KEY_BYTES)
    };
    decodes(&STANDARD_LENIENT) || decodes(&URL_SAFE_LENIENT) || is_hex(text.as_bytes())
}

fn key(bytes: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    bytes.try_into().map(Zeroizing::new).ok()
}

/// Recognizes a text that another program has left in the place of the key.
fn foreign(text: &str) -> Option<&'static str> {
    let placeholder = ["${", "{{", "$(", "%{"]
        .iter()
        .any(|mark| text.contains(mark));
    if text.starts_with("ENC[") {
        Some("is encrypted by sops (ENC[…]): decrypt the file with `sops --decrypt`")
    } else if text.starts_with("$ANSIBLE_VAULT") {
        Some("is encrypted by Ansible Vault: decrypt it with `ansible-vault decrypt`")
    } else if text.starts_with("-----BEGIN") {
        Some("is a PEM block; a key is the base64 of 32 bytes")
    } else if placeholder || (text.starts_with('<') && text.ends_with('>')) {
        Some(
            "is a placeholder that was not replaced (like ${…}, {{…}} or <…>): correct the \
             program that writes the file",
        )
    } else if is_hex(text.as_bytes())
        || text
            .strip_prefix("0x")
            .is_some_and(|hex| is_hex(hex.as_bytes()))
    {
        Some(
            "is 64 hexadecimal digits: write the same 32 bytes as base64, with \
             `xxd -r -p | base64`",
        )
    } else {
        None
    }
}

/// Explains why `text` is not standard base64.
fn misspelled(text: &str) -> &'static str {
    let is_key = |engine: &GeneralPurpose, text: &str| {
        let decoded = engine.decode(text).map(Zeroizing::new);
        decoded.is_ok_and(|bytes| bytes.len() == KEY_BYTES)
    };
    let compact: Zeroizing<String> =
        Zeroizing::new(text.chars().filter(|c| !c.is_whitespace()).collect());
    let bare = text
        .trim_start_matches("base64:")
        .trim_start_matches('b')
        .trim_matches(['"', '\'']);
    if is_key(&STANDARD_LENIENT, text) {
        "it has no padding: add `=` at its end"
    } else if is_key(&URL_SAFE_LENIENT, text) {
        "it is URL-safe base64: replace every `-` with `+` and every `_` with `/`, and end it with `=`"
    } else if is_key(&STANDARD_LENIENT, &compact) {
        "it contains white space: write it on one line"
    } else if is_key(&STANDARD_LENIENT, bare) {
        "it contains quotes or a prefix: keep only the base64 text"
    } else {
        RESTORE
    }
}

/// Explains what `bytes` are if they have another length.
fn wrong_length(bytes: &[u8]) -> &'static str {
    let text = bytes.trim_ascii();
    if text.is_empty() {
        return "it is empty";
    }
    let again = STANDARD_LENIENT.decode(text).map(Zeroizing::new);
    if is_hex(text) {
        "they are 64 hexadecimal digits: write the same 32 bytes as base64, with \
         `base64 -d | xxd -r -p | base64`"
    } else if again.is_ok_and(|bytes| bytes.len() == KEY_BYTES) {
        "it was encoded twice: decode it once with `base64 -d`, and write the result"
    } else if let [_, .., b'\n'] = bytes
        && matches!(bytes.len(), 33 | 34)
    {
        "a line break was encoded with the key: encode the 32 bytes without it, with \
         `base64 -d | head -c 32 | base64`"
    } else {
        RESTORE
    }
}

fn is_hex(text: &[u8]) -> bool {
    text.len() == 2 * KEY_BYTES && text.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

    use super::*;

    /// The base64 of this key contains the characters that differ between base64 alphabets.
    const KEY: [u8; KEY_BYTES] = [
        0xfb, 0xff, 0xbf, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
        23, 24, 25, 26, 27, 28, 29, 30, 31,
    ];

    fn hex() -> String {
        KEY.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_key_may_have_white_space_around_it() {
        let text = STANDARD.encode(KEY);
        for text in [text.clone(), format!(" \t{text}\r\n")] {
            assert_eq!(*decode(&text).unwrap(), KEY);
        }
    }

    #[test]
    fn other_spellings_are_recognized_and_not_quoted() {
        let text = STANDARD.encode(KEY);
        let (first, second) = text.split_at(20);
        let with = |end: &[u8]| STANDARD.encode([&KEY[..], end].concat());
        let cases = [
            (
                STANDARD.encode(&text),
                "decodes to 44 bytes instead of 32: it was encoded twice",
            ),
            (
                STANDARD.encode(format!("{text}\n")),
                "decodes to 45 bytes instead of 32: it was encoded twice",
            ),
            (
                with(b"\n"),
                "decodes to 33 bytes instead of 32: a line break was encoded",
            ),
            (
                with(b"\r\n"),
                "decodes to 34 bytes instead of 32: a line break was encoded",
            ),
            (
                with(b"x"),
                "decodes to 33 bytes instead of 32: copy it again from",
            ),
            (hex(), "is not standard base64: it is 64 hexadecimal digits"),
            (hex().to_uppercase(), "it is 64 hexadecimal digits"),
            (format!("0x{}", hex()), "it is 64 hexadecimal digits"),
            (
                STANDARD.encode(format!("{}\n", hex())),
                "decodes to 65 bytes instead of 32: they are 64 hexadecimal digits",
            ),
            (
                URL_SAFE.encode(KEY),
                "is not standard base64: it is URL-safe base64",
            ),
            (URL_SAFE_NO_PAD.encode(KEY), "it is URL-safe base64"),
            (
                STANDARD_NO_PAD.encode(KEY),
                "is not standard base64: it has no padding",
            ),
            (format!("{first}\n  {second}"), "it contains white space"),
            (format!("'{text}'"), "it contains quotes or a prefix"),
            (format!("b'{text}'"), "it contains quotes or a prefix"),
            (format!("base64:{text}"), "it contains quotes or a prefix"),
            (
                format!("ENC[AES256_GCM,data:{text},iv:{text},tag:{text},type:str]"),
                "it is encrypted by sops (ENC[…])",
            ),
            (
                format!("$ANSIBLE_VAULT;1.1;AES256\n{text}"),
                "encrypted by Ansible Vault",
            ),
            (format!("${{{first}}}"), "it is a placeholder"),
            (format!("{{{{ {first} }}}}"), "it is a placeholder"),
            ("<no value>".to_owned(), "it is a placeholder"),
            (
                "-----BEGIN PRIVATE KEY-----".to_owned(),
                "it is a PEM block",
            ),
            (
                String::new(),
                "decodes to 0 bytes instead of 32: it is empty",
            ),
            (
                first.to_owned(),
                "decodes to 15 bytes instead of 32: copy it again from",
            ),
            (
                format!("{first}!"),
                "is not standard base64: copy it again from",
            ),
        ];
        for (text, words) in cases {
            let problem = decode(&text).unwrap_err();
            assert!(problem.contains(words), "{text}: {problem}");
            assert!(!problem.contains("openssl rand"), "{problem}");
            for secret in [first, &hex()[..20], &text] {
                assert!(secret.len() < 15 || !problem.contains(secret), "{problem}");
            }
        }
    }
}
