//! The status page: `GET /status` on the plain HTTP port. `curl` gets text, a browser gets one
//! HTML page. The page needs no authentication, and names no organization and no caller.

mod html;
mod text;
mod words;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use axum::{
    extract::State,
    http::{
        HeaderMap, HeaderValue,
        header::{
            ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
            X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    api::{call::Calls, overview::Overview},
    telemetry::readiness::Readiness,
};

/// How long the page shows the same overview. Everybody who can reach the port can load the page,
/// and each new overview reads the database.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Time limit for reading the database.
const LIMIT: Duration = Duration::from_secs(3);

/// What the status page shows.
#[derive(Clone)]
pub struct StatusPage(Arc<Inner>);

struct Inner {
    readiness: Readiness,
    /// Empty until the files are read.
    calls: OnceLock<Calls>,
    last: Mutex<Option<(Instant, Arc<Overview>)>>,
}

/// The state of the page.
struct Shown {
    /// The reason why this instance is not ready.
    not_ready: Option<String>,
    /// What a run without progress waits for.
    note: Option<String>,
    changed_on_disk: Vec<String>,
    /// `None` while the server starts, or if the database does not answer in time.
    overview: Option<Arc<Overview>>,
}

impl StatusPage {
    /// A page that shows only the readiness.
    #[must_use]
    pub fn new(readiness: Readiness) -> Self {
        Self(Arc::new(Inner {
            readiness,
            calls: OnceLock::new(),
            last: Mutex::new(None),
        }))
    }

    /// From now on, the page shows the keys and runs from `calls`.
    pub fn set_calls(&self, calls: Calls) {
        let _ = self.0.calls.set(calls);
    }

    async fn shown(&self) -> Shown {
        let readiness = &self.0.readiness;
        Shown {
            not_ready: readiness.probe().err(),
            note: readiness.note(),
            changed_on_disk: readiness.changed_on_disk(),
            overview: timeout(LIMIT, self.overview()).await.ok().flatten(),
        }
    }

    /// An overview that is not older than [`MAX_AGE`]. Concurrent requests share it.
    async fn overview(&self) -> Option<Arc<Overview>> {
        let calls = self.0.calls.get()?;
        let mut last = self.0.last.lock().await;
        if let Some((made, overview)) = &*last
            && made.elapsed() < MAX_AGE
        {
            return Some(overview.clone());
        }
        let overview = Arc::new(calls.overview().await);
        *last = Some((Instant::now(), overview.clone()));
        Some(overview)
    }
}

/// Answers `GET /status`.
pub(super) async fn status(State(page): State<StatusPage>, headers: HeaderMap) -> Response {
    let shown = page.shown().await;
    let (content_type, body, policy) = if wants_html(&headers) {
        (
            "text/html; charset=utf-8",
            html::page(&shown),
            html::policy(),
        )
    } else {
        let policy = HeaderValue::from_static("default-src 'none'");
        ("text/plain; charset=utf-8", text::page(&shown), policy)
    };
    let fixed = [
        (CONTENT_TYPE, content_type),
        (VARY, "Accept"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (fixed, [(CONTENT_SECURITY_POLICY, policy)], body).into_response()
}

/// Whether the client names `text/html`, as browsers do. `curl` accepts everything and gets text.
fn wants_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter();
    let ranges = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    ranges.into_iter().any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case("text/html"));
        let is_refused = parts.any(|part| {
            let quality = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            quality.is_some_and(|q| q.parse() == Ok(0.0_f32))
        });
        is_html && !is_refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_client_that_names_html_gets_it() {
        for (accept, html) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", true),
            ("application/json, Text/HTML;q=0.5", true),
            ("*/*", false),
            ("text/*", false),
            ("text/plain", false),
            ("text/html;q=0", false),
            ("text/html; q=0.000, text/plain", false),
            ("text/html-like", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            assert_eq!(wants_html(&headers), html, "{accept}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }
}
