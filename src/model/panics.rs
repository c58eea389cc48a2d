//! Panics: a fault of the program itself, which is told as a message and never lost with its thread.
//!
//! Who runs code in a thread that others wait for runs it by [`caught`], and tells the message as any
//! other failure. What nobody catches ends the process: the command line sees to it, by a hook that is
//! silent where [`is_caught`] says that somebody does.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Counts itself while it lives.
struct Catching;

impl Catching {
    fn begin() -> Catching {
        DEPTH.set(DEPTH.get() + 1);
        Catching
    }
}

impl Drop for Catching {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Runs something; a panic becomes its message.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let catching = Catching::begin();
    let result = catch_unwind(AssertUnwindSafe(run));
    drop(catching);
    result.map_err(|panic| message(&*panic))
}

/// Whether a panic of this thread is caught by [`caught`], and told there.
pub fn is_caught() -> bool {
    // A thread that ends has no such place any more, and nobody who catches.
    DEPTH.try_with(|depth| depth.get() > 0).unwrap_or(false)
}

/// The first line of what a panic says.
pub fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    // What follows the first line is a backtrace of C++.
    let line = text.and_then(|text| text.split(['\n', '\r']).next());
    let line = line.and_then(|line| line.split("\\nException raised").next());
    line.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_first_line_and_is_known_to_be_caught() {
        assert!(!is_caught());
        let inside = caught(|| {
            let nested: Result<(), String> = caught(|| panic!("inner\nbacktrace"));
            assert_eq!(nested.unwrap_err(), "inner");
            assert!(is_caught());
            panic!("outer {}", 1)
        });
        let inside: Result<(), String> = inside;
        assert_eq!(inside.unwrap_err(), "outer 1");
        assert!(!is_caught());
        assert_eq!(caught(|| 7), Ok(7));
    }
}
