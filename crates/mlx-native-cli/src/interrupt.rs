//! Ctrl-C and the signal to terminate: they end the program, or the work that wants to be asked first.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::output;

/// The exit status of a program that Ctrl-C has ended: 128 + SIGINT, as shells report it.
const INTERRUPTED: i32 = 130;

/// Whether work runs that asks for interruptions.
static CATCHING: AtomicBool = AtomicBool::new(false);
/// Whether there was one since that work began.
static CAUGHT: AtomicBool = AtomicBool::new(false);
/// The exit status that the last one asks for.
static STATUS: AtomicI32 = AtomicI32::new(INTERRUPTED);

/// Makes interruptions end the program on a fresh line. Nothing needs undoing: an unfinished download stays and is resumed,
/// and the operating system releases file locks.
#[cfg(unix)]
pub fn install() -> Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).context("cannot install handlers for signals")?;
    let waiting = move || signals.forever().for_each(|signal| interrupt(128 + signal));
    std::thread::Builder::new().name("signals".into()).spawn(waiting).context("cannot start a thread for signals")?;
    Ok(())
}

/// As on Unix, for Ctrl-C alone.
#[cfg(not(unix))]
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| interrupt(INTERRUPTED)).context("cannot install the handler for Ctrl-C")
}

fn interrupt(status: i32) {
    STATUS.store(status, Ordering::SeqCst);
    // A second one ends the program even if the work does not come to ask.
    if !CATCHING.load(Ordering::SeqCst) || CAUGHT.swap(true, Ordering::SeqCst) {
        end("");
    }
}

/// Ends the program as interrupted, with a last line on standard error.
pub fn end(line: &str) -> ! {
    output::note!("{line}");
    std::process::exit(STATUS.load(Ordering::SeqCst))
}

/// Does work that the first interruption does not end: the function that it receives says whether there was one.
pub fn catch<T>(work: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
    CAUGHT.store(false, Ordering::SeqCst);
    CATCHING.store(true, Ordering::SeqCst);
    let result = work(&|| CAUGHT.load(Ordering::SeqCst));
    CATCHING.store(false, Ordering::SeqCst);
    result
}

/// Ends the program if the last interruption was none by Ctrl-C, which may mean no more than the work at hand.
pub fn end_if_terminated() {
    if STATUS.load(Ordering::SeqCst) != INTERRUPTED {
        end("");
    }
}
