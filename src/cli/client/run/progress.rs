//! Shows the progress of a run: a bar on a terminal, otherwise a line every ten seconds.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::{
    cli::client::{
        options::Format,
        output::{
            Output,
            document::ProgressLine,
            run_text::{kind_text, progress_text},
            text::Style,
        },
    },
    proto::rewrap as pb,
};

/// How often a line is written.
const INTERVAL: Duration = Duration::from_secs(10);

/// Shows the progress of one run.
pub(super) struct ProgressView<'a> {
    output: &'a Output,
    bar: Option<ProgressBar>,
    /// Whether the bar shows which part of the rows is done.
    has_total: bool,
    last_line: Instant,
}

impl<'a> ProgressView<'a> {
    pub(super) fn new(output: &'a Output) -> Self {
        let is_text = output.format != Format::Jsonl;
        let bar = (output.has_bars && is_text).then(|| bar(output.notes));
        Self {
            output,
            bar,
            has_total: false,
            last_line: Instant::now(),
        }
    }

    /// Shows this state.
    pub(super) fn show(&mut self, run: &pb::Run) {
        self.output.line(&ProgressLine::new(run));
        let progress = run.progress.unwrap_or_default();
        let text = format!("{}: {}", kind_text(run.kind()), progress_text(run));
        if let Some(bar) = &self.bar {
            // Without an estimate of the number of rows, a part of them means nothing.
            let has_total = progress.rows_total > 0;
            if has_total != self.has_total {
                self.has_total = has_total;
                bar.set_style(style(self.output.notes, has_total));
            }
            bar.update(|state| {
                state.set_len(progress.rows_total.max(progress.rows_done).max(1));
                state.set_pos(progress.rows_done);
            });
            bar.set_message(text);
        } else if self.output.format != Format::Jsonl && self.last_line.elapsed() >= INTERVAL {
            self.last_line = Instant::now();
            self.output.note(&text);
        }
    }

    /// Writes a line above the bar.
    pub(super) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    /// Hides the bar, so that a question can be read.
    pub(super) fn hide(&self) {
        if let Some(bar) = &self.bar {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Shows the bar again.
    pub(super) fn unhide(&self) {
        if let Some(bar) = &self.bar {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for ProgressView<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The smallest width of a terminal that has room for a bar beside the text.
const BAR_WIDTH: usize = 80;

fn bar(notes: Style) -> ProgressBar {
    // At most ten times per second.
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style(notes, false));
    bar
}

fn style(notes: Style, has_total: bool) -> ProgressStyle {
    let template = match (has_total, notes.width < BAR_WIDTH) {
        (false, _) => "{wide_msg}",
        (true, true) => "{percent:>3}%  {wide_msg}",
        (true, false) => "[{bar:24}] {percent:>3}%  {wide_msg}",
    };
    let style = ProgressStyle::with_template(template);
    let characters = if notes.ascii { "=> " } else { "█▌░" };
    style
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars(characters)
}
