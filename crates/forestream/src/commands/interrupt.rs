//! Ctrl-C: the first one asks the running answer to end, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// The exit code of a process that was interrupted, as shells report it.
const INTERRUPTED: i32 = 130;

/// Takes Ctrl-C over.
///
/// # Errors
/// If the system refuses.
pub(super) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if IS_ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
    })?;
    Ok(())
}

/// Whether Ctrl-C was pressed since [`clear`].
pub(super) fn is_asked() -> bool {
    IS_ASKED.load(Ordering::Relaxed)
}

/// Forgets earlier presses.
pub(super) fn clear() {
    IS_ASKED.store(false, Ordering::Relaxed);
}
