//! Hand-made HTTP/2 frames (RFC 9113), for requests that no normal client sends.

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// The error code CANCEL: the client no longer needs the answer (section 7).
pub(crate) const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// The re-wrap method.
pub(crate) const METHOD: &str = "/forge.Forge/ReencryptTenantIdentitySecrets";

/// An empty gRPC message: a site-wide apply.
pub(crate) const APPLY: [u8; 5] = [0; 5];

/// A frame (section 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// The header block of a POST to [`METHOD`] with these additional fields. A pseudo-header replaces
/// the default one.
pub(crate) fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let usual = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", METHOD),
        (":authority", "localhost"),
    ];
    let value = |name: &str| fields.iter().find(|(other, _)| *other == name);
    let pseudo = usual.map(|field| *value(field.0).unwrap_or(&field));
    let others = fields.iter().filter(|(name, _)| !name.starts_with(':'));
    let all = pseudo.iter().chain(others);
    all.flat_map(|(name, value)| literal(name, value)).collect()
}

/// A literal field without indexing (RFC 7541, section 6.2.2).
pub(crate) fn literal(name: &str, value: &str) -> Vec<u8> {
    [vec![0], string(name), string(value)].concat()
}

/// A string literal (RFC 7541, section 5.2).
fn string(text: &str) -> Vec<u8> {
    let mut rest = text.len();
    let mut bytes = Vec::new();
    if rest < 127 {
        bytes.push(u8::try_from(rest).unwrap());
    } else {
        bytes.push(127);
        rest -= 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).unwrap());
    }
    bytes.extend(text.as_bytes());
    bytes
}
