//! The kinds of PEM blocks by label (RFC 7468), and the messages for blocks that are refused.

pub(super) const LIST_IN_BUNDLE: &str = "this block is a certificate revocation list, which has no effect \
                              here: move it to a file that [rewrap].crl_files names";
pub(super) const ENCRYPTED: &str = "the private key is encrypted, and there is no setting for its password: \
                         decrypt it with openssl pkey -in FILE -out NEW_FILE";
pub(super) const UNKNOWN_KEY: &str = "this kind of private key is not supported: create an RSA, \
                           P-256, P-384 or Ed25519 key, in PKCS#8, PKCS#1 or SEC1";
const TRUSTED: &str = "a TRUSTED CERTIFICATE block is not supported: convert it with openssl x509 \
                       -in FILE -out NEW_FILE, one certificate at a time";
const OLD_LABEL: &str = "an X509 CERTIFICATE block is not supported: change the label on its BEGIN \
                         and END lines to CERTIFICATE";
const PKCS7: &str = "a PKCS#7 or CMS block is not supported: convert it with openssl pkcs7 \
                     -print_certs -in FILE -out NEW_FILE";
const UNKNOWN: &str = "the label of this block is unknown: remove the block, or correct its \
                       label to CERTIFICATE, X509 CRL or PRIVATE KEY";

/// The kind of a block.
pub(super) enum Kind {
    Certificate,
    RevocationList,
    /// A private key that rustls can load, unless the block has headers that say it is encrypted.
    PrivateKey,
    EncryptedKey,
    /// A kind of private key that rustls can't load.
    UnknownKey,
    /// A block that nico-rewrap never needs and always ignores.
    NoUse,
    /// A block that may be meant to have an effect but can't be read. The text is the message.
    Refused(&'static str),
}

impl Kind {
    /// The kind of a block with this label.
    pub(super) fn of(label: &[u8]) -> Self {
        match label {
            b"CERTIFICATE" => Self::Certificate,
            b"X509 CRL" => Self::RevocationList,
            b"PRIVATE KEY" | b"RSA PRIVATE KEY" | b"EC PRIVATE KEY" => Self::PrivateKey,
            b"ENCRYPTED PRIVATE KEY" => Self::EncryptedKey,
            b"DSA PRIVATE KEY" | b"OPENSSH PRIVATE KEY" | b"ANY PRIVATE KEY" => Self::UnknownKey,
            b"EC PARAMETERS"
            | b"DH PARAMETERS"
            | b"X9.42 DH PARAMETERS"
            | b"DSA PARAMETERS"
            | b"PUBLIC KEY"
            | b"RSA PUBLIC KEY"
            | b"CERTIFICATE REQUEST"
            | b"NEW CERTIFICATE REQUEST" => Self::NoUse,
            b"TRUSTED CERTIFICATE" => Self::Refused(TRUSTED),
            b"X509 CERTIFICATE" => Self::Refused(OLD_LABEL),
            b"PKCS7" | b"PKCS #7 SIGNED DATA" | b"CMS" => Self::Refused(PKCS7),
            _ => Self::Refused(UNKNOWN),
        }
    }
}
