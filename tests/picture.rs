//! What a terminal shows, as text with attributes, and as a picture.

use std::fmt::Write as _;
use std::num::NonZero;

use vt100::{Cell, Color, Parser};

/// A piece of a line whose characters look the same.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    text: String,
    class: &'static str,
}

/// The lines that a terminal shows.
#[derive(Clone, Debug)]
pub(crate) struct Screen(Vec<Vec<Span>>);

/// Size of a character, in units of the picture.
const WIDTH: f32 = 8.4;
const HEIGHT: f32 = 19.0;
const MARGIN: f32 = 14.0;

/// Colors for a light and for a dark page. The terminal has the colors of the page.
const STYLE: &str = "
    .frame { fill: #f6f8fa; stroke: #d0d7de }
    text { fill: #24292f; white-space: pre }
    .bold { font-weight: 700 }
    .typed { fill: #57606a }
    .green { fill: #1a7f37; font-weight: 700 }
    .yellow { fill: #9a6700; font-weight: 700 }
    .red { fill: #cf222e; font-weight: 700 }
    @media (prefers-color-scheme: dark) {
      .frame { fill: #0d1117; stroke: #30363d }
      text { fill: #e6edf3 }
      .typed { fill: #8b949e }
      .green { fill: #3fb950 }
      .yellow { fill: #d29922 }
      .red { fill: #ff7b72 }
    }
  ";

impl Screen {
    /// What a terminal of this size shows after a program has written `output`.
    pub(crate) fn of(output: &str, rows: u16, columns: u16) -> Self {
        let some = |size| NonZero::new(size).unwrap();
        let mut parser = Parser::new(some(rows), some(columns), 0);
        parser.process(output.as_bytes());
        let screen = parser.screen();
        let row = |row| {
            let mut spans: Vec<Span> = Vec::new();
            let cells = (0..columns).filter_map(|column| screen.cell(row, column));
            for cell in cells.filter(|cell| !cell.is_wide_continuation()) {
                let (text, class) = (character(cell), class(cell));
                match spans.last_mut() {
                    Some(last) if last.class == class => last.text += text,
                    _ => spans.push(Span {
                        text: text.to_owned(),
                        class,
                    }),
                }
            }
            trimmed(spans)
        };
        let mut lines: Vec<_> = (0..rows).map(row).collect();
        while lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        Self(lines)
    }

    /// The text without attributes.
    pub(crate) fn text(&self) -> String {
        let line = |line: &Vec<Span>| line.iter().map(|span| span.text.as_str()).collect();
        let lines: Vec<String> = self.0.iter().map(line).collect();
        lines.join("\n")
    }

    /// Changes the text of every span.
    pub(crate) fn map(&mut self, mut change: impl FnMut(&str) -> String) {
        for span in self.0.iter_mut().flatten() {
            span.text = change(&span.text);
        }
    }

    /// Replaces the cells below a column head with these texts, and moves the columns after it.
    /// The cells have no attributes. The column ends before the head `next`.
    pub(crate) fn replace_column(&mut self, head: &str, next: &str, cells: &[&str]) {
        let text = |line: &Vec<Span>| match &line[..] {
            [span] => span.text.clone(),
            _ => String::new(),
        };
        let is_head = |line: &Vec<Span>| text(line).contains(head) && text(line).contains(next);
        let first = self.0.iter().position(is_head).unwrap();
        let heads = text(&self.0[first]);
        let (start, end) = (heads.find(head).unwrap(), heads.find(next).unwrap());
        let texts = [head].into_iter().chain(cells.iter().copied());
        let width = texts.clone().map(str::len).max().unwrap() + 2;
        for (line, new) in self.0[first..].iter_mut().zip(texts) {
            let old: Vec<char> = text(line).chars().collect();
            let new = format!("{new:width$}");
            let (before, after) = (&old[..start], &old[end..]);
            let pieces = [before, &new.chars().collect::<Vec<_>>(), after];
            line[0].text = pieces.concat().into_iter().collect();
        }
    }

    /// The picture. Before the screen, there is a line with the command as the operator typed it.
    pub(crate) fn svg(&self, command: &str, title: &str, description: &str) -> String {
        let typed = vec![
            Span {
                text: "$ ".to_owned(),
                class: "typed",
            },
            Span {
                text: command.to_owned(),
                class: "bold",
            },
        ];
        let lines: Vec<_> = [&typed].into_iter().chain(&self.0).collect();
        let longest = lines.iter().map(|line| length(line)).max().unwrap();
        let width = position(longest) + MARGIN;
        #[expect(clippy::cast_precision_loss, reason = "a screen has few lines")]
        let height = HEIGHT * lines.len() as f32 + 2.0 * MARGIN;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             aria-labelledby=\"t d\" font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', \
             'DejaVu Sans Mono', monospace\" font-size=\"14\">\n  <title id=\"t\">{}</title>\n  <desc id=\"d\">{}</desc>\n  \
             <style>{STYLE}</style>\n  <rect class=\"frame\" x=\"0.5\" y=\"0.5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"8\"/>\n",
            escaped(title),
            escaped(description),
            width - 1.0,
            height - 1.0,
        );
        for (index, line) in lines.into_iter().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "a screen has few lines")]
            let y = MARGIN + HEIGHT * (index as f32 + 0.75);
            if !line.is_empty() {
                let _ = writeln!(svg, "  <text y=\"{y:.0}\">{}</text>", spans(line));
            }
        }
        svg + "</svg>\n"
    }
}

/// Each span has its own position, so that the columns are straight in every font.
fn spans(line: &[Span]) -> String {
    let mut text = String::new();
    let mut column = 0;
    for span in line {
        let class = match span.class {
            "" => String::new(),
            class => format!(" class=\"{class}\""),
        };
        let _ = write!(
            text,
            "<tspan x=\"{:.1}\"{class}>{}</tspan>",
            position(column),
            escaped(&span.text)
        );
        column += span.text.chars().count();
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "a line has few characters")]
fn position(column: usize) -> f32 {
    MARGIN + WIDTH * column as f32
}

fn length(line: &[Span]) -> usize {
    line.iter().map(|span| span.text.chars().count()).sum()
}

fn character(cell: &Cell) -> &str {
    if cell.has_contents() {
        cell.contents()
    } else {
        " "
    }
}

fn class(cell: &Cell) -> &'static str {
    match cell.fgcolor() {
        _ if !cell.has_contents() || cell.contents() == " " => "",
        Color::Idx(1) => "red",
        Color::Idx(2) => "green",
        Color::Idx(3) => "yellow",
        Color::Default if cell.bold() => "bold",
        Color::Default => "",
        other => panic!("a color without a class: {other:?}"),
    }
}

/// The spans without blanks at the end of the line. A blank between two bold words is bold.
fn trimmed(spans: Vec<Span>) -> Vec<Span> {
    let mut line: Vec<Span> = Vec::new();
    for span in spans {
        let count = line.len();
        let is_gap = line.last().is_some_and(|gap| gap.text.trim().is_empty());
        if is_gap && count >= 2 && line[count - 2].class == span.class {
            let gap = line.pop().unwrap();
            line[count - 2].text += &(gap.text + &span.text);
            continue;
        }
        line.push(span);
    }
    if let Some(last) = line.last_mut() {
        last.text.truncate(last.text.trim_end().len());
    }
    if line.last().is_some_and(|last| last.text.is_empty()) {
        line.pop();
    }
    line
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[test]
fn a_terminal_shows_what_was_not_cleared() {
    let output =
        "[=>  ] 10%\r\u{1b}[2K\u{1b}[1;32m✓\u{1b}[0m good\r\n\u{1b}[1mTwo words\u{1b}[0m <a>\r\n";
    let screen = Screen::of(output, 10, 40);
    assert_eq!(screen.text(), "✓ good\nTwo words <a>");
    let svg = screen.svg("x & y", "t", "d");
    assert!(svg.contains(">✓</tspan>"), "{svg}");
    assert!(svg.contains("class=\"bold\">Two words</tspan>"), "{svg}");
    assert!(
        svg.contains("&lt;a&gt;") && svg.contains("x &amp; y"),
        "{svg}"
    );
}

#[test]
fn a_replaced_column_moves_the_next_ones() {
    let mut screen = Screen::of("A  OLD    B\r\nx  1      y\r\nz  22222  w\r\n", 10, 40);
    screen.replace_column("OLD", "B", &["12", "3"]);
    assert_eq!(screen.text(), "A  OLD  B\nx  12   y\nz  3    w");
}
