//! Compressed messages, which this server does not take: its requests have two small fields, and
//! whoever sends one should not be able to make the process that holds the keys decompress it.
//!
//! gRPC compression ("Compression", test cases) wants `UNIMPLEMENTED` for them, and a header that
//! says what would be accepted. A client that compresses all of its calls sends small messages
//! as they are, with the name of its compression in the header: these are accepted.

use std::time::Duration;

use axum::{
    body::{Bytes, HttpBody},
    http::{HeaderMap, Request},
};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use tokio::time::timeout;
use tonic::{body::Body, codegen::StdError};

use crate::api::error::ServiceError;

/// The header that names the compression of a request's messages.
const ENCODING: &str = "grpc-encoding";

/// The first byte of a message that is compressed (gRPC over HTTP/2, "Compressed-Flag").
const COMPRESSED: u8 = 1;

/// The compression that the header names, if there is one.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let encoding = headers.get(ENCODING)?;
    let name = String::from_utf8_lossy(encoding.as_bytes());
    (name != "identity").then(|| name.chars().take(32).collect())
}

/// A request whose body is there: refuses it if its message is compressed.
pub(super) fn check<B: AsRef<[u8]>>(headers: &mut HeaderMap, body: &B) -> Result<(), ServiceError> {
    let Some(encoding) = encoding(headers) else {
        return Ok(());
    };
    if body.as_ref().first() == Some(&COMPRESSED) {
        return Err(ServiceError::Compressed(encoding));
    }
    headers.remove(ENCODING);
    Ok(())
}

/// Whether the messages of a request may be compressed.
pub(super) fn is_announced<B>(request: &Request<B>) -> bool {
    encoding(request.headers()).is_some()
}

/// A request whose body may go on: looks at its first message, for which it waits `limit`.
pub(super) async fn check_first<B>(
    request: Request<B>,
    limit: Duration,
) -> Result<Request<Body>, ServiceError>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    let (mut head, body) = request.into_parts();
    let mut body = Box::pin(body);
    let first = async {
        loop {
            match body.frame().await {
                // A frame may be empty, and says nothing then.
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                first => return first,
            }
        }
    };
    let first = timeout(limit, first).await;
    let first = first.map_err(|_| ServiceError::SlowRequest)?;
    let data = first.as_ref().and_then(|first| first.as_ref().ok());
    let data = data.and_then(|frame| frame.data_ref().cloned());
    check(&mut head.headers, &data.unwrap_or_default())?;
    let frames = stream::iter(first).chain(BodyStream::new(body));
    Ok(Request::from_parts(
        head,
        Body::new(StreamBody::new(frames)),
    ))
}
