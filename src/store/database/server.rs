//! One server of the URL.

use std::net::IpAddr;

use tokio_postgres::{Config, config::Host};

/// One server of the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// `None` if the URL gives only an address.
    pub(super) host: Option<Host>,
    /// `hostaddr`: the address to connect to. The host name is then not resolved.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
}

impl Server {
    /// True for a Unix socket, a loopback address and `localhost`. A name is not resolved:
    /// the result must not depend on DNS.
    pub(super) fn is_local(&self) -> bool {
        let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
        match (self.address, &self.host) {
            (Some(address), _) => is_loopback(address),
            (None, Some(Host::Unix(_))) => true,
            (None, Some(Host::Tcp(name))) => {
                name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(is_loopback)
            }
            (None, None) => false,
        }
    }

    /// `config` with this server and this address.
    pub(super) fn config(&self, config: &Config, address: Option<IpAddr>) -> Config {
        let mut config = config.clone();
        match &self.host {
            Some(Host::Tcp(name)) => {
                config.host(name);
            }
            Some(Host::Unix(path)) => {
                config.host_path(path);
            }
            None => {}
        }
        if let Some(address) = address {
            config.hostaddr(address);
        }
        config.port(self.port);
        config
    }
}
