//! Texts for people: colors, symbols, numbers and times.

use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Effects, Style as Ansi};
use prost_types::Timestamp;

/// The longest line of a sentence, and the shortest limit of a narrow terminal.
const MAX_WIDTH: usize = 100;
const MIN_WIDTH: usize = 20;

/// How text is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// Whether the reader is a terminal that shows colors.
    pub(crate) color: bool,
    /// Whether symbols are ASCII characters.
    pub(crate) ascii: bool,
    /// The longest line of a sentence, in characters.
    pub(crate) width: usize,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            color: false,
            ascii: false,
            width: MAX_WIDTH,
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The check passed.
    Good,
    /// Not an error. An operator should check it.
    Warning,
    /// Wrong.
    Bad,
}

impl Style {
    /// The style for a terminal with this number of columns. A terminal that has no size has 0.
    pub(crate) fn columns(self, columns: u16) -> Self {
        let width = match usize::from(columns) {
            0 => MAX_WIDTH,
            columns => columns.clamp(MIN_WIDTH, MAX_WIDTH),
        };
        Self { width, ..self }
    }

    /// The words of a sentence in lines of at most 100 characters, or as long as the terminal
    /// shows. `used` characters are already on the first line. Each other line starts with
    /// `indent`. A longer word has a line of its own.
    pub(crate) fn wrapped(self, text: &str, used: usize, indent: &str) -> String {
        let mut result = String::new();
        let mut width = used;
        for word in text.split_whitespace() {
            let length = word.chars().count();
            if result.is_empty() {
                width += length;
            } else if width + 1 + length > self.width {
                result = format!("{result}\n{indent}");
                width = indent.len() + length;
            } else {
                result.push(' ');
                width += 1 + length;
            }
            result.push_str(word);
        }
        result
    }

    /// A sentence with two spaces before each line.
    pub(crate) fn indented(self, text: &str) -> String {
        format!("  {}\n", self.wrapped(&plain(text), 2, "  "))
    }

    /// A sentence with a mark before it.
    pub(crate) fn marked(self, mark: Mark, text: &str) -> String {
        format!(
            "{} {}\n",
            self.mark(mark),
            self.wrapped(&plain(text), 2, "  ")
        )
    }

    fn paint(self, style: Ansi, text: &str) -> String {
        if self.color {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint(Ansi::new().effects(Effects::BOLD), text)
    }

    /// A symbol for the result of a check.
    pub(crate) fn mark(self, mark: Mark) -> String {
        let (symbol, ascii, color) = match mark {
            Mark::Good => ("✓", "+", AnsiColor::Green),
            Mark::Warning => ("!", "!", AnsiColor::Yellow),
            Mark::Bad => ("✗", "x", AnsiColor::Red),
        };
        let symbol = if self.ascii { ascii } else { symbol };
        self.paint(color.on_default().effects(Effects::BOLD), symbol)
    }
}

/// The text without control characters. A text from the server can contain bytes from the database
/// that would control the terminal.
pub(crate) fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    text.chars().map(visible).collect()
}

/// A number with a comma after every three digits.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "1 row", "2 rows".
pub(crate) fn counted(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {one}{plural}", count(number))
}

/// A rate as a whole number of rows.
pub(crate) fn rate(rows_per_second: f64) -> String {
    if rows_per_second < 10.0 {
        return format!("{rows_per_second:.1} rows/s");
    }
    // Saturates. A rate is never negative.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate of rows is small and positive"
    )]
    let whole = rows_per_second.round() as u64;
    format!("{} rows/s", count(whole))
}

/// A time of the server.
pub(crate) fn time(time: Option<Timestamp>) -> Option<SystemTime> {
    time.and_then(|time| time.try_into().ok())
}

/// A time as RFC 3339, UTC, with milliseconds.
pub(crate) fn rfc3339(stamp: Option<Timestamp>) -> Option<String> {
    time(stamp).map(|time| humantime::format_rfc3339_millis(time).to_string())
}

/// A time as RFC 3339, UTC, with seconds. A dash if the time is absent.
pub(crate) fn moment(stamp: Option<Timestamp>) -> String {
    time(stamp).map_or_else(
        || "-".to_owned(),
        |time| humantime::format_rfc3339_seconds(time).to_string(),
    )
}

/// How long ago this was, such as "3m 12s". Empty if it is unknown.
pub(crate) fn age(stamp: Option<Timestamp>) -> String {
    let elapsed = time(stamp).map(|time| time.elapsed().unwrap_or_default());
    elapsed.map_or_else(String::new, span)
}

/// A duration of the server.
pub(crate) fn duration(duration: Option<prost_types::Duration>) -> Option<Duration> {
    duration.and_then(|duration| duration.try_into().ok())
}

/// A duration in at most two units, such as "3m 12s".
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{} ms", duration.as_millis());
    }
    let [days, hours, minutes] = [86_400, 3_600, 60];
    match seconds {
        _ if seconds >= days => format!("{}d {}h", seconds / days, seconds % days / hours),
        _ if seconds >= hours => format!("{}h {}m", seconds / hours, seconds % hours / minutes),
        _ if seconds >= minutes => format!("{}m {}s", seconds / minutes, seconds % minutes),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_commas() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(counted(1, "row"), "1 row");
        assert_eq!(counted(2, "row"), "2 rows");
        assert_eq!(rate(0.25), "0.2 rows/s");
        assert_eq!(rate(1234.6), "1,235 rows/s");
    }

    #[test]
    fn long_texts_are_wrapped() {
        let style = Style::default();
        assert_eq!(style.wrapped("a  b\nc", 2, "  "), "a b c");
        for (columns, width) in [(0, 100), (5, 20), (40, 40), (200, 100)] {
            let text = style.columns(columns).indented(&"word ".repeat(50));
            let longest = text.lines().map(str::len).max().unwrap();
            assert!(longest <= width && longest > width - 5, "{text}");
            assert!(text.lines().all(|line| line.starts_with("  word")));
            assert_eq!(text.matches("word").count(), 50);
        }
    }

    #[test]
    fn durations_have_at_most_two_units() {
        let texts = [12, 72, 3_700, 90_000].map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(texts, ["12 s", "1m 12s", "1h 1m", "1d 1h"]);
        assert_eq!(span(Duration::from_millis(20)), "20 ms");
    }

    #[test]
    fn texts_of_the_server_cannot_control_the_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\nc\r\u{7}ü"), "a?[31mb\nc??ü");
    }

    #[test]
    fn a_style_without_color_writes_no_escapes() {
        let plain = Style::default();
        assert_eq!(plain.bold("a") + &plain.mark(Mark::Bad), "a✗");
        let ascii = Style {
            ascii: true,
            ..plain
        };
        assert_eq!(
            [Mark::Good, Mark::Warning, Mark::Bad].map(|mark| ascii.mark(mark)),
            ["+", "!", "x"]
        );
        let color = Style {
            color: true,
            ..ascii
        };
        assert!(color.mark(Mark::Good).contains('\u{1b}'));
    }
}
