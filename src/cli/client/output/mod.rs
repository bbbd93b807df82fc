//! Writes data to standard output, and everything else to standard error.

pub(super) mod document;
pub(super) mod run_text;
pub(super) mod table;
pub(super) mod text;

use std::{
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Serialize;

use super::{
    exit::Exit,
    options::{Format, OutputOptions},
    problem::Problem,
};
use text::Style;

/// Writes the output of a command.
#[derive(Debug)]
pub(crate) struct Output {
    pub(super) format: Format,
    /// For standard output.
    pub(super) style: Style,
    /// For standard error.
    pub(super) notes: Style,
    /// Whether standard error is a terminal that can show a progress bar.
    pub(super) has_bars: bool,
    /// Whether standard output is a terminal that can be cleared.
    pub(super) is_screen: bool,
    /// Whether the reader of standard output has closed the pipe.
    closed: AtomicBool,
}

impl Output {
    /// `no_color` is the variable NO_COLOR, and `dumb` says that the terminal has no colors.
    pub(super) fn new(options: &OutputOptions, no_color: bool, dumb: bool) -> Self {
        let style = |is_terminal: bool, columns: u16| {
            Style {
                color: is_terminal && !no_color && !dumb,
                ascii: options.ascii,
                ..Style::default()
            }
            .columns(columns)
        };
        let has_bars = io::stderr().is_terminal() && !dumb;
        Self {
            format: options.output,
            style: style(io::stdout().is_terminal(), columns(io::stdout())),
            notes: style(io::stderr().is_terminal(), columns(io::stderr())),
            has_bars,
            is_screen: io::stdout().is_terminal() && !dumb,
            closed: AtomicBool::new(false),
        }
    }

    /// Writes the result: `text` for people, otherwise the document.
    pub(super) fn result(
        &self,
        exit: Exit,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) {
        match self.format {
            Format::Text => self.raw(&text()),
            Format::Json => self.json(document, true),
            Format::Jsonl => self.line(&ResultLine {
                line_type: "result",
                exit_code: exit.code(),
                result: document,
            }),
        }
    }

    /// Writes one JSON line, if the format is JSON lines.
    pub(super) fn line(&self, line: &impl Serialize) {
        if self.format == Format::Jsonl {
            self.json(line, false);
        }
    }

    /// Writes a document on one line.
    pub(super) fn compact(&self, document: &impl Serialize) {
        self.json(document, false);
    }

    /// Whether the reader of standard output has closed the pipe.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn json(&self, document: &impl Serialize, pretty: bool) {
        let text = if pretty {
            serde_json::to_string_pretty(document)
        } else {
            serde_json::to_string(document)
        };
        // Every document has only texts as keys, so this cannot fail.
        self.raw(&(text.unwrap_or_default() + "\n"));
    }

    /// Writes to standard output. If nobody reads it, nothing more is written.
    pub(super) fn raw(&self, text: &str) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let mut stdout = io::stdout().lock();
        if stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush())
            .is_err()
        {
            self.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Writes a line for the operator to standard error.
    pub(super) fn note(&self, text: &str) {
        note(text);
    }

    /// Writes a problem: a sentence to standard error, and the document or the last JSON line. A
    /// command that has written its result has no problem.
    pub(super) fn problem(&self, problem: &Problem) {
        self.note(&format!("nico-rewrap: {}", text::plain(&problem.message)));
        let error = ErrorDocument {
            exit_code: problem.exit.code(),
            reason: &problem.reason,
            message: &problem.message,
            run_id: problem.run_id(),
            metadata: &problem.metadata,
        };
        match self.format {
            Format::Text => {}
            Format::Json => self.json(&document::document("Error", error), true),
            Format::Jsonl => self.line(&ErrorLine {
                line_type: "error",
                error,
            }),
        }
    }
}

/// The columns of a terminal. 0 for anything else.
fn columns(stream: impl AsFd) -> u16 {
    rustix::termios::tcgetwinsize(stream).map_or(0, |size| size.ws_col)
}

/// Writes a line to standard error. An error is ignored, because no other output is left.
pub(super) fn note(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResultLine<'a, T> {
    #[serde(rename = "type")]
    line_type: &'static str,
    exit_code: u8,
    result: &'a T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorLine<'a> {
    #[serde(rename = "type")]
    line_type: &'static str,
    #[serde(flatten)]
    error: ErrorDocument<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorDocument<'a> {
    exit_code: u8,
    reason: &'a str,
    message: &'a str,
    run_id: &'a str,
    metadata: &'a std::collections::BTreeMap<String, String>,
}
