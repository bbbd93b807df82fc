//! The address of the server and the client certificate: from the options, then the environment,
//! then a context.

use std::path::PathBuf;

use super::{
    super::{Variables, options::ConnectionOptions, problem::Problem},
    contexts::{Context, Contexts},
    credentials::Identity,
    endpoint::Endpoint,
    source::Source,
};

/// Where the admin socket of the server is by default.
pub(crate) const DEFAULT_SOCKET: &str = "/run/nico-rewrap/admin.sock";

/// The connection to make.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(super) server: Server,
    /// The name of the context, if one was used.
    pub(crate) context: Option<String>,
    /// The name of the site in the context. `rotate` asks for it.
    pub(crate) site: Option<String>,
}

/// Where the server is.
#[derive(Debug, Clone)]
pub(super) enum Server {
    /// The admin socket. `is_default`: no setting names it.
    Socket { path: PathBuf, is_default: bool },
    /// Addresses on the network.
    Network(Box<Network>),
}

/// Servers on the network.
#[derive(Debug, Clone)]
pub(super) struct Network {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) server_name: Option<String>,
    pub(super) cacert: PathBuf,
    pub(super) identity: Identity,
}

impl Settings {
    /// Reads the options, the environment and the file of the contexts.
    pub(crate) fn resolve(
        options: &ConnectionOptions,
        variables: &Variables,
    ) -> Result<Self, Problem> {
        let from_options = Source {
            endpoint: options.endpoint.clone(),
            cacert: options.cacert.clone(),
            cert: options.cert.clone(),
            key: options.key.clone(),
            server_name: options.server_name.clone(),
            socket: options.socket.clone(),
            credential_command: Vec::new(),
        };
        let from_environment = environment(variables)?;
        let context = context(options, &from_options, &from_environment, variables)?;
        let (name, context) =
            context.map_or((None, None), |(name, context)| (Some(name), Some(context)));
        let from_context = context
            .as_ref()
            .map(|context| context.source.clone())
            .unwrap_or_default();
        // An explicit --context takes precedence over the environment.
        let sources = if options.context.is_some() {
            [from_options, from_context, from_environment]
        } else {
            [from_options, from_environment, from_context]
        };
        Ok(Self {
            server: server(&sources)?,
            context: name,
            site: context.and_then(|context| context.site),
        })
    }

    /// The address or the socket of the server, for messages.
    pub(crate) fn place(&self) -> String {
        match &self.server {
            Server::Socket { path, .. } => path.display().to_string(),
            Server::Network(network) => {
                let endpoints = network.endpoints.iter();
                let texts = endpoints.map(|e| format!("{}:{}", e.host, e.port));
                texts.collect::<Vec<_>>().join(",")
            }
        }
    }
}

fn environment(variables: &Variables) -> Result<Source, Problem> {
    let path = |name| variables.text(name).map(|text| text.map(PathBuf::from));
    let source = Source {
        endpoint: variables.text("REWRAP_ENDPOINT")?,
        cacert: path("REWRAP_CACERT")?,
        cert: path("REWRAP_CERT")?,
        key: path("REWRAP_KEY")?,
        server_name: variables.text("REWRAP_SERVER_NAME")?,
        socket: path("REWRAP_SOCKET")?,
        credential_command: Vec::new(),
    };
    if source.endpoint.is_some() && source.socket.is_some() {
        return Err(Problem::config(
            "REWRAP_ENDPOINT and REWRAP_SOCKET are both set: unset one of them",
        ));
    }
    Ok(source)
}

/// The context to use, if any. The current context is used only if neither the options nor the
/// environment name a server.
fn context(
    options: &ConnectionOptions,
    from_options: &Source,
    from_environment: &Source,
    variables: &Variables,
) -> Result<Option<(String, Context)>, Problem> {
    let named = |source: &Source| source.endpoint.is_some() || source.socket.is_some();
    if options.context.is_none() && (named(from_options) || named(from_environment)) {
        return Ok(None);
    }
    let contexts = Contexts::read(variables)?;
    match options.context.as_deref().or(contexts.current.as_deref()) {
        None => Ok(None),
        Some(name) => Ok(Some((name.to_owned(), contexts.get(name)?.clone()))),
    }
}

/// The first source that names a server decides where it is. The other settings come from the
/// first source that has them.
fn server(sources: &[Source; 3]) -> Result<Server, Problem> {
    let place = sources
        .iter()
        .find_map(|source| match (&source.socket, &source.endpoint) {
            (Some(socket), _) => Some(Err(socket.clone())),
            (None, Some(endpoint)) => Some(Ok(endpoint.clone())),
            (None, None) => None,
        });
    let endpoint = match place {
        Some(Ok(endpoint)) => endpoint,
        Some(Err(path)) => {
            return Ok(Server::Socket {
                path,
                is_default: false,
            });
        }
        None => {
            return Ok(Server::Socket {
                path: PathBuf::from(DEFAULT_SOCKET),
                is_default: true,
            });
        }
    };
    let cacert = sources.iter().find_map(|source| source.cacert.clone());
    let cacert = cacert.ok_or_else(|| {
        Problem::config("set --cacert (or REWRAP_CACERT) to the file of the CAs that sign the server's certificate")
    })?;
    Ok(Server::Network(Box::new(Network {
        endpoints: Endpoint::parse_list(&endpoint)?,
        server_name: sources.iter().find_map(|source| source.server_name.clone()),
        cacert,
        identity: identity(sources)?,
    })))
}

/// The first source with a certificate, a key or a command decides.
fn identity(sources: &[Source; 3]) -> Result<Identity, Problem> {
    for (index, source) in sources.iter().enumerate() {
        if source.cert.is_some() || source.key.is_some() {
            let later = &sources[index..];
            let cert = later.iter().find_map(|source| source.cert.clone());
            let key = later.iter().find_map(|source| source.key.clone());
            // One file may hold the certificate and the key.
            let file = |one: &Option<PathBuf>, other: &Option<PathBuf>| {
                one.clone().or_else(|| other.clone())
            };
            if let (Some(certificate), Some(private_key)) = (file(&cert, &key), file(&key, &cert)) {
                return Ok(Identity::Files {
                    certificate,
                    private_key,
                });
            }
        }
        if !source.credential_command.is_empty() {
            return Ok(Identity::Command(source.credential_command.clone()));
        }
    }
    Err(Problem::config(
        "no client certificate is set, and the server accepts no call without one: set --cert and --key (or REWRAP_CERT \
         and REWRAP_KEY), or use a context",
    ))
}
