//! How the process ends where threads of libtorch may be at work.

use std::io::Write as _;

use super::failure::Status;

/// Ends the process whatever its other threads are doing: the user asked twice, or a thread is gone that
/// others wait for. The memo is safe at any instant.
pub(super) fn at_once(status: Status) -> ! {
    // Stdout is not flushed: another thread may hold it, and wait for this one.
    without_handlers(status.code())
}

/// Ends the process after a command that may have opened models.
pub(super) fn with(status: Status) -> ! {
    drop(std::io::stdout().flush());
    without_handlers(status.code())
}

/// `exit` runs the handlers of all libraries, which destroy what libtorch's threads still use: a
/// segmentation fault in place of the exit code. Whatever has to last was synced before.
#[expect(unsafe_code, reason = "there is no other way to end a process without its exit handlers")]
fn without_handlers(code: u8) -> ! {
    // SAFETY: `_exit` may be called at any time, from any thread.
    unsafe { libc::_exit(i32::from(code)) }
}
