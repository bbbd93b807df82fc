//! gRPC server reflection, versions v1 and v1alpha.
//!
//! The answer to an unknown symbol is an `error_response` in the stream. The stream stays open,
//! since a client looks up several symbols in one stream.

use std::{collections::HashMap, sync::Arc};

use futures_util::{StreamExt, stream::BoxStream};
use prost::{DecodeError, Message};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::{
    pb,
    server::{v1, v1alpha},
};

/// A `google.protobuf.FileDescriptorSet` whose files stay encoded. Decoding them would drop
/// options that the decoder does not know.
#[derive(Clone, PartialEq, Message)]
struct EncodedFiles {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file: Vec<Vec<u8>>,
}

/// All descriptors of the server. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Reflection(Arc<Descriptors>);

#[derive(Debug, Default)]
struct Descriptors {
    files: Vec<Vec<u8>>,
    by_name: HashMap<String, usize>,
    by_symbol: HashMap<String, usize>,
    services: Vec<String>,
}

/// The query of a request, in either version.
enum Query<'a> {
    File(&'a str),
    Symbol(&'a str),
    Extension(&'a str),
    ExtensionNumbers(&'a str),
    Services,
    Nothing,
}

/// The answer to a query.
enum Answer<'a> {
    File(&'a [u8]),
    NoExtensions(&'a str),
    Services(&'a [String]),
    Error(Code, String),
}

impl Reflection {
    /// Serves the descriptors of these encoded sets, and those of reflection itself.
    ///
    /// # Errors
    ///
    /// If a set cannot be decoded.
    pub(super) fn new(sets: &[&[u8]]) -> Result<Self, DecodeError> {
        let mut descriptors = Descriptors::default();
        let own = [
            pb::v1::FILE_DESCRIPTOR_SET,
            pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        for set in sets.iter().copied().chain(own) {
            for file in EncodedFiles::decode(set)?.file {
                descriptors.add_file(file)?;
            }
        }
        Ok(Self(Arc::new(descriptors)))
    }
}

impl Descriptors {
    fn add_file(&mut self, encoded: Vec<u8>) -> Result<(), DecodeError> {
        let file = FileDescriptorProto::decode(encoded.as_slice())?;
        let index = self.files.len();
        if self.by_name.contains_key(file.name()) {
            return Ok(());
        }
        self.by_name.insert(file.name().to_owned(), index);
        self.files.push(encoded);
        let package = file.package();
        for message in &file.message_type {
            self.add_message(index, package, message);
        }
        for enumeration in &file.enum_type {
            self.add_enum(index, package, enumeration);
        }
        for service in &file.service {
            let name = self.add(index, package, service.name());
            for method in &service.method {
                self.add(index, &name, method.name());
            }
            self.services.push(name);
        }
        Ok(())
    }

    fn add_message(&mut self, file: usize, scope: &str, message: &DescriptorProto) {
        let name = self.add(file, scope, message.name());
        for field in &message.field {
            self.add(file, &name, field.name());
        }
        for oneof in &message.oneof_decl {
            self.add(file, &name, oneof.name());
        }
        for nested in &message.nested_type {
            self.add_message(file, &name, nested);
        }
        for enumeration in &message.enum_type {
            self.add_enum(file, &name, enumeration);
        }
    }

    fn add_enum(&mut self, file: usize, scope: &str, enumeration: &EnumDescriptorProto) {
        let name = self.add(file, scope, enumeration.name());
        for value in &enumeration.value {
            // By descriptor.proto, values are siblings of their enum. Some servers and clients
            // treat them as its children.
            self.add(file, scope, value.name());
            self.add(file, &name, value.name());
        }
    }

    fn add(&mut self, file: usize, scope: &str, name: &str) -> String {
        let name = if scope.is_empty() {
            name.to_owned()
        } else {
            format!("{scope}.{name}")
        };
        self.by_symbol.insert(name.clone(), file);
        name
    }

    fn handle<'a>(&'a self, query: &Query<'a>) -> Answer<'a> {
        let file = |kind: &str, name: &str, file: Option<&usize>| match file
            .and_then(|index| self.files.get(*index))
        {
            Some(file) => Answer::File(file),
            None => Answer::Error(Code::NotFound, format!("no {kind} {name:.256?} here")),
        };
        match *query {
            Query::File(name) => file("file", name, self.by_name.get(name)),
            Query::Symbol(name) => file("symbol", name, self.by_symbol.get(name)),
            Query::Extension(name) => file("extension of", name, None),
            Query::ExtensionNumbers(name) if self.by_symbol.contains_key(name) => {
                Answer::NoExtensions(name)
            }
            Query::ExtensionNumbers(name) => file("type", name, None),
            Query::Services => Answer::Services(&self.services),
            Query::Nothing => Answer::Error(
                Code::InvalidArgument,
                "the request asks for nothing".to_owned(),
            ),
        }
    }
}

/// Implements one version. The versions differ only in the names of their types.
macro_rules! serve {
    ($version:ident) => {
        #[tonic::async_trait]
        impl $version::ServerReflection for Reflection {
            type ServerReflectionInfoStream =
                BoxStream<'static, Result<pb::$version::ServerReflectionResponse, Status>>;

            async fn server_reflection_info(
                &self,
                requests: Request<Streaming<pb::$version::ServerReflectionRequest>>,
            ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
                let descriptors = self.0.clone();
                let answers = requests
                    .into_inner()
                    .map(move |request| request.map(|request| $version(&descriptors, request)));
                Ok(Response::new(answers.boxed()))
            }
        }

        fn $version(
            descriptors: &Descriptors,
            request: pb::$version::ServerReflectionRequest,
        ) -> pb::$version::ServerReflectionResponse {
            use pb::$version::{
                ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse,
                ListServiceResponse, ServiceResponse, server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let query = match &request.message_request {
                Some(MessageRequest::FileByFilename(name)) => Query::File(name),
                Some(MessageRequest::FileContainingSymbol(name)) => Query::Symbol(name),
                Some(MessageRequest::FileContainingExtension(extension)) => {
                    Query::Extension(&extension.containing_type)
                }
                Some(MessageRequest::AllExtensionNumbersOfType(name)) => {
                    Query::ExtensionNumbers(name)
                }
                Some(MessageRequest::ListServices(_)) => Query::Services,
                None => Query::Nothing,
            };
            let handle = match descriptors.handle(&query) {
                Answer::File(file) => {
                    MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                        file_descriptor_proto: vec![file.to_vec()],
                    })
                }
                Answer::NoExtensions(name) => {
                    MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                        base_type_name: name.to_owned(),
                        extension_number: Vec::new(),
                    })
                }
                Answer::Services(names) => {
                    let service = names.iter().cloned().map(|name| ServiceResponse { name });
                    MessageResponse::ListServicesResponse(ListServiceResponse {
                        service: service.collect(),
                    })
                }
                Answer::Error(code, error_message) => {
                    MessageResponse::ErrorResponse(ErrorResponse {
                        error_code: code.into(),
                        error_message,
                    })
                }
            };
            pb::$version::ServerReflectionResponse {
                valid_host: request.host.clone(),
                original_request: Some(request),
                message_response: Some(handle),
            }
        }
    };
}

serve!(v1);
serve!(v1alpha);

#[cfg(test)]
mod tests {
    use super::*;

    fn is_file(reflection: &Reflection, query: &Query<'_>) -> bool {
        matches!(reflection.0.handle(query), Answer::File(_))
    }

    #[test]
    fn every_kind_of_symbol_is_found_and_an_unknown_one_is_answered() {
        let reflection = Reflection::new(&[
            crate::proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
        ])
        .unwrap();
        for symbol in [
            "forge.Forge",
            "forge.Forge.ReencryptTenantIdentitySecrets",
            "forge.ReencryptTenantIdentitySecretsRequest.dry_run",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "grpc.health.v1.HealthCheckResponse.SERVING",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflectionResponse.message_response",
        ] {
            assert!(is_file(&reflection, &Query::Symbol(symbol)), "{symbol}");
        }
        assert!(is_file(&reflection, &Query::File("forge.proto")));
        for query in [
            Query::Symbol("no.Such"),
            Query::File("nope.proto"),
            Query::Extension("forge.Forge"),
            Query::ExtensionNumbers("no.Such"),
        ] {
            let handle = reflection.0.handle(&query);
            assert!(matches!(handle, Answer::Error(Code::NotFound, _)));
        }
        let known = Query::ExtensionNumbers("forge.ReencryptTenantIdentitySecretsRequest");
        assert!(matches!(
            reflection.0.handle(&known),
            Answer::NoExtensions(_)
        ));
    }
}
