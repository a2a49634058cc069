//! Ctrl-C: the first one asks what is running to end, the second one ends the process; so does the first where nothing runs.

use std::process::exit;
use std::sync::atomic::{AtomicU8, Ordering};

/// What runs is to be ended in order.
const RUNNING: u8 = 0;
/// It was asked to end.
const ASKED: u8 = 1;
/// Nothing runs.
const IDLE: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(RUNNING);

/// The exit code of a process that was interrupted, as shells report it.
pub(super) const INTERRUPTED: u8 = 130;

/// Takes Ctrl-C over.
///
/// # Errors
/// If the system refuses.
pub(super) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if STATE.compare_exchange(RUNNING, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            exit(INTERRUPTED.into());
        }
    })?;
    Ok(())
}

/// Whether Ctrl-C was pressed since [`clear`].
pub(super) fn is_asked() -> bool {
    STATE.load(Ordering::Relaxed) == ASKED
}

/// Forgets earlier presses; what runs from here on is to be ended in order.
pub(super) fn clear() {
    STATE.store(RUNNING, Ordering::Relaxed);
}

/// Nothing runs until [`clear`]: the process ends at the next press, or now if there was one already.
pub(super) fn idle() {
    if STATE.swap(IDLE, Ordering::Relaxed) == ASKED {
        exit(INTERRUPTED.into());
    }
}
