//! The messages, clients and servers that the build generates from `proto/`.

#[expect(unreachable_pub, clippy::pedantic, reason = "generated code")]
pub(crate) mod forge {
    tonic::include_proto!("forge");
}

#[expect(unreachable_pub, clippy::pedantic, reason = "generated code")]
pub(crate) mod rewrap {
    tonic::include_proto!("nico.rewrap.v1");
}

/// The descriptors of all services, for reflection.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.bin"));
