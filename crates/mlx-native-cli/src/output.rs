//! What the program prints.

use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, StdoutLock, Write};

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Prints a line on standard error; where that cannot be written, nothing is left to complain to.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "{}", crate::output::printable(&format!($($text)*)));
    }};
}
pub(crate) use note;

/// Standard output that ends the program quietly when its reader has gone, as in `mlxn list | head -n 1`.
pub struct Stdout(StdoutLock<'static>);

/// Locks standard output.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

/// Nothing is left to do for a program whose output nobody reads; other errors say what could not be written.
fn written<T>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        // Writing is tried again after this one, which therefore must stay what it is.
        Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
        result => {
            result.map_err(|error| io::Error::new(error.kind(), format!("cannot write standard output: {error}")))
        }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        written(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        written(self.0.flush())
    }
}

/// Prints a value as JSON, followed by a line break.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Text whose control characters, which a terminal would obey, are spelled out; line breaks stay. Names in model files may hold any.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n';
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut spelled = String::new();
    for c in text.chars() {
        if obeyed(c) { spelled.extend(c.escape_default()) } else { spelled.push(c) }
    }
    Cow::Owned(spelled)
}

/// An error and its causes in one line. Many errors quote their cause, which is then not repeated.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A bar for `total` bytes on standard error, with rate and remaining time; one line of text unless that is a terminal.
pub fn byte_bar(label: &str, total: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        let size = total.map(|total| format!(", {}", BinaryBytes(total))).unwrap_or_default();
        note!("fetching {label}{size}");
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length();
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    bar.set_message(label.to_owned());
    match total {
        Some(total) => set_total(&bar, total),
        None => set_style(&bar, "{msg} {binary_bytes} {binary_bytes_per_sec}"),
    }
    bar
}

/// Tells a [`byte_bar`] how many bytes there will be.
pub fn set_total(bar: &ProgressBar, total: u64) {
    bar.set_length(total);
    set_style(bar, "{msg} [{bar:28}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left");
}

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

/// A bar for `total` things on standard error; hidden unless that is a terminal.
pub fn bar(things: &str, total: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    set_style(&bar, &format!("[{{bar:28}}] {{pos}}/{{len}} {things} {{eta}} left {{msg}}"));
    bar
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn terminals_obey_no_name() {
        assert_eq!(super::printable("tensor `\x1b[2J`: é\nlost"), "tensor `\\u{1b}[2J`: é\nlost");
    }

    #[test]
    fn a_quoted_cause_is_not_repeated() {
        let io = || std::io::Error::other("disk full");
        let quoting = anyhow!(mlx_native::MlxError::io("a.gguf", io())).context("cannot save");
        assert_eq!(super::chain(&quoting), "cannot save: a.gguf: disk full");
        assert_eq!(super::chain(&anyhow!(io()).context("cannot save")), "cannot save: disk full");
    }
}
