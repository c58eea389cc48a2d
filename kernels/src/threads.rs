//! Work in parts, shared with threads that wait for it.
//!
//! A step of decoding is some fifty operations of 20 to 200 µs, with a little between them that one
//! thread does alone. A thread that sleeps in these gaps wakes too late for the next operation, and who
//! waits for it asleep wakes too late as well: with rayon's threads 4 of 10 cycles of two cores went
//! that way. So here both look for work for as long as a gap lasts, and sleep after that.
//!
//! Nobody waits for a thread that does not come: a part belongs to whoever takes it first.

#![allow(unsafe_code, reason = "work is lent to threads that outlive it")]

use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps, and waits awake for what others took.
const AWAKE: Duration = Duration::from_micros(100);

/// How often it looks between two looks at the clock.
const LOOKS: usize = 64;

/// Does something with every part: this thread, and as many others as there are more parts.
pub(crate) fn each<T: Send>(parts: Vec<T>, work: impl Fn(T) + Sync) {
    if parts.len() < 2 {
        return parts.into_iter().for_each(work);
    }
    let count = parts.len();
    let parts: Vec<Mutex<Option<T>>> =
        parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
    TEAM.share(count, &|index| {
        let part = parts[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        work(part.expect("a part is taken once"));
    });
}

static TEAM: Team = Team {
    helpers: Mutex::new(Vec::new()),
    open: AtomicU64::new(0),
    task: AtomicPtr::new(null_mut()),
};

/// Threads that help whoever has work, one at a time.
struct Team {
    /// Held by whom they help.
    helpers: Mutex<Vec<Thread>>,
    /// Which parts of the task nobody took yet; see [`Open`].
    open: AtomicU64,
    /// What is to be done while there are parts that are not done.
    task: AtomicPtr<Task<'static>>,
}

/// Parts that nobody took yet: from `next` on, of `count`. A task's number is there so that who is
/// late takes no part of the next one for its own.
#[derive(Clone, Copy)]
struct Open {
    task: u32,
    count: u16,
    next: u16,
}

impl Open {
    fn of(bits: u64) -> Open {
        Open { task: (bits >> 32) as u32, count: (bits >> 16) as u16, next: bits as u16 }
    }

    fn bits(self) -> u64 {
        u64::from(self.task) << 32 | u64::from(self.count) << 16 | u64::from(self.next)
    }
}

/// Work by the number of its part.
struct Task<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    /// Parts that are not done.
    left: AtomicUsize,
    has_panicked: AtomicBool,
    owner: Thread,
}

impl Team {
    /// Does all parts of some work. Where the team is busy they are all done here.
    ///
    /// # Panics
    /// When the work does, after all parts were done.
    fn share(&'static self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        let mut helpers = match self.helpers.try_lock() {
            Ok(helpers) => helpers,
            Err(TryLockError::Poisoned(helpers)) => helpers.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..count).for_each(work),
        };
        let Ok(parts) = u16::try_from(count) else { return (0..count).for_each(work) };
        while helpers.len() + 1 < count {
            let helper = thread::Builder::new().name("amend-kernels".to_owned());
            match helper.spawn(|| self.help()) {
                Ok(helper) => helpers.push(helper.thread().clone()),
                // The system lends no more threads: those that there are do it.
                Err(_) => break,
            }
        }
        let task = Task {
            work,
            left: AtomicUsize::new(count),
            has_panicked: AtomicBool::new(false),
            owner: thread::current(),
        };
        self.task.store((&raw const task).cast_mut().cast(), Ordering::Relaxed);
        let number = Open::of(self.open.load(Ordering::Relaxed)).task.wrapping_add(1);
        let open = Open { task: number, count: parts, next: 0 };
        self.open.store(open.bits(), Ordering::Release);
        helpers.iter().take(count - 1).for_each(Thread::unpark);
        while let Some(index) = self.take() {
            task.run(index);
        }
        task.wait();
        drop(helpers);
        assert!(!task.has_panicked.into_inner(), "a part of some work panicked");
    }

    /// Takes a part that nobody took yet.
    fn take(&self) -> Option<usize> {
        let more = |bits: u64| {
            let open = Open::of(bits);
            (open.next < open.count).then(|| Open { next: open.next + 1, ..open }.bits())
        };
        let taken = self.open.fetch_update(Ordering::Acquire, Ordering::Acquire, more);
        taken.ok().map(|bits| usize::from(Open::of(bits).next))
    }

    /// What a helper does, for ever.
    fn help(&self) {
        loop {
            if !stays_awake(|| self.is_open()) {
                thread::park();
            }
            while let Some(index) = self.take() {
                // SAFETY: a part was taken that is not done, so its task is the one that is there,
                // and whoever it belongs to waits until it is done.
                unsafe { &*self.task.load(Ordering::Relaxed) }.run(index);
            }
        }
    }

    fn is_open(&self) -> bool {
        let open = Open::of(self.open.load(Ordering::Relaxed));
        open.next < open.count
    }
}

impl Task<'_> {
    /// Does a part. The task may be gone when it is the last one.
    fn run(&self, index: usize) {
        if catch_unwind(AssertUnwindSafe(|| (self.work)(index))).is_err() {
            self.has_panicked.store(true, Ordering::Relaxed);
        }
        let owner = self.owner.clone();
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            owner.unpark();
        }
    }

    /// Waits until all parts are done.
    fn wait(&self) {
        let is_done = || self.left.load(Ordering::Acquire) == 0;
        if !stays_awake(is_done) {
            while !is_done() {
                thread::park();
            }
        }
    }
}

/// Waits awake for something, though not for long; whether it came.
fn stays_awake(has_come: impl Fn() -> bool) -> bool {
    let mut since = None;
    loop {
        for _ in 0..LOOKS {
            if has_come() {
                return true;
            }
            spin_loop();
        }
        if since.get_or_insert_with(Instant::now).elapsed() > AWAKE {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<AtomicUsize> {
        (0..count).map(|_| AtomicUsize::new(0)).collect()
    }

    #[test]
    fn every_part_is_done_once_however_many_ask_at_a_time() {
        thread::scope(|scope| {
            for asker in 0..3 {
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let count = 1 + (round + asker) % 5;
                        let done = numbers(count);
                        each((0..count).collect(), |part: usize| {
                            done[part].fetch_add(1 + part, Ordering::Relaxed);
                        });
                        for (part, done) in done.into_iter().enumerate() {
                            assert_eq!(done.into_inner(), 1 + part, "part {part} of {count}");
                        }
                        if round % 500 == 0 {
                            // Who helps has gone to sleep when the next work comes.
                            thread::sleep(10 * AWAKE);
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn parts_may_be_written() {
        let mut numbers = vec![0_u32; 1_000];
        each(numbers.chunks_mut(300).collect(), |part: &mut [u32]| part.fill(7));
        assert!(numbers.iter().all(|&number| number == 7));
    }

    #[test]
    fn a_part_that_panics_does_so_where_it_was_asked_for_and_others_are_done() {
        for _ in 0..20 {
            let done = numbers(3);
            let asked = catch_unwind(AssertUnwindSafe(|| {
                each(vec![0, 1, 2], |part: usize| {
                    assert!(part != 1, "on purpose");
                    done[part].store(1, Ordering::Relaxed);
                });
            }));
            assert!(asked.is_err());
            assert_eq!(done.map_to_numbers(), [1, 0, 1]);
        }
        let done = numbers(2);
        each(vec![0, 1], |part: usize| done[part].store(1, Ordering::Relaxed));
        assert_eq!(done.map_to_numbers(), [1, 1], "the team is there as before");
    }

    trait Numbers {
        fn map_to_numbers(self) -> Vec<usize>;
    }

    impl Numbers for Vec<AtomicUsize> {
        fn map_to_numbers(self) -> Vec<usize> {
            self.into_iter().map(AtomicUsize::into_inner).collect()
        }
    }
}
