//! Names of key and signature algorithms, and which of them the provider supports.

use x509_parser::{
    asn1_rs::{FromDer, Oid},
    public_key::PublicKey,
    x509::{AlgorithmIdentifier, SubjectPublicKeyInfo},
};

use super::provider::provider;

/// Advice for an unsupported key.
pub(crate) const SUPPORTED_KEYS: &str =
    "use a plain RSA key of 2048 to 4096 bits, or a P-256, P-384 or Ed25519 key";

/// Advice for an unsupported signature.
pub(crate) const SUPPORTED_SIGNATURES: &str = "issue it again, signed with SHA-256 or SHA-384 by \
                                               an RSA, P-256 or P-384 key, or by an Ed25519 key";

const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";

/// The name of a key's algorithm, with its size or its curve.
pub(crate) fn key_name(key: &SubjectPublicKeyInfo<'_>) -> String {
    let algorithm = key.algorithm.algorithm.to_id_string();
    let curve = || key.algorithm.parameters.as_ref()?.as_oid().ok();
    match (&*algorithm, curve()) {
        (RSA, _) => match key.parsed() {
            Ok(PublicKey::RSA(rsa)) => format!("RSA-{}", rsa.key_size()),
            _ => "RSA".to_owned(),
        },
        (EC, None) => "EC (with explicit parameters)".to_owned(),
        (EC, Some(curve)) => name_of(&curve.to_id_string()),
        _ => name_of(&algorithm),
    }
}

/// Whether the provider can verify signatures that `key` makes.
pub(crate) fn is_supported_key(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let name = key_name(key);
    match name.strip_prefix("RSA-").map(str::parse::<u32>) {
        Some(Ok(bits)) => (2048..=8192).contains(&bits),
        _ => matches!(&*name, "P-256" | "P-384" | "Ed25519"),
    }
}

/// The name of an algorithm. `content` is the DER content of an AlgorithmIdentifier (RFC 5280,
/// section 4.1.1.2), as in the errors of rustls.
pub(crate) fn algorithm_name(content: &[u8]) -> String {
    let [algorithm, parameter] = oids(content);
    match (algorithm.as_deref(), parameter) {
        (None, _) => "an unknown algorithm".to_owned(),
        (Some(EC), Some(curve)) => name_of(&curve),
        (Some(algorithm), _) => name_of(algorithm),
    }
}

/// The name of the algorithm that signed a certificate or a revocation list.
pub(crate) fn signature_name(algorithm: &AlgorithmIdentifier<'_>) -> String {
    name_of(&algorithm.algorithm.to_id_string())
}

/// Whether the provider can verify a signature of this algorithm that `key` made. Without a
/// key: whether it can verify one for at least one kind of key.
pub(crate) fn is_supported_signature(
    algorithm: &AlgorithmIdentifier<'_>,
    key: Option<&SubjectPublicKeyInfo<'_>>,
) -> bool {
    let wanted = algorithm.algorithm.to_id_string();
    let key = key.map(|key| {
        let curve = key.algorithm.parameters.as_ref();
        let curve = curve.and_then(|curve| curve.as_oid().ok());
        let algorithm = key.algorithm.algorithm.to_id_string();
        [Some(algorithm), curve.map(|curve| curve.to_id_string())]
    });
    let provider = provider();
    let mut all = provider.signature_verification_algorithms.all.iter();
    all.any(|known| {
        let [signature, _] = oids(&known.signature_alg_id());
        let of_key = || oids(&known.public_key_alg_id());
        signature.as_deref() == Some(&wanted) && key.as_ref().is_none_or(|key| *key == of_key())
    })
}

/// The OID of an algorithm and the OID that is its parameter, such as the curve of an EC key.
fn oids(content: &[u8]) -> [Option<String>; 2] {
    let Ok((rest, algorithm)) = Oid::from_der(content) else {
        return [None, None];
    };
    let parameter = Oid::from_der(rest).ok();
    let parameter = parameter.map(|(_, parameter)| parameter.to_id_string());
    [Some(algorithm.to_id_string()), parameter]
}

fn name_of(oid: &str) -> String {
    let name = match oid {
        "1.2.840.10045.3.1.7" => "P-256",
        "1.3.132.0.34" => "P-384",
        "1.3.132.0.35" => "P-521",
        "1.3.132.0.10" => "secp256k1",
        "1.2.840.10040.4.1" => "DSA",
        "1.3.101.112" => "Ed25519",
        "1.3.101.113" => "Ed448",
        "1.2.840.113549.1.1.4" => "RSA with MD5",
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => "RSA with SHA-1",
        "1.2.840.113549.1.1.10" => "RSA-PSS",
        "1.2.840.113549.1.1.11" => "RSA with SHA-256",
        "1.2.840.113549.1.1.12" => "RSA with SHA-384",
        "1.2.840.113549.1.1.13" => "RSA with SHA-512",
        "1.2.840.113549.1.1.14" => "RSA with SHA-224",
        "1.2.840.10045.4.1" => "ECDSA with SHA-1",
        "1.2.840.10045.4.3.1" => "ECDSA with SHA-224",
        "1.2.840.10045.4.3.2" => "ECDSA with SHA-256",
        "1.2.840.10045.4.3.3" => "ECDSA with SHA-384",
        "1.2.840.10045.4.3.4" => "ECDSA with SHA-512",
        _ => return format!("algorithm {oid}"),
    };
    name.to_owned()
}
