//! What the operator's commands print: spans, sizes, tables, and words of strangers.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::SystemTime,
};

use anyhow::Context;

/// Whoever read what a command prints does not do so any more: the command ends, and nothing went wrong.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads what is printed")]
pub struct PipeClosed;

/// Writes to standard output, at once.
pub fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(PipeClosed.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Writes a line to standard error, if anybody reads it.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// What time it is, in milliseconds since 1970.
pub fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// How far a moment is from now, roughly: `in 3m`, `2h ago`, `-` for none.
pub fn when(millis: u64, now: u64) -> String {
    if millis == 0 {
        return "-".to_owned();
    }
    let seconds = millis.abs_diff(now) / 1000;
    let span = match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    };
    match millis > now {
        true => format!("in {span}"),
        false => format!("{span} ago"),
    }
}

/// A size, roughly: `1.5 MB`.
pub fn bytes(count: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let mut size = count as f64;
    let mut unit = "B";
    for larger in ["KB", "MB", "GB", "TB"] {
        if size < 1000.0 {
            break;
        }
        size /= 1000.0;
        unit = larger;
    }
    match unit {
        "B" => format!("{count} B"),
        _ => format!("{size:.1} {unit}"),
    }
}

/// What a stranger chose, safe for a terminal.
pub fn plain(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(clean).collect()
}

/// Columns as wide as their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::from(" ");
        for (cell, width) in cells.zip(&widths) {
            let _ = write!(line, " {cell:<width$} ");
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_rough_and_right() {
        let now = 1_000_000_000;
        assert_eq!(when(0, now), "-");
        assert_eq!(when(now + 61_000, now), "in 61s");
        assert_eq!(when(now - 180_000, now), "3m ago");
        assert_eq!(when(now - 3 * 86_400_000, now), "3d ago");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500_000), "1.5 MB");
    }

    #[test]
    fn columns_line_up_and_strangers_words_stay_words() {
        let rows = [vec![plain("a\u{1b}[2J"), "1".to_owned()]];
        assert_eq!(
            table(&["name", "n"], &rows),
            "  name   n\n  a\u{fffd}[2J  1\n"
        );
    }
}
