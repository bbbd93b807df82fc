//! Logs in to Vault.

use std::{fmt, path::PathBuf};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{
    VaultError, VaultOptions,
    client::{Answer, Client},
};
use crate::regular_file;

/// Maximum size of a file with a token or an id, in bytes.
const MAX_BYTES: u64 = 64 << 10;

/// A secret text, or the file that contains it.
#[derive(Clone)]
pub enum Text {
    /// The text.
    Value(Zeroizing<String>),
    /// The file. It is read at every login, because its content may be renewed.
    File(PathBuf),
}

impl Text {
    /// The text without surrounding white space.
    ///
    /// # Errors
    ///
    /// Why the file cannot be used.
    pub fn read(&self) -> Result<Zeroizing<String>, String> {
        match self {
            Self::Value(text) => Ok(Zeroizing::new(text.trim().to_owned())),
            Self::File(path) => {
                let text = regular_file::read_text(path, MAX_BYTES)
                    .map_err(|error| format!("{} can't be read ({error})", path.display()))?;
                match text.trim() {
                    "" => Err(format!("{} is empty", path.display())),
                    text => Ok(Zeroizing::new(text.to_owned())),
                }
            }
        }
    }
}

/// How to log in.
#[derive(Clone)]
pub enum Login {
    /// With the token of a Kubernetes service account. The role has the name of the account.
    Kubernetes(Text),
    /// With an AppRole.
    AppRole {
        /// The role id.
        role_id: Text,
        /// The secret id.
        secret_id: Text,
    },
    /// With a token of Vault.
    Token(Text),
}

/// Shows the kind only.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubernetes(_) => "Kubernetes",
            Self::AppRole { .. } => "AppRole",
            Self::Token(_) => "Token",
        })
    }
}

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubernetes(_) => "the Kubernetes role of this service account",
            Self::AppRole { .. } => "the AppRole of VAULT_ROLE_ID",
            Self::Token(_) => "the token VAULT_TOKEN",
        })
    }
}

/// Logs in and lets the client use the token.
pub(super) async fn log_in(
    options: &VaultOptions,
    client: &mut Client<'_>,
) -> Result<(), VaultError> {
    let (path, body, advice) = match &options.login {
        Login::Token(token) => {
            let token = secret(options, token).await?;
            return client.set_token(&token);
        }
        Login::Kubernetes(jwt) => {
            let jwt = secret(options, jwt).await?;
            let role = service_account(&jwt).ok_or_else(|| {
                VaultError::Configuration(format!(
                    "{}: the token of the Kubernetes service account does not name a service account",
                    options.place()
                ))
            })?;
            let advice = format!(
                "enable this auth method, create the role {role:?} for the service account {role:?} \
                 and its namespace, and let Vault review tokens of this cluster"
            );
            let request = KubernetesRequest {
                role: &role,
                jwt: &jwt,
            };
            ("auth/kubernetes/login", json(&request), advice)
        }
        Login::AppRole { role_id, secret_id } => {
            let role_id = secret(options, role_id).await?;
            let secret_id = secret(options, secret_id).await?;
            let advice = "enable this auth method, and set VAULT_ROLE_ID and VAULT_SECRET_ID, or their \
                          files, to valid ids of one AppRole";
            let request = AppRoleRequest {
                role_id: &role_id,
                secret_id: &secret_id,
            };
            ("auth/approle/login", json(&request), advice.to_owned())
        }
    };
    let answer = client.post(path, body).await?;
    match answer.status.as_u16() {
        200 => match token_of(&answer) {
            Some(token) => client.set_token(&token),
            None => Err(unavailable(options, 200)),
        },
        status @ (400 | 401 | 403 | 404 | 405) => Err(VaultError::Configuration(format!(
            "{}: the login at {path} was refused (HTTP {status}): {advice}",
            options.place()
        ))),
        status => Err(unavailable(options, status)),
    }
}

/// Reads the text outside the async threads: its file may be on a disk that hangs.
async fn secret(options: &VaultOptions, text: &Text) -> Result<Zeroizing<String>, VaultError> {
    let text = text.clone();
    let read = tokio::task::spawn_blocking(move || text.read()).await;
    let read = read.unwrap_or_else(|_| Err("reading it panicked: this is a bug".to_owned()));
    read.map_err(|problem| {
        VaultError::Unavailable(format!("cannot log in to {}: {problem}", options.place()))
    })
}

#[derive(Serialize)]
struct KubernetesRequest<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Serialize)]
struct AppRoleRequest<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

fn json(request: &impl Serialize) -> Zeroizing<Vec<u8>> {
    // Large enough for every token, so that the buffer does not grow and leave copies.
    let mut body = Zeroizing::new(Vec::with_capacity(2 * MAX_BYTES as usize));
    // Strings are always serializable. An empty body would be refused by Vault.
    let _ = serde_json::to_writer(&mut *body, request);
    body
}

/// The error of a status that waiting may change.
pub(super) fn unavailable(options: &VaultOptions, status: u16) -> VaultError {
    let place = options.place();
    VaultError::Unavailable(match status {
        200 => format!("{place}: the answer is not one of Vault: check VAULT_ADDR"),
        // The token would go to a server that no setting names.
        300..400 => format!(
            "{place} redirects to another server (HTTP {status}): set VAULT_ADDR to an address that \
             always answers itself"
        ),
        503 => format!("{place} is sealed or in maintenance (HTTP 503): unseal it"),
        status => format!("{place} cannot answer now (HTTP {status})"),
    })
}

/// The token of the answer to a login.
fn token_of(answer: &Answer) -> Option<Zeroizing<String>> {
    #[derive(Deserialize)]
    struct Login {
        auth: Auth,
    }
    #[derive(Deserialize)]
    struct Auth {
        client_token: String,
    }
    let login: Login = serde_json::from_slice(&answer.body).ok()?;
    Some(Zeroizing::new(login.auth.client_token))
}

/// The service account that a token names. The signature is not checked: Vault does that.
fn service_account(jwt: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(rename = "kubernetes.io")]
        kubernetes: Option<Kubernetes>,
        #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
        legacy: Option<String>,
    }
    #[derive(Deserialize)]
    struct Kubernetes {
        serviceaccount: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let payload = jwt.split('.').nth(1)?;
    let mut claims = BASE64_URL_SAFE_NO_PAD
        .decode(payload.trim_end_matches('='))
        .ok()?;
    let parsed: Option<Claims> = serde_json::from_slice(&claims).ok();
    claims.zeroize();
    let parsed = parsed?;
    let name = parsed.kubernetes.map(|claim| claim.serviceaccount.name);
    name.or(parsed.legacy).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_service_account() {
        let token = |claims: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
        for (claims, name) in [
            (
                r#"{"kubernetes.io": {"namespace": "n", "serviceaccount": {"name": "nico-rewrap", "uid": "u"}}}"#,
                Some("nico-rewrap"),
            ),
            (
                r#"{"kubernetes.io/serviceaccount/service-account.name": "old"}"#,
                Some("old"),
            ),
            (r#"{"sub": "x"}"#, None),
            ("not JSON", None),
        ] {
            assert_eq!(service_account(&token(claims)).as_deref(), name, "{claims}");
        }
        for jwt in ["", "a", "a.%.c"] {
            assert_eq!(service_account(jwt), None, "{jwt}");
        }
    }
}
