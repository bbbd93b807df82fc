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
    // What the fast decoder does not take, the other one refuses with the reason.
    let json = match base64_simd::STANDARD.decode_to_vec(text) {
        Ok(json) => json,
        Err(_) => STANDARD.decode(text).map_err(base64_error)?,
    };
    let mut reader = Reader::new(&json);
    let envelope = reader.envelope()?;
    reader.end()?;
    Ok(envelope)
}

/// Writes compact JSON with the members in the format's order.
pub(super) fn write(envelope: &Envelope) -> String {
    let key_id = serde_json::Value::from(envelope.key_id.as_str()).to_string();
    // A byte takes at most three digits and a comma.
    let numbers = envelope.nonce.len() + envelope.ciphertext.len();
    let mut json = Vec::with_capacity(80 + key_id.len() + 4 * numbers);
    json.extend_from_slice(br#"{"scheme_version":1,"key_id":"#);
    json.extend_from_slice(key_id.as_bytes());
    json.extend_from_slice(br#","nonce":"#);
    push_byte_array(&mut json, &envelope.nonce);
    json.extend_from_slice(br#","ciphertext":"#);
    push_byte_array(&mut json, &envelope.ciphertext);
    json.push(b'}');
    base64_simd::STANDARD.encode_to_string(json)
}

fn push_byte_array(json: &mut Vec<u8>, bytes: &[u8]) {
    json.push(b'[');
    for byte in bytes {
        let (spelled, length) = SPELLED[usize::from(*byte)];
        // Four bytes always, the unneeded ones taken back: cheaper than to branch.
        json.extend_from_slice(&spelled);
        json.truncate(json.len() - (spelled.len() - length));
    }
    // The last comma; there is none after an empty array's bracket.
    if !bytes.is_empty() {
        json.pop();
    }
    json.push(b']');
}

/// Every byte in decimal with a comma behind it, and how many characters that are.
const SPELLED: [([u8; 4], usize); 256] = {
    let mut table = [([b','; 4], 0); 256];
    let mut byte = 0;
    while byte < 256 {
        let digits = [
            b'0' + (byte / 100) as u8,
            b'0' + (byte / 10 % 10) as u8,
            b'0' + (byte % 10) as u8,
        ];
        let skip = if byte >= 100 {
            0
        } else if byte >= 10 {
            1
        } else {
            2
        };
        let mut i = skip;
        while i < 3 {
            table[byte].0[i - skip] = digits[i];
            i += 1;
        }
        table[byte].1 = 4 - skip;
        byte += 1;
    }
    table
};

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
        self.compact_pairs(bytes);
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

    /// As many numbers of an array as are spelled compactly, two at a time and without
    /// a branch that depends on the digits. Stops before anything else, the last
    /// numbers included, and leaves it to the careful reading to judge.
    fn compact_pairs(&mut self, bytes: &mut Vec<u8>) {
        while let Some(window) = self.json[self.at..].first_chunk::<8>() {
            let word = u64::from_le_bytes(*window);
            let commas = bytes_equal(word, b',');
            let first = commas.trailing_zeros() / 8;
            let second = (commas & commas.wrapping_sub(1)).trailing_zeros() / 8;
            if second >= 8 {
                return;
            }
            let (Some(a), Some(b)) = (
                small_number(word, 0, first),
                small_number(word, first + 1, second),
            ) else {
                return;
            };
            bytes.extend_from_slice(&[a, b]);
            self.at += second as usize + 1;
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

/// The high bit of each byte of `word` that equals `byte`.
fn bytes_equal(word: u64, byte: u8) -> u64 {
    const LOW_BITS: u64 = u64::from_le_bytes([0x7f; 8]);
    let differing = word ^ u64::from_le_bytes([byte; 8]);
    !(((differing & LOW_BITS) + LOW_BITS) | differing | LOW_BITS)
}

/// The number that bytes `start..end` of `word` spell, if they are one to three
/// digits, without leading zeros, and no more than 255.
fn small_number(word: u64, start: u32, end: u32) -> Option<u8> {
    let length = end - start;
    if !(1..=3).contains(&length) {
        return None;
    }
    // Right-aligned: hundreds in the lowest byte, ones in the third.
    let digits = (word >> (8 * start)) as u32 ^ u32::from_le_bytes([b'0'; 4]);
    let leading_zero = length > 1 && digits & 0xff == 0;
    let aligned = (digits << (8 * (3 - length))) & 0x00ff_ffff;
    let not_digits = (aligned.wrapping_add(0x0076_7676) | aligned) & 0x0080_8080 != 0;
    let [hundreds, tens, ones, _] = aligned.to_le_bytes().map(u32::from);
    let value = hundreds * 100 + tens * 10 + ones;
    if leading_zero || not_digits {
        return None;
    }
    u8::try_from(value).ok()
}

fn error_at(at: usize, reason: &'static str) -> ParseError {
    ParseError::Json { reason, at }
}
