//! Ctrl-C: ends the program, or only the work that wants to be asked.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::output;

/// The exit status of a program that was interrupted: 128 + SIGINT, as shells report it.
const INTERRUPTED: i32 = 130;

/// Whether work runs that asks for interruptions.
static CATCHING: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C was pressed since that work began.
static PRESSED: AtomicBool = AtomicBool::new(false);

/// Makes Ctrl-C end the program on a fresh line. Nothing needs undoing: an unfinished download stays and is resumed,
/// and the operating system releases file locks.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        // A second press ends the program even if the work does not come to ask.
        if !CATCHING.load(Ordering::SeqCst) || PRESSED.swap(true, Ordering::SeqCst) {
            end("");
        }
    })
    .context("cannot install the handler for Ctrl-C")
}

/// Ends the program as interrupted, with a last line on standard error.
pub fn end(line: &str) -> ! {
    output::note!("{line}");
    std::process::exit(INTERRUPTED)
}

/// Does work that the first Ctrl-C does not end: the function that it receives says whether there was one.
pub fn catch<T>(work: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
    PRESSED.store(false, Ordering::SeqCst);
    CATCHING.store(true, Ordering::SeqCst);
    let result = work(&|| PRESSED.load(Ordering::SeqCst));
    CATCHING.store(false, Ordering::SeqCst);
    result
}
