//! Ctrl-C.

use anyhow::{Context, Result};

/// The exit status of a program that was interrupted: 128 + SIGINT, as shells report it.
const INTERRUPTED: i32 = 130;

/// Makes Ctrl-C end the program on a fresh line. Nothing needs undoing: an unfinished download stays and is resumed,
/// and the operating system releases file locks.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        eprintln!();
        std::process::exit(INTERRUPTED);
    })
    .context("cannot install the handler for Ctrl-C")
}
