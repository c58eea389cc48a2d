//! Panics: a fault of the program itself, which is told as a message and never lost with its thread.
//!
//! Who runs code in a thread that others wait for runs it by [`caught`], and tells the message as any
//! other failure. What nobody catches ends the process: the command line sees to it, by a hook that is
//! silent where [`is_caught`] says that somebody does.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// Those to be told what the panic under way says, once it is caught.
    static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
}

type Waiting = Box<dyn FnOnce(&str) + Send>;

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
    result.map_err(|panic| {
        let message = message(&*panic);
        for waiting in WAITING.take() {
            waiting(&message);
        }
        message
    })
}

/// Tells somebody why something was lost: what the panic of this thread says, as soon as [`caught`] knows,
/// and else that it was dropped.
pub fn lost(waiting: impl FnOnce(&str) + Send + 'static) {
    let mut waiting: Option<Waiting> = Some(Box::new(waiting));
    if std::thread::panicking() && is_caught() {
        let keep = |all: &RefCell<Vec<Waiting>>| {
            if let Ok(mut all) = all.try_borrow_mut() {
                all.extend(waiting.take());
            }
        };
        // A thread that ends has no such place any more: they are told now.
        let _ = WAITING.try_with(keep);
    }
    if let Some(waiting) = waiting {
        waiting("the thread that had it is gone");
    }
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

    /// Tells what it was lost by.
    struct Told(std::sync::mpsc::Sender<String>);

    impl Drop for Told {
        fn drop(&mut self) {
            let told = self.0.clone();
            lost(move |why| told.send(why.to_owned()).unwrap());
        }
    }

    #[test]
    fn who_loses_something_by_a_panic_is_told_what_it_says() {
        let (sender, told) = std::sync::mpsc::channel();
        let held = Told(sender.clone());
        let caught: Result<(), String> = caught(move || {
            let _held = held;
            panic!("on purpose")
        });
        assert_eq!(caught.unwrap_err(), "on purpose");
        drop(Told(sender));
        let told: Vec<String> = told.iter().collect();
        assert_eq!(told, ["on purpose", "the thread that had it is gone"]);
    }

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
