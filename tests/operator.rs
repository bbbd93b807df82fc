//! The operator's client: the real binary, as an operator calls it.

use std::ffi::OsString;

use serde_json::Value;

use crate::certs;
use crate::pki::Leaf;
use crate::server::Server;
use crate::site::{Exit, run_binary};

/// How an operator calls the client.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    connection: Vec<String>,
    env: Vec<(String, OsString)>,
}

impl Operator {
    /// The usual administrator.
    pub(crate) fn of(server: &Server) -> Self {
        Self::with(&[server], certs::admin())
    }

    /// Somebody with this certificate, at these instances.
    pub(crate) fn with(servers: &[&Server], leaf: &Leaf) -> Self {
        let endpoints: Vec<_> = servers.iter().map(|server| server.grpc.as_str()).collect();
        Self::at(&endpoints.join(","), leaf)
    }

    /// Somebody with this certificate, at this endpoint.
    pub(crate) fn at(endpoint: &str, leaf: &Leaf) -> Self {
        let mut connection = vec!["--endpoint".to_owned(), endpoint.to_owned()];
        let files = [
            ("--cacert", &certs::root_ca().cert),
            ("--cert", &leaf.cert_chain),
            ("--key", &leaf.key),
        ];
        for (option, file) in files {
            connection.push(option.to_owned());
            connection.push(file.to_str().unwrap().to_owned());
        }
        Self {
            connection,
            env: Vec::new(),
        }
    }

    /// Somebody without options for the connection.
    pub(crate) fn without_options() -> Self {
        Self {
            connection: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Adds options.
    pub(crate) fn option(mut self, options: &[&str]) -> Self {
        self.connection
            .extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// Sets a variable. The only other one is `PATH`.
    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// The arguments of a command.
    pub(crate) fn args(&self, command: &[&str]) -> Vec<String> {
        let command = command.iter().map(|word| (*word).to_owned());
        command.chain(self.connection.iter().cloned()).collect()
    }

    /// Calls the client.
    pub(crate) async fn call(&self, command: &[&str]) -> Exit {
        run_binary(&self.args(command), &self.env).await
    }

    /// Calls the client with `-o json`. Returns the exit code and the document.
    pub(crate) async fn json(&self, command: &[&str]) -> (i32, Value) {
        let exit = self.clone().option(&["-o", "json"]).call(command).await;
        let document = serde_json::from_str(&exit.stdout);
        let document = document.unwrap_or_else(|e| panic!("{command:?}: {e}: {exit:?}"));
        (exit.code, document)
    }

    /// Calls the client with `-o jsonl`. Returns the exit code and the lines.
    pub(crate) async fn lines(&self, command: &[&str]) -> (i32, Vec<Value>) {
        let exit = self.clone().option(&["-o", "jsonl"]).call(command).await;
        (exit.code, json_lines(&exit.stdout))
    }
}

/// Each line as JSON.
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().expect(text)
}

/// The names of the members of an object, in the order of the text. The text is a document that
/// the client printed, and `depth` is the indentation of the members.
pub(crate) fn members(text: &str, depth: usize) -> Vec<String> {
    let start = format!("{}\"", " ".repeat(depth));
    let lines = text.lines().filter_map(|line| line.strip_prefix(&start));
    lines
        .filter_map(|line| Some(line.split_once("\":")?.0.to_owned()))
        .collect()
}
