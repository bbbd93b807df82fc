//! PEM files (RFC 7468): certificates, a private key, revocation lists.
//!
//! A file may hold blocks that are used, and some kinds of blocks that are ignored, such as a
//! key in a file of certificates. A file with any other block is refused, and the error names
//! the line.

mod kind;
mod scan;

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{PemObject, SectionKind},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::regular_file;

pub use self::scan::SyntaxError;
use self::{
    kind::{ENCRYPTED, Kind, LIST_IN_BUNDLE, UNKNOWN_KEY},
    scan::{Block, blocks},
};

/// The maximum size of a file, in bytes. Bundles and revocation lists are smaller. The limit
/// keeps a wrong path from filling the memory.
const MAX_BYTES: u64 = 16 << 20;

/// A PEM file that can't be used.
#[derive(Debug, Error)]
pub enum PemError {
    /// The file does not exist or can't be read.
    #[error("{path} can't be read ({source})", path = .0.display(), source = .1)]
    Unreadable(PathBuf, std::io::Error),
    /// The file has no PEM block of the required kind.
    #[error("{path} holds no {what}{advice}", path = .0.display(), what = .1, advice = .2)]
    Lacks(PathBuf, &'static str, &'static str),
    /// A line of the file is not valid in a PEM file.
    #[error("{path} line {line}: {error}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The number of the line; the first line is 1.
        line: usize,
        /// What is wrong with the line.
        error: SyntaxError,
    },
    /// The file has a block that can't be used and must not be ignored.
    #[error("{path} line {line}: {what}", path = .path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// The number of the line on which the block begins.
        line: usize,
        /// What the block is, and what to do.
        what: &'static str,
    },
    /// The file has more than one private key.
    #[error(
        "{path} holds several private keys (on lines {first} and {second}): leave only one",
        path = .path.display()
    )]
    SeveralKeys {
        /// The file.
        path: PathBuf,
        /// The line on which the first key begins.
        first: usize,
        /// The line on which the second key begins.
        second: usize,
    },
}

/// An item of a file with its position.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The number of the line on which the block begins; the first line is 1. `None` in a DER
    /// file.
    pub line: Option<usize>,
    /// The item.
    pub item: T,
}

/// The contents of a file, read once, so that the bytes that were checked are the bytes in use.
pub struct PemFile {
    path: PathBuf,
    bytes: Zeroizing<Vec<u8>>,
}

impl PemFile {
    /// Reads the whole file and does not interpret it.
    ///
    /// # Errors
    ///
    /// [`PemError::Unreadable`].
    pub fn read(path: &Path) -> Result<Self, PemError> {
        match regular_file::read(path, MAX_BYTES) {
            Ok(bytes) => Ok(Self {
                path: path.to_owned(),
                bytes,
            }),
            Err(error) => Err(PemError::Unreadable(path.to_owned(), error)),
        }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contents of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All certificates; at least one. Keys, parameters and requests in the file are ignored,
    /// because some programs need the chain and the key in one file.
    ///
    /// # Errors
    ///
    /// [`PemError`], except for [`PemError::Unreadable`].
    pub fn certificates(&self) -> Result<Vec<Located<CertificateDer<'static>>>, PemError> {
        let mut found = Vec::new();
        for block in self.blocks()? {
            match Kind::of(block.label) {
                Kind::Certificate => {
                    let der = self.decoded(&block)?;
                    found.push(located(&block, der.into()));
                }
                Kind::RevocationList => return Err(self.block(&block, LIST_IN_BUNDLE)),
                Kind::PrivateKey | Kind::EncryptedKey | Kind::UnknownKey | Kind::NoUse => {}
                Kind::Refused(what) => return Err(self.block(&block, what)),
            }
        }
        self.not_empty(found, "PEM certificate")
    }

    /// The private key: PKCS#8, PKCS#1 or SEC1. Certificates and parameters in the file are
    /// ignored.
    ///
    /// # Errors
    ///
    /// [`PemError`], except for [`PemError::Unreadable`].
    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>, PemError> {
        let mut found: Option<(usize, PrivateKeyDer<'static>)> = None;
        for block in self.blocks()? {
            match Kind::of(block.label) {
                Kind::PrivateKey if block.has_headers => {
                    return Err(self.block(&block, ENCRYPTED));
                }
                Kind::PrivateKey => {
                    let key = PrivateKeyDer::from_pem_slice(block.text)
                        .map_err(|_| self.block(&block, UNDECODABLE))?;
                    if let Some((first, _)) = found {
                        return Err(PemError::SeveralKeys {
                            path: self.path.clone(),
                            first,
                            second: block.line,
                        });
                    }
                    found = Some((block.line, key));
                }
                Kind::EncryptedKey => return Err(self.block(&block, ENCRYPTED)),
                Kind::UnknownKey => return Err(self.block(&block, UNKNOWN_KEY)),
                Kind::Certificate | Kind::RevocationList | Kind::NoUse => {}
                Kind::Refused(what) => return Err(self.block(&block, what)),
            }
        }
        let what = "PEM private key (PKCS#8, PKCS#1 or SEC1)";
        found.map(|(_, key)| key).ok_or_else(|| self.lacks(what))
    }

    /// All certificate revocation lists; at least one. The file is PEM, or a single list in DER,
    /// the form in which CAs publish lists (RFC 5280, section 4.2.1.13). Certificates in the file
    /// are ignored.
    ///
    /// # Errors
    ///
    /// [`PemError`], except for [`PemError::Unreadable`].
    pub fn revocation_lists(
        &self,
    ) -> Result<Vec<Located<CertificateRevocationListDer<'static>>>, PemError> {
        if self.is_der() {
            return Ok(vec![Located {
                line: None,
                item: self.bytes.to_vec().into(),
            }]);
        }
        let mut found = Vec::new();
        for block in self.blocks()? {
            match Kind::of(block.label) {
                Kind::RevocationList => {
                    let der = self.decoded(&block)?;
                    found.push(located(&block, der.into()));
                }
                Kind::Certificate
                | Kind::PrivateKey
                | Kind::EncryptedKey
                | Kind::UnknownKey
                | Kind::NoUse => {}
                Kind::Refused(what) => return Err(self.block(&block, what)),
            }
        }
        self.not_empty(found, "certificate revocation list in PEM or DER")
    }

    fn blocks(&self) -> Result<Vec<Block<'_>>, PemError> {
        if self.is_der() {
            return Ok(Vec::new());
        }
        blocks(&self.bytes).map_err(|(line, error)| PemError::Syntax {
            path: self.path.clone(),
            line,
            error,
        })
    }

    /// The DER bytes of a block.
    fn decoded(&self, block: &Block<'_>) -> Result<Vec<u8>, PemError> {
        let decoded = <(SectionKind, Vec<u8>)>::from_pem_slice(block.text);
        let (_, der) = decoded.map_err(|_| self.block(block, UNDECODABLE))?;
        Ok(der)
    }

    /// Whether the file begins with the tag and the length of a SEQUENCE, like every
    /// certificate, list and key in DER. The tag is the same byte as the letter `0`, so the length
    /// has to tell DER from text: its first byte is either not ASCII or the exact length of the
    /// rest.
    fn is_der(&self) -> bool {
        match &self.bytes[..] {
            [0x30, length, rest @ ..] => !length.is_ascii() || rest.len() == usize::from(*length),
            _ => false,
        }
    }

    fn not_empty<T>(&self, found: Vec<T>, what: &'static str) -> Result<Vec<T>, PemError> {
        if found.is_empty() {
            return Err(self.lacks(what));
        }
        Ok(found)
    }

    fn lacks(&self, what: &'static str) -> PemError {
        let advice = if self.is_der() {
            ", because it is in DER: convert it to PEM with openssl x509 -inform DER, or openssl \
             pkey -inform DER for a key"
        } else {
            ""
        };
        PemError::Lacks(self.path.clone(), what, advice)
    }

    fn block(&self, block: &Block<'_>, what: &'static str) -> PemError {
        PemError::Block {
            path: self.path.clone(),
            line: block.line,
            what,
        }
    }
}

fn located<T>(block: &Block<'_>, item: T) -> Located<T> {
    Located {
        line: Some(block.line),
        item,
    }
}

const UNDECODABLE: &str = "the text of this block is not base64, or part of it is missing";

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> PemFile {
        PemFile {
            path: PathBuf::from("file"),
            bytes: bytes.to_vec().into(),
        }
    }

    #[test]
    fn text_that_begins_with_a_zero_is_not_der() {
        for der in [&b"\x30\x82\x01\x00"[..], b"\x30\x03abc"] {
            assert!(file(der).is_der());
        }
        for text in [&b"0 lists\n"[..], b"0", b"", b"-----BEGIN"] {
            assert!(!file(text).is_der());
        }
    }
}
