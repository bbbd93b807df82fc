//! Certificate revocation lists by the real `openssl`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::ca::Ca;
use crate::process::{lasting_dir, run};

/// A builder of a revocation list. By default, the list is current and revokes nothing.
pub(crate) struct Crl<'a> {
    issuer: &'a Ca,
    revoked: Vec<PathBuf>,
    period: [&'static str; 4],
    version_2: &'static str,
    key_id: &'static str,
    extensions: String,
    number: u8,
    digest: &'static str,
}

impl<'a> Crl<'a> {
    pub(crate) fn of(issuer: &'a Ca) -> Self {
        Self {
            issuer,
            revoked: Vec::new(),
            period: [
                "-crl_lastupdate",
                "20240101000000Z",
                "-crl_nextupdate",
                "20900101000000Z",
            ],
            version_2: "crlnumber = number\ncrl_extensions = extensions\n",
            key_id: "authorityKeyIdentifier = keyid:always\n",
            extensions: String::new(),
            number: 1,
            digest: "sha256",
        }
    }

    /// Sets the CRL number (RFC 5280, 5.2.3), 1 by default.
    pub(crate) fn number(mut self, number: u8) -> Self {
        self.number = number;
        self
    }

    /// Signs with SHA-512.
    pub(crate) fn sha512(mut self) -> Self {
        self.digest = "sha512";
        self
    }

    /// Sets the time of issue one year earlier.
    pub(crate) fn old(mut self) -> Self {
        self.period[1] = "20230101000000Z";
        self
    }

    /// Revokes the certificate that belongs to this key.
    pub(crate) fn revokes(mut self, key: &std::path::Path) -> Self {
        self.revoked.push(key.with_file_name("cert.pem"));
        self
    }

    /// Sets times of issue and expiry in the distant past.
    pub(crate) fn expired(mut self) -> Self {
        self.period[1] = "20200101000000Z";
        self.period[3] = "20200201000000Z";
        self
    }

    /// Leaves out the authority key identifier.
    pub(crate) fn without_key_id(mut self) -> Self {
        self.key_id = "";
        self
    }

    /// Makes a list of version 1, which has no extensions.
    pub(crate) fn version_1(mut self) -> Self {
        self.version_2 = "";
        self
    }

    /// Limits the list to some certificates by the issuing distribution point, for example
    /// `onlyuser = TRUE`.
    pub(crate) fn scope(self, line: &str) -> Self {
        let point = "issuingDistributionPoint = critical,@point\n[point]\n";
        self.extension(&format!("{point}{line}"))
    }

    /// Adds an extension in the syntax of `openssl`'s configuration.
    pub(crate) fn extension(mut self, line: &str) -> Self {
        self.extensions = format!("{line}\n");
        self
    }

    /// Issues the list in a PEM file.
    pub(crate) fn issue(&self) -> PathBuf {
        let dir = lasting_dir("crl");
        let extensions = ["[extensions]\n", self.key_id, &self.extensions].concat();
        let config = CONFIG.to_owned() + self.version_2 + &extensions;
        fs::write(dir.join("openssl.cnf"), config).unwrap();
        fs::write(dir.join("index.txt"), "").unwrap();
        fs::write(dir.join("number"), format!("{:02x}\n", self.number)).unwrap();
        let ca = |args: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(["ca", "-config", "openssl.cnf"]).args(args);
            command.arg("-cert").arg(&self.issuer.cert);
            command.arg("-keyfile").arg(&self.issuer.key);
            run(command.current_dir(&dir))
        };
        for certificate in &self.revoked {
            ca(&["-revoke", certificate.to_str().unwrap()]);
        }
        let issue = ["-gencrl", "-out", "crl.pem", "-md", self.digest];
        ca(&[&issue[..], &self.period].concat());
        dir.join("crl.pem")
    }
}

/// Issues the list in a DER file.
pub(crate) fn der(pem: &PathBuf) -> PathBuf {
    let der = pem.with_extension("der");
    let mut openssl = Command::new("openssl");
    openssl.args(["crl", "-outform", "DER", "-in"]).arg(pem);
    run(openssl.arg("-out").arg(&der));
    der
}

/// A list in DER without nextUpdate and with a dummy signature: `openssl ca` cannot issue one.
pub(crate) fn without_next_update() -> PathBuf {
    let dir = lasting_dir("crl");
    fs::write(dir.join("list.cnf"), WITHOUT_NEXT_UPDATE).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["asn1parse", "-noout", "-genconf", "list.cnf"]);
    run(openssl.args(["-out", "crl.der"]).current_dir(&dir));
    dir.join("crl.der")
}

const WITHOUT_NEXT_UPDATE: &str = "asn1 = SEQUENCE:list
[list]
contents = SEQUENCE:contents
algorithm = SEQUENCE:algorithm
signature = BITSTRING:none
[contents]
version = INTEGER:1
algorithm = SEQUENCE:algorithm
issuer = SEQUENCE:issuer
this_update = UTCTIME:240101000000Z
[algorithm]
algorithm = OID:ecdsa-with-SHA256
[issuer]
cn = SET:cn
[cn]
cn = SEQUENCE:attribute
[attribute]
type = OID:commonName
value = UTF8:lists
";

const CONFIG: &str = "[ca]
default_ca = list
[list]
database = index.txt
default_md = sha256
unique_subject = no
";
