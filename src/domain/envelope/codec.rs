//! The text of an envelope: base64 of JSON. It is read strictly and written canonically.
//!
//! A generic JSON parser is slow with arrays of numbers, so this parser reads only this object. It
//! accepts and refuses the same texts as a strict `serde_json` reader of the object. The tests
//! compare the two.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Buffers, Envelope, NONCE_BYTES, ParseError, SCHEME_VERSION, TAG_BYTES};
use crate::domain::keyring::KeyId;

/// Reads a text that has no white space around it.
pub(super) fn read<'b>(text: &str, buffers: &'b mut Buffers) -> Result<Envelope<'b>, ParseError> {
    let Buffers { json, bytes } = buffers;
    json.clear();
    // The fast decoder gives no reason. If it refuses the text, the other decoder gives the reason.
    if base64_simd::STANDARD.decode_append(text, json).is_err() {
        json.clear();
        STANDARD.decode_vec(text, json).map_err(base64_error)?;
    }
    let mut reader = Reader::new(json);
    let (key_id, nonce) = reader.envelope(bytes)?;
    reader.end()?;
    Ok(Envelope {
        key_id,
        nonce,
        ciphertext: bytes,
    })
}

/// Reads the key id from the first characters of a text that has no white space before it.
/// `None` if the text does not begin as this program and nico-api write it, or if `prefix` is
/// too short. The caller must then read the whole text.
pub(super) fn read_key_id<'b>(prefix: &str, buffers: &'b mut Buffers) -> Option<Cow<'b, str>> {
    let json = &mut buffers.json;
    json.clear();
    // Four characters of base64 are three bytes.
    let whole_groups = prefix.get(..prefix.len() / 4 * 4)?;
    base64_simd::STANDARD
        .decode_append(whole_groups, json)
        .ok()?;
    let mut reader = Reader::new(json);
    reader.expect(b'{', "").ok()?;
    for (name, is_key_id) in [("scheme_version", false), ("key_id", true)] {
        if reader.string().ok()? != name {
            return None;
        }
        reader.expect(b':', "").ok()?;
        if is_key_id {
            break;
        }
        reader.scheme_version().ok()?;
        reader.expect(b',', "").ok()?;
    }
    reader.key_id().ok()
}

/// Writes compact JSON with the members in the order of the format. `json` is scratch
/// memory.
pub(super) fn write(
    key_id: &str,
    nonce: &[u8; NONCE_BYTES],
    ciphertext: &[u8],
    json: &mut Vec<u8>,
) -> String {
    json.clear();
    json.extend_from_slice(br#"{"scheme_version":1,"key_id":"#);
    push_string(json, key_id);
    json.extend_from_slice(br#","nonce":"#);
    push_byte_array(json, nonce);
    json.extend_from_slice(br#","ciphertext":"#);
    push_byte_array(json, ciphertext);
    json.push(b'}');
    base64_simd::STANDARD.encode_to_string(json)
}

/// Uses the same escapes as `serde_json`, the encoder of nico-api.
fn push_string(json: &mut Vec<u8>, text: &str) {
    if text.bytes().all(is_plain) {
        json.push(b'"');
        json.extend_from_slice(text.as_bytes());
        json.push(b'"');
    } else {
        json.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
    }
}

/// Whether `byte` is printable ASCII that needs no escape in a JSON string.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'\\' && byte != b'"'
}

fn push_byte_array(json: &mut Vec<u8>, bytes: &[u8]) {
    json.push(b'[');
    let start = json.len();
    // A byte takes at most three digits and a comma.
    json.resize(start + SPELLING * bytes.len(), 0);
    let mut end = start;
    for byte in bytes {
        let (spelled, length) = SPELLED[usize::from(*byte)];
        // Always copy the whole entry, and overwrite the unused part next: that is cheaper
        // than a branch.
        json[end..end + SPELLING].copy_from_slice(&spelled.to_le_bytes());
        end += usize::from(length);
    }
    // Remove the last comma. An empty array has none.
    json.truncate(end.saturating_sub(1).max(start));
    json.push(b']');
}

/// Maximum number of characters of a spelled byte.
const SPELLING: usize = 4;

/// Every byte in decimal with a comma after it, and the number of characters. The first
/// character is in the lowest byte. Unused bytes are zero.
const SPELLED: [(u32, u8); 256] = {
    let mut table = [(0, 0); 256];
    let mut byte = 0;
    while byte < 256 {
        let digits = [byte / 100, byte / 10 % 10, byte % 10];
        let mut word = b',' as u32;
        let mut length = 1;
        let mut rest = byte;
        // From the last digit to the first. There is at least one digit.
        while rest > 0 || length == 1 {
            word = word << 8 | (b'0' as usize + digits[3 - length]) as u32;
            length += 1;
            rest /= 10;
        }
        table[byte] = (word, length as u8);
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

/// Reads this object directly from the JSON text, without a tree.
struct Reader<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0 }
    }

    /// Reads the object. Returns key id and nonce, and stores the ciphertext in `bytes`.
    fn envelope(
        &mut self,
        bytes: &mut Vec<u8>,
    ) -> Result<(Cow<'a, str>, [u8; NONCE_BYTES]), ParseError> {
        bytes.clear();
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
                "nonce" => nonce.replace(self.nonce(bytes)?).is_none(),
                "ciphertext" => ciphertext.replace(self.ciphertext(bytes)?).is_none(),
                _ => return Err(error_at(name_at, "an unknown member")),
            };
            if !fresh {
                return Err(error_at(name_at, "a repeated member"));
            }
            match self.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err(self.error("a comma or the end of the object was expected")),
            }
        }

        let missing = |reason| error_at(self.at, reason);
        scheme_version.ok_or_else(|| missing("scheme_version is missing"))?;
        let key_id = key_id.ok_or_else(|| missing("key_id is missing"))?;
        let nonce = nonce.ok_or_else(|| missing("nonce is missing"))?;
        ciphertext.ok_or_else(|| missing("ciphertext is missing"))?;
        Ok((key_id, nonce))
    }

    fn end(&mut self) -> Result<(), ParseError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("there is text after the object")),
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

    fn key_id(&mut self) -> Result<Cow<'a, str>, ParseError> {
        let id = self.string()?;
        KeyId::check(&id).map_err(|_| ParseError::KeyId)?;
        Ok(id)
    }

    /// Reads the nonce. The end of `bytes` is scratch memory.
    fn nonce(&mut self, bytes: &mut Vec<u8>) -> Result<[u8; NONCE_BYTES], ParseError> {
        let at = self.at;
        let start = bytes.len();
        self.byte_array(bytes)?;
        let nonce = <[u8; NONCE_BYTES]>::try_from(&bytes[start..]);
        bytes.truncate(start);
        nonce.map_err(|_| error_at(at, "nonce does not have 12 bytes"))
    }

    /// Reads the ciphertext into `bytes`, which is empty unless the member is repeated.
    fn ciphertext(&mut self, bytes: &mut Vec<u8>) -> Result<(), ParseError> {
        // Most bytes take four characters. If this estimate is too small, the buffer grows.
        bytes.reserve((self.json.len() - self.at) / 3);
        let start = bytes.len();
        self.byte_array(bytes)?;
        if bytes.len() - start < TAG_BYTES {
            return Err(ParseError::NoTag);
        }
        Ok(())
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

    /// Reads as many compactly spelled numbers as possible, two at a time and without a
    /// branch that depends on the digits. It stops before anything else, which includes the
    /// last numbers. The caller reads the rest carefully.
    fn compact_pairs(&mut self, bytes: &mut Vec<u8>) {
        while let Some(window) = self.json[self.at..].first_chunk::<8>() {
            let word = u64::from_le_bytes(*window);
            let commas = bytes_equal(word, b',');
            let rest = commas & commas.wrapping_sub(1);
            if rest == 0 {
                return;
            }
            let first = commas.trailing_zeros() + 1;
            let second = rest.trailing_zeros() + 1;
            let (a, a_is_number) = small_number(word, first);
            let (b, b_is_number) = small_number(word >> first, second - first);
            if !(a_is_number & b_is_number) {
                return;
            }
            bytes.extend_from_slice(&[a, b]);
            self.at += second as usize / 8;
        }
    }

    /// Reads an unsigned JSON integer without leading zeros, fraction or exponent.
    /// Saturates.
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

    /// Reads a JSON string and resolves its escapes. `serde_json` checks the text in the
    /// quotes.
    fn string(&mut self) -> Result<Cow<'a, str>, ParseError> {
        self.expect(b'"', "a string was expected")?;
        let start = self.at - 1;
        loop {
            match self.json.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => return Err(error_at(start, "a string is not closed")),
            }
        }
        self.at += 1;
        let quoted = &self.json[start..self.at];
        let plain = &quoted[1..quoted.len() - 1];
        if plain.iter().copied().all(is_plain)
            && let Ok(text) = std::str::from_utf8(plain)
        {
            return Ok(Cow::Borrowed(text));
        }
        serde_json::from_slice::<String>(quoted)
            .map(Cow::Owned)
            .map_err(|_| error_at(start, "a string is not valid JSON"))
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

/// The high bit of each byte of `word` that equals `byte`. Above the first match, a byte
/// that differs only in the lowest bit may be reported too. No digit differs from a comma
/// in only that bit.
fn bytes_equal(word: u64, byte: u8) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let differing = word ^ u64::from_le_bytes([byte; 8]);
    differing.wrapping_sub(ONES) & !differing & (ONES << 7)
}

/// The number that the lowest `bits` of `word` spell, with a comma at the end, and whether
/// the spelling is valid. To check this, the function compares the bits with the canonical
/// spelling. This excludes leading zeros, characters other than digits, and numbers above
/// 255.
fn small_number(word: u64, bits: u32) -> (u8, bool) {
    let spelled = word & (u64::MAX >> (64 - bits));
    // Hundreds in the lowest byte, then tens, then ones. A short number has fewer.
    let digits = spelled.wrapping_shl(32_u32.wrapping_sub(bits)) & 0x000f_0f0f;
    let value = digits * 100 + (digits >> 8) * 10 + (digits >> 16);
    let value = value.to_le_bytes()[0];
    (value, spelled == u64::from(SPELLED[usize::from(value)].0))
}

fn error_at(at: usize, reason: &'static str) -> ParseError {
    ParseError::Json { reason, at }
}
