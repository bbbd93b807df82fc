//! gRPC: conversion between messages and calls, and server reflection. No other folder of the
//! server sees the generated messages.

mod forge;
mod reflection;
mod rewrap;

use tonic::{server::NamedService, service::Routes};
use tonic_reflection::server::{v1, v1alpha};

use self::{forge::ForgeService, reflection::Reflection, rewrap::RewrapService};
use super::{call::Calls, guard::MAX_REQUEST_BYTES};
use crate::proto::{self, forge::forge_server::ForgeServer, rewrap::rewrap_server::RewrapServer};

/// The services of this server: `forge.Forge`, `nico.rewrap.v1.Rewrap`, health checking and reflection.
///
/// # Errors
///
/// If the compiled-in descriptors can't be decoded.
pub fn routes(calls: Calls) -> Result<Routes, prost::DecodeError> {
    let reflection = Reflection::new(&[
        proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        // Lets clients decode the details of an error.
        tonic_types::pb::FILE_DESCRIPTOR_SET,
    ])?;
    let (reporter, health) = tonic_health::server::health_reporter();
    let readiness = calls.readiness().clone();
    // Continues during shutdown, when clients need to see the change.
    tokio::spawn(async move {
        let services = [
            "",
            ForgeServer::<ForgeService>::NAME,
            RewrapServer::<RewrapService>::NAME,
        ];
        readiness.report_to(&reporter, &services).await;
    });
    let mut routes = Routes::builder();
    routes
        .add_service(health.max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(
            v1::ServerReflectionServer::new(reflection.clone())
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            v1alpha::ServerReflectionServer::new(reflection)
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            ForgeServer::new(ForgeService(calls.clone()))
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .add_service(
            RewrapServer::new(RewrapService(calls)).max_decoding_message_size(MAX_REQUEST_BYTES),
        );
    Ok(routes.routes())
}
