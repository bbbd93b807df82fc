//! The mark on a response whose call already has its audit record.

use std::{error::Error, fmt, sync::Arc};

use axum::http;
use tonic::{Response, Status};

/// The mark. A handler sets it when the record of its call is written. The guard writes the
/// records of all other calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Audited;

impl Audited {
    /// Marks a successful response.
    pub(super) fn mark<T>(response: &mut Response<T>) {
        response.extensions_mut().insert(Self);
    }

    /// Marks an error. A status has no extensions of its own, but tonic puts the whole status with
    /// its source into the extensions of the response.
    pub(super) fn mark_error(mut status: Status) -> Status {
        status.set_source(Arc::new(Self));
        status
    }

    /// Whether the response has the mark.
    pub(super) fn is_on<B>(response: &http::Response<B>) -> bool {
        let extensions = response.extensions();
        let source = extensions.get::<Status>().and_then(Error::source);
        extensions.get::<Self>().is_some() || source.is_some_and(|source| source.is::<Self>())
    }
}

impl fmt::Display for Audited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call has its audit record")
    }
}

impl Error for Audited {}
