//! Distinguished names (RFC 5280, section 4.1.2.4) as text.
//!
//! The reader supports every string type that OpenSSL and other tools write. It gives no value
//! for an attribute that it can't read, or that has a character which breaks or reorders a
//! line. Such an attribute must never equal a configured text, and must not disguise a log line.

use std::fmt;

use x509_parser::{
    asn1_rs::{Any, Class, Tag},
    der_parser::{Oid, oid},
    x509::X509Name,
};

/// The attributes of a name that identities use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// CN.
    CommonName,
    /// O.
    Organization,
    /// OU.
    OrganizationalUnit,
}

impl Attribute {
    fn oid(self) -> Oid<'static> {
        match self {
            Self::CommonName => oid!(2.5.4.3),
            Self::Organization => oid!(2.5.4.10),
            Self::OrganizationalUnit => oid!(2.5.4.11),
        }
    }
}

/// A subject or an issuer.
pub(crate) struct DistinguishedName<'a>(&'a X509Name<'a>);

impl<'a> DistinguishedName<'a> {
    pub(crate) fn new(name: &'a X509Name<'a>) -> Self {
        Self(name)
    }

    /// All values of the attribute, in the order of the certificate. `None` for a value that
    /// can't be read.
    pub(crate) fn all(&self, attribute: Attribute) -> impl Iterator<Item = Option<String>> {
        let oid = attribute.oid();
        self.0
            .iter_attributes()
            .filter(move |found| *found.attr_type() == oid)
            .map(|found| text(found.attr_value()))
    }

    /// The last value of the attribute, if it can be read.
    pub(crate) fn last(&self, attribute: Attribute) -> Option<String> {
        self.all(attribute).last().flatten()
    }
}

/// The form for logs and audit records: `O=…, CN=…`. An unreadable value becomes `?`, and a
/// comma in a value becomes `\,` (RFC 4514, section 2.4).
impl fmt::Display for DistinguishedName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, found) in self.0.iter_attributes().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            let oid = found.attr_type();
            if *oid == Attribute::CommonName.oid() {
                f.write_str("CN")?;
            } else if *oid == Attribute::Organization.oid() {
                f.write_str("O")?;
            } else if *oid == Attribute::OrganizationalUnit.oid() {
                f.write_str("OU")?;
            } else {
                write!(f, "{oid}")?;
            }
            match text(found.attr_value()) {
                Some(value) => {
                    let value = value.escape_debug().to_string();
                    write!(f, "={}", value.replace(',', "\\,"))?;
                }
                None => f.write_str("=?")?,
            }
        }
        Ok(())
    }
}

fn text(value: &Any<'_>) -> Option<String> {
    // Tag numbers identify string types in the universal class only. Strings in DER are never
    // constructed from pieces.
    if value.header.class() != Class::Universal || value.header.is_constructed() {
        return None;
    }
    let bytes = value.data;
    let text = match value.header.tag() {
        Tag::Utf8String => std::str::from_utf8(bytes).ok()?.to_owned(),
        Tag::PrintableString | Tag::Ia5String => bytes.is_ascii().then(|| latin_1(bytes))?,
        // All tools use T.61 strings for Latin-1.
        Tag::T61String => latin_1(bytes),
        // UCS-2, big endian. Surrogates are not valid.
        Tag::BmpString => {
            if !bytes.len().is_multiple_of(2) {
                return None;
            }
            let units = bytes
                .chunks_exact(2)
                .map(|b| u16::from_be_bytes([b[0], b[1]]));
            units
                .map(|unit| char::from_u32(u32::from(unit)))
                .collect::<Option<String>>()?
        }
        _ => return None,
    };
    (!text.chars().any(is_deceptive)).then_some(text)
}

/// Whether `c` is a control character, a Unicode line break, or a character that changes the
/// writing direction (UAX #9).
pub(super) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

fn latin_1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use x509_parser::asn1_rs::{Header, Length};

    use super::*;

    fn read(tag: Tag, bytes: &[u8]) -> Option<String> {
        let header = Header::new(Class::Universal, false, tag, Length::Definite(bytes.len()));
        text(&Any::new(header, bytes))
    }

    #[test]
    fn every_string_type_that_tools_write_can_be_read() {
        let b = "Zoë".as_bytes();
        assert_eq!(read(Tag::Utf8String, b).as_deref(), Some("Zoë"));
        assert_eq!(read(Tag::PrintableString, b"Zoe").as_deref(), Some("Zoe"));
        assert_eq!(read(Tag::Ia5String, b"z@e").as_deref(), Some("z@e"));
        assert_eq!(read(Tag::T61String, b"Zo\xeb").as_deref(), Some("Zoë"));
        assert_eq!(
            read(Tag::BmpString, b"\0Z\0o\0\xeb").as_deref(),
            Some("Zoë")
        );
    }

    #[test]
    fn unreadable_values_are_absent() {
        assert_eq!(read(Tag::Utf8String, b"\xff"), None);
        assert_eq!(read(Tag::PrintableString, b"Zo\xeb"), None);
        assert_eq!(read(Tag::BmpString, b"\0Z\0"), None);
        assert_eq!(read(Tag::BmpString, b"\xd8\0"), None);
        assert_eq!(read(Tag::OctetString, b"Zoe"), None);
        assert_eq!(read(Tag::NumericString, b"12"), None);
        for (class, constructed) in [(Class::ContextSpecific, false), (Class::Universal, true)] {
            let tag = Tag::Utf8String;
            let header = Header::new(class, constructed, tag, Length::Definite(3));
            assert_eq!(text(&Any::new(header, b"Zoe")), None);
        }
    }

    #[test]
    fn characters_that_break_or_reorder_a_line_are_refused() {
        assert_eq!(read(Tag::Utf8String, b"admin\0.example"), None);
        assert_eq!(read(Tag::PrintableString, b"a\nb"), None);
        assert_eq!(read(Tag::T61String, b"a\x85b"), None);
        for odd in [
            "a\u{7f}b",
            "a\u{9b}b",
            "a\u{61c}b",
            "a\u{200f}b",
            "a\u{2028}b",
            "a\u{2029}b",
            "a\u{202e}b",
            "a\u{2066}b",
        ] {
            assert_eq!(read(Tag::Utf8String, odd.as_bytes()), None, "{odd:?}");
        }
    }
}
