//! The status page as HTML, for a browser: one page without scripts, which loads nothing.

use std::{fmt::Write, sync::LazyLock};

use axum::http::HeaderValue;
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::{
    Shown,
    words::{
        NO_OVERVIEW, NO_RUNS, ago, census, counted, duration, history, kind, number, progress,
        result, share, time,
    },
};
use crate::api::overview::{KeyOverview, Overview, RunOverview, RunsOverview};

const STYLE: &str = include_str!("style.css");

/// How often the browser loads the page again, in seconds.
const REFRESH: u32 = 5;

/// The Content-Security-Policy of the page: it allows only the style of the page.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).ok()
});

pub(super) fn policy() -> HeaderValue {
    let strictest = HeaderValue::from_static("default-src 'none'");
    POLICY.clone().unwrap_or(strictest)
}

/// The whole page.
pub(super) fn page(shown: &Shown) -> String {
    let mut html = Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"refresh\" content=\"{REFRESH}\">\n<title>nico-rewrap</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>nico-rewrap</h1>\n"
    ));
    if let Some(overview) = &shown.overview {
        html.line(
            "p class=\"soft\"",
            &format!(
                "{}, instance {}, since {}",
                overview.version,
                overview.instance,
                time(overview.start_time)
            ),
        );
    }
    match &shown.not_ready {
        None => html.line("p class=\"state good\"", "ready"),
        Some(reason) => html.line("p class=\"state bad\"", &format!("NOT READY: {reason}")),
    }
    if let Some(note) = &shown.note {
        html.line(
            "p class=\"state bad\"",
            &format!("a run makes no progress: {note}"),
        );
    }
    for change in &shown.changed_on_disk {
        html.line(
            "p class=\"state warn\"",
            &format!("changed on disk since the start: {change}. Restart nico-rewrap to read it"),
        );
    }
    match &shown.overview {
        None => html.line("p", NO_OVERVIEW),
        Some(overview) => {
            html.keys(overview);
            match &overview.runs {
                None => html.line("p class=\"state bad\"", NO_RUNS),
                Some(runs) => html.runs(overview, runs),
            }
        }
    }
    html.0 + "</body>\n</html>\n"
}

/// The text of the page. Every text that is not a literal is escaped.
struct Html(String);

impl Html {
    fn raw(&mut self, html: &str) {
        self.0 += html;
    }

    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.raw("&amp;"),
                '<' => self.raw("&lt;"),
                '>' => self.raw("&gt;"),
                '"' => self.raw("&quot;"),
                '\'' => self.raw("&#39;"),
                // HTML cannot express control characters.
                c if c.is_control() => self.raw("\u{fffd}"),
                c => self.0.push(c),
            }
        }
    }

    /// An element with this start tag and this text. With `dir`, right-to-left characters of the
    /// text do not affect the texts around it.
    fn element(&mut self, tag: &str, text: &str) {
        let name = tag.split(' ').next().unwrap_or_default();
        self.raw(&format!("<{tag} dir=\"auto\">"));
        self.text(text);
        self.raw(&format!("</{name}>"));
    }

    fn line(&mut self, tag: &str, text: &str) {
        self.element(tag, text);
        self.raw("\n");
    }

    /// A bar that is filled up to `share`.
    fn bar(&mut self, share: f64, class: &str, label: &str) {
        self.raw(
            "<svg viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"",
        );
        self.text(label);
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.0,
            "\"><rect class=\"track\" width=\"100\" height=\"4\"/>\
             <rect class=\"fill {class}\" width=\"{:.2}\" height=\"4\"/></svg>",
            share * 100.0
        );
    }

    fn keys(&mut self, overview: &Overview) {
        self.line("h2", "Keys");
        self.line("p class=\"soft\"", &census(overview));
        let all = overview.census.map_or(0, |census| census.secrets);
        for key in &overview.keys {
            self.key(key, all);
        }
    }

    fn key(&mut self, key: &KeyOverview, all: u64) {
        let class = match key.verdict {
            "TARGET" => "key",
            "REMOVABLE" => "good",
            "CANNOT_SAY" => "bad",
            _ => "warn",
        };
        self.raw("<div class=\"card\"><div class=\"head\">");
        self.element("span class=\"name\"", &key.key_id);
        match &key.check_value {
            Some(check_value) => self.element("code", check_value),
            None => self.element("span class=\"state bad\"", "not in secrets"),
        }
        self.element(&format!("span class=\"state {class}\""), key.verdict);
        let secrets = key.secrets.map(|secrets| counted(secrets, "secret"));
        let secrets = secrets.unwrap_or_else(|| "unknown number of secrets".to_owned());
        self.element("span", &secrets);
        self.raw("</div>\n");
        let label = format!("{secrets} of {}", number(all));
        self.bar(share(key.secrets.unwrap_or(0), all), class, &label);
        self.element("p class=\"soft\"", &key.explanation);
        self.raw("</div>\n");
    }

    fn runs(&mut self, overview: &Overview, runs: &RunsOverview) {
        self.line("h2", "Runs in progress");
        if runs.active.is_empty() {
            self.line("p class=\"soft\"", "none");
        }
        for run in &runs.active {
            self.active_run(run);
        }
        self.line("h2", "Last runs");
        self.line("p class=\"soft\"", history(overview));
        self.table(
            "runs",
            &["start", "run", "state", "duration", "result"],
            &runs.last.iter().map(last_run).collect::<Vec<_>>(),
        );
        self.line("h2", "Instances");
        let this = [overview.instance.clone(), "this instance".to_owned()];
        let others = runs
            .instances
            .iter()
            .filter(|(instance, _)| **instance != overview.instance)
            .map(|(instance, last)| {
                let last = format!("last run {}", ago(*last, overview.now));
                [instance.clone(), last]
            });
        let rows: Vec<_> = std::iter::once(this).chain(others).collect();
        self.table("instances", &["instance", "seen"], &rows);
    }

    fn active_run(&mut self, run: &RunOverview) {
        self.raw("<div class=\"card\"><div class=\"head\">");
        let name = format!("{} to {}", kind(run), run.target_key_id);
        self.element("span class=\"name\"", &name);
        self.element("span", &run.instance);
        self.element("span", &format!("for {}", duration(run.duration)));
        self.raw("</div>\n");
        let progress = progress(run);
        if run.progress.rows_total > 0 {
            let done = share(run.progress.rows_done, run.progress.rows_total);
            self.bar(done, "key", &progress);
        }
        self.element("p", &progress);
        self.element("code class=\"soft\"", &run.id);
        self.raw("</div>\n");
    }

    fn table<const COLUMNS: usize>(
        &mut self,
        class: &str,
        head: &[&str; COLUMNS],
        rows: &[[String; COLUMNS]],
    ) {
        if rows.is_empty() {
            self.line("p class=\"soft\"", "none");
            return;
        }
        self.raw(&format!("<table class=\"{class}\"><thead><tr>"));
        for name in head {
            self.element("th", name);
        }
        self.raw("</tr></thead><tbody>\n");
        for row in rows {
            self.raw("<tr>");
            for cell in row {
                self.element("td", cell);
            }
            self.raw("</tr>\n");
        }
        self.raw("</tbody></table>\n");
    }
}

fn last_run(run: &RunOverview) -> [String; 5] {
    [
        time(run.start_time),
        format!(
            "{} to {} at {} ({})",
            kind(run),
            run.target_key_id,
            run.instance,
            run.id
        ),
        run.state.to_owned(),
        duration(run.duration),
        result(run),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_escaped() {
        let mut html = Html(String::new());
        html.element("td", "<b a=\"x\" b='y'>&\u{1b}[31m");
        assert_eq!(
            html.0,
            "<td dir=\"auto\">&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;\u{fffd}[31m</td>"
        );
    }

    #[test]
    fn the_policy_is_a_header() {
        let policy = policy();
        let policy = policy.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    }
}
