//! gRPC: converts messages, and nothing else. The only folder that sees the generated
//! messages.

mod forge;
mod reflection;

use tonic::{server::NamedService, service::Routes};
use tonic_reflection::server::{v1, v1alpha};

use self::{forge::ForgeService, proto::forge_server::ForgeServer, reflection::Reflection};
use super::{call::Calls, guard::MAX_REQUEST_BYTES};

#[expect(unreachable_pub, clippy::pedantic, reason = "generated code")]
mod proto {
    tonic::include_proto!("forge");
    pub(super) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forge.bin"));
}

/// The services of this server: `forge.Forge`, health checking, and reflection.
///
/// # Errors
///
/// When the descriptors that were compiled in can't be decoded.
pub fn routes(calls: Calls) -> Result<Routes, prost::DecodeError> {
    let reflection = Reflection::new(&[
        proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        // So that clients can show the details of an error.
        tonic_types::pb::FILE_DESCRIPTOR_SET,
    ])?;
    let (reporter, health) = tonic_health::server::health_reporter();
    let readiness = calls.readiness().clone();
    // Goes on while the process drains: that is when clients need it.
    tokio::spawn(async move {
        let services = ["", ForgeServer::<ForgeService>::NAME];
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
            ForgeServer::new(ForgeService(calls)).max_decoding_message_size(MAX_REQUEST_BYTES),
        );
    Ok(routes.routes())
}
