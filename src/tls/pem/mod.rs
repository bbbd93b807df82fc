//! PEM files (RFC 7468): certificates, a private key, revocation lists.
//!
//! Every block of a file is either used, or known to be of no use where it is. A file with a
//! block that is neither is refused, with the number of the line.

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

/// In bytes: more than any bundle or revocation list of a site has. What is in memory
/// by mistake is not there for anything else.
const MAX_BYTES: u64 = 16 << 20;

/// A PEM file that can't be used.
#[derive(Debug, Error)]
pub enum PemError {
    /// The file is not there, or not for us to read.
    #[error("{path} can't be read ({source})", path = .0.display(), source = .1)]
    Unreadable(PathBuf, std::io::Error),
    /// The file has no PEM block of the kind that is needed.
    #[error("{path} holds no {what}{advice}", path = .0.display(), what = .1, advice = .2)]
    Lacks(PathBuf, &'static str, &'static str),
    /// The text of the file is not that of a PEM file.
    #[error("{path} line {line}: {error}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The number of the line; the first line is 1.
        line: usize,
        /// What is wrong with the line.
        error: SyntaxError,
    },
    /// A block is of no use in this file, and must not be passed over.
    #[error("{path} line {line}: {what}", path = .path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// The number of the line on which the block begins.
        line: usize,
        /// What the block is, and what to do.
        what: &'static str,
    },
    /// More than one private key.
    #[error(
        "{path} holds several private keys (on lines {first} and {second}): leave one of them",
        path = .path.display()
    )]
    SeveralKeys {
        /// The file.
        path: PathBuf,
        /// The line on which the first one begins.
        first: usize,
        /// The line on which the second one begins.
        second: usize,
    },
}

/// Something in a file, and the line on which its block begins; `None` in a file that is not
/// PEM but DER.
#[derive(Debug, Clone)]
pub struct Located<T> {
    /// The number of the line; the first line is 1.
    pub line: Option<usize>,
    /// What is there.
    pub item: T,
}

/// What was in a file when it was read: what is checked is then what is used.
pub struct PemFile {
    path: PathBuf,
    bytes: Zeroizing<Vec<u8>>,
}

impl PemFile {
    /// Reads the whole file, whatever is in it.
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

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All certificates, at least one. Keys, parameters and requests beside them are passed
    /// over: some programs want the chain and the key in one file.
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

    /// The private key: PKCS#8, PKCS#1 or SEC1. Certificates and parameters beside it are
    /// passed over.
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

    /// All certificate revocation lists, at least one: PEM, or a single one in DER, which is
    /// how they are published (RFC 5280, section 4.2.1.13). Certificates beside them are
    /// passed over.
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

    /// The bytes of a certificate or a list.
    fn decoded(&self, block: &Block<'_>) -> Result<Vec<u8>, PemError> {
        let decoded = <(SectionKind, Vec<u8>)>::from_pem_slice(block.text);
        let (_, der) = decoded.map_err(|_| self.block(block, UNDECODABLE))?;
        Ok(der)
    }

    /// Whether the file begins with the tag and the length of a SEQUENCE, as every
    /// certificate, list and key in DER does. The tag is that of the letter `0`. The first byte
    /// of the length is not ASCII, unless it is the length itself.
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
            ", because it is in DER: convert it to PEM with openssl x509, or openssl pkey for a \
             key, and -inform DER"
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
    fn der_is_told_from_text_that_begins_with_its_first_letter() {
        for der in [&b"\x30\x82\x01\x00"[..], b"\x30\x03abc"] {
            assert!(file(der).is_der());
        }
        for text in [&b"0 lists\n"[..], b"0", b"", b"-----BEGIN"] {
            assert!(!file(text).is_der());
        }
    }
}
