//! Certificates by the real `openssl`. One builder, [`Cert`], creates them all, so that tests can
//! have tables of certificates.
//!
//! The files exist until the test process ends. The certificates of a usual site are in `certs.rs`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::ca::Ca;
use crate::process::{lasting_dir, run};

/// A certificate with its private key.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// The leaf and the intermediates below the root, in the order of a TLS handshake.
    pub(crate) cert_chain: PathBuf,
    /// The private key.
    pub(crate) key: PathBuf,
}

/// The ASN.1 string type of subject attributes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Strings {
    /// PrintableString if the text allows it, as in older tools.
    #[default]
    Printable,
    /// UTF8String, the default of `openssl`.
    Utf8,
    /// T61String, which all programs read as Latin-1.
    T61,
    /// BMPString: UTF-16.
    Bmp,
    /// IA5String in O, OU and CN, which X.520 does not allow.
    Ia5,
}

#[derive(Clone, Copy, Debug, Default)]
enum Validity {
    #[default]
    Now,
    Past,
    Future,
    Until(SystemTime),
    From(SystemTime),
}

#[derive(Clone, Copy, Debug, Default)]
enum Key {
    #[default]
    P256,
    P384,
    P521,
    Rsa,
    RsaPss,
}

/// A builder of certificates. The default is a P-256 leaf with digitalSignature, no EKU and no SAN.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cert {
    subject: String,
    strings: Strings,
    sans: Vec<String>,
    key_usage: Option<String>,
    eku: Option<String>,
    ca: bool,
    path_length: Option<u32>,
    extensions: Vec<String>,
    validity: Validity,
    key: Key,
    traditional: bool,
    sha512: bool,
}

impl Cert {
    /// Starts a certificate with this subject, in the syntax of `openssl -subj`:
    /// `/O=Acme/OU=admins/CN=alice`, or `/` for an empty one.
    pub(crate) fn new(subject: &str) -> Self {
        Self {
            subject: subject.into(),
            key_usage: Some("critical,digitalSignature".into()),
            ..Self::default()
        }
    }

    /// Sets the string type of the subject.
    pub(crate) fn strings(mut self, strings: Strings) -> Self {
        self.strings = strings;
        self
    }

    /// Adds a subject alternative name: `URI:spiffe://…`, `DNS:localhost`, `IP:::1`,
    /// `otherName:1.2.3;UTF8:x`.
    pub(crate) fn san(mut self, san: &str) -> Self {
        self.sans.push(san.into());
        self
    }

    /// Sets the key usage extension. `None` leaves it out.
    pub(crate) fn key_usage(mut self, usage: Option<&str>) -> Self {
        self.key_usage = usage.map(Into::into);
        self
    }

    /// Sets the extended key usage extension, for example `clientAuth,serverAuth`.
    pub(crate) fn eku(mut self, usage: &str) -> Self {
        self.eku = Some(usage.into());
        self
    }

    /// Adds an extension in the syntax of `openssl`'s configuration: `1.2.3.4 = DER:0500`.
    pub(crate) fn extension(mut self, line: &str) -> Self {
        self.extensions.push(line.into());
        self
    }

    /// Sets the CA flag in the basic constraints.
    pub(crate) fn ca(mut self) -> Self {
        self.ca = true;
        self
    }

    /// Makes a CA that allows this number of CAs below it.
    pub(crate) fn path_length(mut self, cas: u32) -> Self {
        self.path_length = Some(cas);
        self.ca()
    }

    /// Makes the certificate valid only in 2020.
    pub(crate) fn expired(mut self) -> Self {
        self.validity = Validity::Past;
        self
    }

    /// Makes the certificate valid from 2090.
    pub(crate) fn not_yet_valid(mut self) -> Self {
        self.validity = Validity::Future;
        self
    }

    /// Makes the certificate valid from now for this period.
    pub(crate) fn valid_for(mut self, period: Duration) -> Self {
        self.validity = Validity::Until(SystemTime::now() + period);
        self
    }

    /// Makes the certificate valid from this time.
    pub(crate) fn valid_from(mut self, time: SystemTime) -> Self {
        self.validity = Validity::From(time);
        self
    }

    /// Uses an RSA key of 2048 bits.
    pub(crate) fn rsa(mut self) -> Self {
        self.key = Key::Rsa;
        self
    }

    /// Uses a key that only allows RSA-PSS.
    pub(crate) fn rsa_pss(mut self) -> Self {
        self.key = Key::RsaPss;
        self
    }

    /// Uses a P-384 key.
    pub(crate) fn p384(mut self) -> Self {
        self.key = Key::P384;
        self
    }

    /// Uses a P-521 key.
    pub(crate) fn p521(mut self) -> Self {
        self.key = Key::P521;
        self
    }

    /// Writes the key file in the format of its algorithm (SEC1, PKCS#1) instead of PKCS#8.
    pub(crate) fn traditional_key(mut self) -> Self {
        self.traditional = true;
        self
    }

    /// Signs with SHA-512.
    pub(crate) fn sha512(mut self) -> Self {
        self.sha512 = true;
        self
    }

    /// Issues the certificate with a signature of `issuer`.
    pub(crate) fn signed_by(&self, issuer: &Ca) -> Leaf {
        let (pem, key) = self.issue(Some(issuer));
        let cert_chain = key.with_file_name("chain.pem");
        fs::write(&cert_chain, pem + &issuer.chain).unwrap();
        Leaf { cert_chain, key }
    }

    /// Issues a self-signed certificate.
    pub(crate) fn self_signed(&self) -> Leaf {
        let (_, key) = self.issue(None);
        Leaf {
            cert_chain: key.with_file_name("cert.pem"),
            key,
        }
    }

    /// Creates the key, the request and the certificate. Returns the PEM of the certificate and the
    /// path of the key.
    pub(crate) fn issue(&self, issuer: Option<&Ca>) -> (String, PathBuf) {
        let dir = lasting_dir("pki");
        fs::write(dir.join("openssl.cnf"), self.config()).unwrap();
        fs::write(dir.join("index.txt"), "").unwrap();
        let openssl = |args: &[&str]| run(Command::new("openssl").args(args).current_dir(&dir));
        let key_args = match self.key {
            Key::P256 => ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Key::P384 => ["ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
            Key::P521 => ["ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
            Key::Rsa => ["rsa", "-pkeyopt", "rsa_keygen_bits:2048"],
            Key::RsaPss => ["rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"],
        };
        let request = [
            "req",
            "-new",
            "-config",
            "openssl.cnf",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "csr.pem",
        ];
        openssl(
            &[
                &request[..],
                &["-subj", &self.subject, "-newkey"],
                &key_args,
            ]
            .concat(),
        );
        let signer = match issuer {
            Some(ca) => [
                "-cert",
                ca.cert.to_str().unwrap(),
                "-keyfile",
                ca.key.to_str().unwrap(),
            ]
            .to_vec(),
            None => ["-selfsign", "-keyfile", "key.pem"].to_vec(),
        };
        let date = |time| {
            let time = humantime::format_rfc3339_seconds(time).to_string();
            time.replace(['-', ':', 'T'], "")
        };
        let (start, end);
        let period = match self.validity {
            Validity::Now => ["-days", "3650"].to_vec(),
            Validity::Past => [
                "-startdate",
                "20200101000000Z",
                "-enddate",
                "20201231000000Z",
            ]
            .to_vec(),
            Validity::Until(time) => {
                end = date(time);
                ["-startdate", "20200101000000Z", "-enddate", &end].to_vec()
            }
            Validity::From(time) => {
                start = date(time);
                ["-startdate", &start, "-enddate", "20991231000000Z"].to_vec()
            }
            Validity::Future => [
                "-startdate",
                "20900101000000Z",
                "-enddate",
                "20991231000000Z",
            ]
            .to_vec(),
        };
        // Not `x509 -req`: before openssl 3.4 only `ca` can set both ends of the validity. `-preserveDN` keeps the
        // subject as it is: order, repetitions, string types.
        let sign = [
            "ca",
            "-batch",
            "-notext",
            "-preserveDN",
            "-config",
            "openssl.cnf",
            "-in",
            "csr.pem",
        ];
        let digest = if self.sha512 { "sha512" } else { "sha256" };
        let out = ["-out", "cert.pem", "-md", digest];
        openssl(&[&sign[..], &out, &signer, &period].concat());
        if self.traditional {
            openssl(&[
                "pkey",
                "-traditional",
                "-in",
                "key.pem",
                "-out",
                "traditional.pem",
            ]);
            fs::rename(dir.join("traditional.pem"), dir.join("key.pem")).unwrap();
        }
        (
            fs::read_to_string(dir.join("cert.pem")).unwrap(),
            dir.join("key.pem"),
        )
    }

    fn config(&self) -> String {
        let mask = match self.strings {
            Strings::Printable | Strings::Ia5 => "pkix",
            Strings::Utf8 => "utf8only",
            Strings::T61 => "MASK:0x4",
            Strings::Bmp => "MASK:0x800",
        };
        let string_tables = match self.strings {
            Strings::Ia5 => "stbl_section = string_tables\n",
            _ => "",
        };
        let mut extensions = vec![format!(
            "basicConstraints = critical,CA:{}",
            self.ca.to_string().to_uppercase()
        )];
        if let Some(cas) = self.path_length {
            extensions[0] += &format!(",pathlen:{cas}");
        }
        extensions.push("subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid".to_owned());
        extensions.extend(
            self.key_usage
                .iter()
                .map(|usage| format!("keyUsage = {usage}")),
        );
        extensions.extend(
            self.eku
                .iter()
                .map(|usage| format!("extendedKeyUsage = {usage}")),
        );
        extensions.extend(self.extensions.iter().cloned());
        let mut names = String::new();
        for (i, san) in self.sans.iter().enumerate() {
            let (kind, name) = san.split_once(':').expect("a SAN reads TYPE:name");
            names += &format!("{kind}.{i} = {}\n", escape(name));
        }
        if !names.is_empty() {
            // RFC 5280, 4.1.2.6: critical where the subject is empty.
            let critical = if self.subject == "/" { "critical," } else { "" };
            extensions.push(format!("subjectAltName = {critical}@names"));
        }
        CONFIG
            .replace("{string_tables}", string_tables)
            .replace("{mask}", mask)
            .replace("{extensions}", &extensions.join("\n"))
            .replace("{names}", &names)
    }
}

const CONFIG: &str = "openssl_conf = init
[init]
{string_tables}[string_tables]
O = mask:IA5,flags:nomask
OU = mask:IA5,flags:nomask
CN = mask:IA5,flags:nomask
[req]
distinguished_name = none
prompt = no
utf8 = yes
string_mask = {mask}
[none]
[ca]
default_ca = issue
[issue]
database = index.txt
new_certs_dir = .
default_md = sha256
policy = any
unique_subject = no
rand_serial = yes
x509_extensions = extensions
[any]
commonName = optional
[extensions]
{extensions}
[names]
{names}";

/// Escapes the characters with a meaning in `openssl`'s configuration.
fn escape(value: &str) -> String {
    let special = |c: char| {
        if r#"\$#"'`"#.contains(c) {
            format!("\\{c}")
        } else {
            c.to_string()
        }
    };
    value.chars().map(special).collect()
}
