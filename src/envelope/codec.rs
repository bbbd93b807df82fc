//! The text of an envelope: base64 around JSON, read strictly and written canonically.
//!
//! Byte arrays spelled as numbers are what a generic parser is slowest at, so this
//! one knows the object. It accepts and refuses what a strict `serde_json` reading
//! of the object does; the tests hold the two against each other.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Envelope, NONCE_BYTES, ParseError, SCHEME_VERSION, TAG_BYTES};
use crate::keyring::KeyId;

/// Reads a text without white space around it.
pub(super) fn read(text: &str) -> Result<Envelope, ParseError> {
    let json = STANDARD.decode(text).map_err(base64_error)?;
    let mut reader = Reader::new(&json);
    let envelope = reader.envelope()?;
    reader.end()?;
    Ok(envelope)
}

/// Writes compact JSON with the members in the format's order.
pub(super) fn write(envelope: &Envelope) -> String {
    // A byte takes at most three digits and a comma.
    let mut json = String::with_capacity(320 + 4 * envelope.ciphertext.len());
    json.push_str(r#"{"scheme_version":1,"key_id":"#);
    push_json_string(&mut json, envelope.key_id.as_str());
    json.push_str(r#","nonce":"#);
    push_byte_array(&mut json, &envelope.nonce);
    json.push_str(r#","ciphertext":"#);
    push_byte_array(&mut json, &envelope.ciphertext);
    json.push('}');
    STANDARD.encode(json)
}

fn push_json_string(json: &mut String, value: &str) {
    let quoted = serde_json::to_string(value).unwrap_or_default();
    json.push_str(&quoted);
}

fn push_byte_array(json: &mut String, bytes: &[u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        json.push(if i == 0 { '[' } else { ',' });
        if *byte >= 100 {
            json.push(char::from(b'0' + byte / 100));
        }
        if *byte >= 10 {
            json.push(char::from(b'0' + byte / 10 % 10));
        }
        json.push(char::from(b'0' + byte % 10));
    }
    if bytes.is_empty() {
        json.push('[');
    }
    json.push(']');
}

fn base64_error(error: base64::DecodeError) -> ParseError {
    use base64::DecodeError as E;
    ParseError::Base64(match error {
        E::InvalidByte(..) => "a character outside the alphabet",
        E::InvalidLength(_) => "the length is not that of a base64 text",
        E::InvalidLastSymbol(..) => "stray bits in the last character",
        E::InvalidPadding => "the padding is missing or wrong",
    })
}

/// Reads exactly this object from exactly this JSON, without a tree in between.
struct Reader<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0 }
    }

    fn envelope(&mut self) -> Result<Envelope, ParseError> {
        let mut scheme_version = None;
        let mut key_id = None;
        let mut nonce = None;
        let mut ciphertext = None;

        self.expect(b'{', "an object was expected")?;
        if self.peek() == Some(b'}') {
            return Err(self.error("the members are missing"));
        }
        loop {
            let name_at = self.at;
            let name = self.string()?;
            self.expect(b':', "a colon was expected")?;
            let fresh = match name.as_ref() {
                "scheme_version" => scheme_version.replace(self.scheme_version()?).is_none(),
                "key_id" => key_id.replace(self.key_id()?).is_none(),
                "nonce" => nonce.replace(self.nonce()?).is_none(),
                "ciphertext" => ciphertext.replace(self.ciphertext()?).is_none(),
                _ => return Err(error_at(name_at, "an unknown member")),
            };
            if !fresh {
                return Err(error_at(name_at, "a member that was there before"));
            }
            match self.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err(self.error("a comma or the end of the object was expected")),
            }
        }

        let missing = |reason| error_at(self.at, reason);
        scheme_version.ok_or_else(|| missing("scheme_version is missing"))?;
        Ok(Envelope {
            key_id: key_id.ok_or_else(|| missing("key_id is missing"))?,
            nonce: nonce.ok_or_else(|| missing("nonce is missing"))?,
            ciphertext: ciphertext.ok_or_else(|| missing("ciphertext is missing"))?,
        })
    }

    fn end(&mut self) -> Result<(), ParseError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("something follows the object")),
        }
    }

    fn scheme_version(&mut self) -> Result<(), ParseError> {
        let negative = self.peek() == Some(b'-');
        if negative {
            self.at += 1;
        }
        let at = self.at;
        match self.integer() {
            Some(value) if !negative && value == u32::from(SCHEME_VERSION) => Ok(()),
            Some(_) => Err(ParseError::SchemeVersion),
            None => Err(error_at(at, "scheme_version is not an integer")),
        }
    }

    fn key_id(&mut self) -> Result<KeyId, ParseError> {
        let id = self.string()?;
        KeyId::new(id).map_err(|_| ParseError::KeyId)
    }

    fn nonce(&mut self) -> Result<[u8; NONCE_BYTES], ParseError> {
        let at = self.at;
        let mut bytes = Vec::with_capacity(NONCE_BYTES);
        self.byte_array(&mut bytes)?;
        <[u8; NONCE_BYTES]>::try_from(bytes)
            .map_err(|_| error_at(at, "nonce does not have 12 bytes"))
    }

    fn ciphertext(&mut self) -> Result<Vec<u8>, ParseError> {
        // Most bytes take four characters; too small a guess only costs a copy.
        let mut bytes = Vec::with_capacity((self.json.len() - self.at) / 3);
        self.byte_array(&mut bytes)?;
        if bytes.len() < TAG_BYTES {
            return Err(ParseError::NoTag);
        }
        Ok(bytes)
    }

    fn byte_array(&mut self, bytes: &mut Vec<u8>) -> Result<(), ParseError> {
        self.expect(b'[', "an array of bytes was expected")?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.skip_white_space();
            let at = self.at;
            let byte = self
                .integer()
                .and_then(|value| u8::try_from(value).ok())
                .ok_or_else(|| error_at(at, "not an integer from 0 to 255"))?;
            bytes.push(byte);
            match self.next() {
                Some(b',') => {}
                Some(b']') => return Ok(()),
                _ => return Err(self.error("a comma or the end of the array was expected")),
            }
        }
    }

    /// An unsigned JSON integer, saturating: no leading zeros, no fraction, no exponent.
    fn integer(&mut self) -> Option<u32> {
        let start = self.at;
        let mut value = 0_u32;
        while let Some(digit @ b'0'..=b'9') = self.json.get(self.at) {
            value = value
                .saturating_mul(10)
                .saturating_add(u32::from(digit - b'0'));
            self.at += 1;
        }
        let digits = &self.json[start..self.at];
        let well_formed = match digits {
            [] => false,
            [b'0', _, ..] => false,
            _ => !matches!(self.json.get(self.at), Some(b'.' | b'e' | b'E')),
        };
        well_formed.then_some(value)
    }

    /// A JSON string, escapes resolved. `serde_json` has the last word on what is
    /// inside the quotes.
    fn string(&mut self) -> Result<Cow<'a, str>, ParseError> {
        self.expect(b'"', "a string was expected")?;
        let start = self.at - 1;
        loop {
            match self.json.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return Err(error_at(start, "a string without an end")),
            }
        }
        self.at += 1;
        let quoted = &self.json[start..self.at];
        let plain = &quoted[1..quoted.len() - 1];
        if plain
            .iter()
            .all(|b| matches!(b, b' '..=b'~') && *b != b'\\')
            && let Ok(text) = std::str::from_utf8(plain)
        {
            return Ok(Cow::Borrowed(text));
        }
        serde_json::from_slice::<String>(quoted)
            .map(Cow::Owned)
            .map_err(|_| error_at(start, "a string that is not valid JSON"))
    }

    fn expect(&mut self, byte: u8, reason: &'static str) -> Result<(), ParseError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error(reason))
        }
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn peek(&mut self) -> Option<u8> {
        self.skip_white_space();
        self.json.get(self.at).copied()
    }

    fn skip_white_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.json.get(self.at) {
            self.at += 1;
        }
    }

    fn error(&self, reason: &'static str) -> ParseError {
        error_at(self.at, reason)
    }
}

fn error_at(at: usize, reason: &'static str) -> ParseError {
    ParseError::Json { reason, at }
}
