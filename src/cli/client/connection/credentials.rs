//! The client certificate and its private key: from files, or from a command.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::super::problem::Problem;

/// Size limit of a file, in bytes. A wrong path must not fill the memory.
const MAX_BYTES: u64 = 1 << 20;

/// Where the client certificate comes from.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    /// From files.
    Files {
        certificate: PathBuf,
        private_key: PathBuf,
    },
    /// From a command that prints an `ExecCredential`, as kubectl runs one.
    Command(Vec<String>),
}

/// The certificate with its chain, and the private key.
pub(super) struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// The output of a credential command: the members of `client.authentication.k8s.io` that this
/// client uses.
#[derive(Deserialize)]
struct ExecCredential {
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

impl Identity {
    /// Reads the certificate and the key.
    pub(super) fn load(&self) -> Result<Credentials, Problem> {
        match self {
            Self::Files {
                certificate,
                private_key,
            } => {
                let chain = read(certificate)?;
                let key = read_key(private_key)?;
                credentials(
                    &chain,
                    &certificate.display().to_string(),
                    &key,
                    &private_key.display().to_string(),
                )
            }
            Self::Command(words) => from_command(words),
        }
    }
}

fn credentials(
    chain: &[u8],
    chain_name: &str,
    key: &[u8],
    key_name: &str,
) -> Result<Credentials, Problem> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain =
        chain.ok_or_else(|| Problem::config(format!("{chain_name} holds no PEM certificate")))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        Problem::config(format!(
            "{key_name} holds no PEM private key (PKCS#8, PKCS#1 or SEC1) without a password"
        ))
    })?;
    Ok(Credentials { chain, key })
}

/// The CAs in a file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, Problem> {
    let bytes = read(path)?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let added = certificate.map_err(|error| error.to_string());
        added
            .and_then(|certificate| store.add(certificate).map_err(|error| error.to_string()))
            .map_err(|error| {
                Problem::config(format!(
                    "{}: a certificate cannot be used ({error})",
                    path.display()
                ))
            })?;
    }
    if store.is_empty() {
        return Err(Problem::config(format!(
            "{} holds no PEM certificate",
            path.display()
        )));
    }
    Ok(store)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let problem = |error: std::io::Error| {
        Problem::config(format!("{} can't be read ({error})", path.display()))
    };
    let file = File::open(path).map_err(problem)?;
    contents(file).map_err(problem)
}

fn contents(file: File) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a private key. Refuses a file that other users can read. As in libpq, the group may
/// read a file of root: Kubernetes mounts secrets in this way.
fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let problem = |error: std::io::Error| {
        Problem::config(format!("{} can't be read ({error})", path.display()))
    };
    let file = File::open(path).map_err(problem)?;
    let metadata = file.metadata().map_err(problem)?;
    if let Some(sentence) = too_open(metadata.mode(), metadata.uid()) {
        return Err(Problem::config(format!("{}: {sentence}", path.display())));
    }
    contents(file).map_err(problem)
}

/// The reason for refusing a key file with this mode and owner. `None` if the file may be used.
fn too_open(mode: u32, owner: u32) -> Option<String> {
    let mode = mode & 0o777;
    let (forbidden, wanted) = if owner == 0 {
        (0o037, "0640")
    } else {
        (0o077, "0600")
    };
    (mode & forbidden != 0).then(|| {
        format!(
            "the private key has mode {mode:04o}, so other users can read or change it: chmod {wanted} (in Kubernetes, \
             set defaultMode: 0440 and fsGroup)"
        )
    })
}

fn from_command(words: &[String]) -> Result<Credentials, Problem> {
    let Some((program, args)) = words.split_first() else {
        return Err(Problem::config("credential_command is empty"));
    };
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| {
            Problem::config(format!(
                "credential_command: {program} cannot be started ({error})"
            ))
        })?;
    if !output.status.success() {
        return Err(Problem::config(format!(
            "credential_command: {program} failed ({})",
            output.status
        )));
    }
    let text = Zeroizing::new(output.stdout);
    let wrong = || {
        Problem::config(format!(
            "credential_command: {program} printed no ExecCredential with status.clientCertificateData and \
             status.clientKeyData"
        ))
    };
    // The text may contain a key, so no error repeats it.
    let credential: ExecCredential = serde_json::from_slice(&text).map_err(|_| wrong())?;
    let status = credential.status.ok_or_else(wrong)?;
    let key = status.client_key_data.map(Zeroizing::new);
    let (Some(chain), Some(key)) = (status.client_certificate_data, key) else {
        return Err(wrong());
    };
    let name = format!("the output of credential_command {program}");
    credentials(chain.as_bytes(), &name, key.as_bytes(), &name)
}

/// Whether there is a file, a socket or anything else at this path.
pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        for (mode, owner) in [(0o100_600, 1000), (0o400, 1000), (0o640, 0), (0o440, 0)] {
            assert_eq!(too_open(mode, owner), None, "{mode:o}");
        }
        for (mode, owner) in [
            (0o644, 1000),
            (0o640, 1000),
            (0o644, 0),
            (0o660, 0),
            (0o604, 1000),
        ] {
            let sentence = too_open(mode, owner).unwrap();
            assert!(sentence.contains(&format!("{mode:04o}")), "{sentence}");
        }
    }
}
