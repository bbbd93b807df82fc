//! Calls over a connection, with time limits.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ClientConfig;
use tokio::time::{Instant, timeout};
use tonic::{Response, Status};

use super::{
    super::{
        exit::Exit,
        problem::{Problem, old_server},
    },
    endpoint::Endpoint,
    settings::{Network, Server, Settings},
    transport::{Channel, tls_config},
};
use crate::proto::{forge::forge_client::ForgeClient, rewrap::rewrap_client::RewrapClient};

/// Time limit of a call that only asks.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to one instance.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    channel: Channel,
    deadline: Option<Instant>,
}

/// Each address, with its connection or with the reason why the connection failed.
#[derive(Debug)]
pub(crate) struct Sessions(pub(crate) Vec<(String, Result<Session, Problem>)>);

impl Sessions {
    /// The first instance that can be asked.
    pub(crate) fn first(&self) -> Option<Session> {
        self.0
            .iter()
            .find_map(|(_, session)| session.as_ref().ok().cloned())
    }
}

impl Session {
    /// Connects to the first address that answers.
    pub(crate) async fn connect(
        settings: &Settings,
        deadline: Option<Instant>,
    ) -> Result<Self, Problem> {
        let connecting = async {
            let targets = targets(settings).await?;
            let mut last = None;
            for target in targets {
                match target.connect().await {
                    Ok(channel) => {
                        return Ok(Self { channel, deadline });
                    }
                    // A refused certificate is refused everywhere.
                    Err(problem) if !problem.is_broken => return Err(problem),
                    Err(problem) => last = Some(problem),
                }
            }
            Err(last.unwrap_or_else(|| Problem::broken("the endpoint has no address")))
        };
        within(deadline, None, connecting).await
    }

    /// Connects to every address.
    pub(crate) async fn connect_all(
        settings: &Settings,
        deadline: Option<Instant>,
    ) -> Result<Sessions, Problem> {
        let targets = within(deadline, None, targets(settings)).await?;
        let connecting = targets.into_iter().map(|target| async move {
            let channel = within(deadline, None, target.connect()).await;
            let session = channel.map(|channel| Self { channel, deadline });
            (target.address(), session)
        });
        Ok(Sessions(futures_util::future::join_all(connecting).await))
    }

    /// The client of `nico.rewrap.v1`.
    pub(crate) fn rewrap(&self) -> RewrapClient<Channel> {
        RewrapClient::new(self.channel.clone())
    }

    /// The client of `forge.Forge`.
    pub(crate) fn forge(&self) -> ForgeClient<Channel> {
        // The failures of a report are below the default limit of 4 MiB.
        ForgeClient::new(self.channel.clone())
    }

    /// Makes a call that only asks.
    pub(crate) async fn ask<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Problem> {
        let call = async { call.await.map(Response::into_inner).map_err(Problem::from) };
        let answer = within(self.deadline, Some(CALL_TIMEOUT), call).await;
        answer.map_err(|problem| {
            if problem.is_unimplemented {
                old_server(&problem)
            } else {
                problem
            }
        })
    }

    /// Makes a call that may take long.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Problem> {
        within(self.deadline, None, async {
            call.await.map_err(Problem::from)
        })
        .await
    }
}

/// Waits for `work`, but not after the deadline and not longer than the limit.
async fn within<T>(
    deadline: Option<Instant>,
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    match [rest, limit].into_iter().flatten().min() {
        None => work.await,
        Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| {
            let is_timeout = rest.is_some_and(|rest| rest <= limit);
            Err(if is_timeout {
                Problem::new(
                    Exit::Unreachable,
                    "the server did not answer within --timeout",
                )
            } else {
                Problem::broken(format!(
                    "the server did not answer within {} seconds",
                    limit.as_secs()
                ))
            })
        }),
    }
}

/// Something to connect to.
enum Target {
    Socket {
        path: std::path::PathBuf,
        is_default: bool,
    },
    Address(SocketAddr, Endpoint, Arc<(Network, Arc<ClientConfig>)>),
    /// A name without an address.
    Unresolved(Endpoint, Problem),
}

impl Target {
    async fn connect(&self) -> Result<Channel, Problem> {
        match self {
            Self::Socket { path, is_default } => Channel::unix(path, *is_default).await,
            Self::Address(address, endpoint, shared) => {
                Channel::network(*address, endpoint, &shared.0, &shared.1).await
            }
            Self::Unresolved(_, problem) => Err(problem.clone()),
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Socket { path, .. } => path.display().to_string(),
            Self::Address(address, ..) => address.to_string(),
            Self::Unresolved(endpoint, _) => format!("{}:{}", endpoint.host, endpoint.port),
        }
    }
}

async fn targets(settings: &Settings) -> Result<Vec<Target>, Problem> {
    let network = match &settings.server {
        Server::Socket { path, is_default } => {
            return Ok(vec![Target::Socket {
                path: path.clone(),
                is_default: *is_default,
            }]);
        }
        Server::Network(network) => network,
    };
    let tls = tls_config(network, network.identity.load()?)?;
    let shared = Arc::new((network.as_ref().clone(), tls));
    let mut targets = Vec::new();
    for endpoint in &network.endpoints {
        match endpoint.addresses().await {
            Ok(addresses) => targets.extend(
                addresses
                    .into_iter()
                    .map(|address| Target::Address(address, endpoint.clone(), shared.clone())),
            ),
            // An instance that cannot be asked must not look like one that agrees.
            Err(problem) => targets.push(Target::Unresolved(endpoint.clone(), problem)),
        }
    }
    Ok(targets)
}
