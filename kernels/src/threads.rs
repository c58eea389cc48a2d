//! Work in parts, shared with threads that wait for it.
//!
//! A step of decoding is some fifty operations of 20 to 200 µs, with a little between them that one
//! thread does alone. A thread that sleeps in these gaps wakes too late for the next operation, and who
//! waits for it asleep wakes too late as well: with rayon's threads the one that decoded waited for 80
//! of 200 ms (ADR 0020). So here both look for work for as long as a gap lasts, and sleep after that.
//!
//! Nobody waits for a thread that does not come: a part belongs to whoever takes it first.

#![allow(unsafe_code, reason = "work is lent to threads that outlive it")]

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps, and waits awake for what others took.
const AWAKE: Duration = Duration::from_micros(100);

/// How often it looks between two looks at the clock.
const LOOKS: usize = 64;

/// Models that compute at once with several threads each have a team each, up to so many.
static TEAMS: [Team; 16] = [const { Team::new() }; 16];

/// More threads than the others that the processor runs at a time would be in each other's way.
static HELPERS_MAX: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, |cores| cores.get().max(2) - 1));

/// Does something with every part: this thread, and as many others as there are more parts.
///
/// # Panics
/// As the work does, after all parts were done.
pub(crate) fn each<T: Send>(parts: Vec<T>, work: impl Fn(T) + Sync) {
    if parts.len() < 2 {
        return parts.into_iter().for_each(work);
    }
    let count = parts.len();
    let parts: Vec<Mutex<Option<T>>> =
        parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
    let work = |index: usize| {
        let part = parts[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        work(part.expect("a part is taken once"));
    };
    match TEAMS.iter().find_map(|team| Some((team, team.free()?))) {
        Some((team, helpers)) => team.share(helpers, count, &work),
        None => (0..count).for_each(work),
    }
}

/// Threads that help whoever has work, one at a time.
struct Team {
    /// Held by whom they help.
    helpers: Mutex<Vec<Thread>>,
    /// Which parts of the task nobody took yet; see [`Open`].
    open: AtomicU64,
    /// What is to be done while there are parts that are not done.
    task: AtomicPtr<Task<'static>>,
}

/// Parts that nobody took yet: from `next` on, of `count`.
#[derive(Clone, Copy)]
struct Open {
    count: u32,
    next: u32,
}

impl Open {
    fn of(bits: u64) -> Open {
        Open { count: (bits >> 32) as u32, next: bits as u32 }
    }

    fn bits(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.next)
    }
}

/// Work by the number of its part.
struct Task<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    /// Parts that are not done.
    left: AtomicUsize,
    /// Of the first part that panicked.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    owner: Thread,
}

impl Team {
    const fn new() -> Team {
        Team {
            helpers: Mutex::new(Vec::new()),
            open: AtomicU64::new(0),
            task: AtomicPtr::new(null_mut()),
        }
    }

    /// The team's helpers, if they help nobody.
    fn free(&self) -> Option<MutexGuard<'_, Vec<Thread>>> {
        match self.helpers.try_lock() {
            Ok(helpers) => Some(helpers),
            Err(TryLockError::Poisoned(helpers)) => Some(helpers.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Does all parts of some work with the team.
    fn share(
        &'static self,
        mut helpers: MutexGuard<'_, Vec<Thread>>,
        count: usize,
        work: &(dyn Fn(usize) + Sync),
    ) {
        let wanted = (count - 1).min(*HELPERS_MAX);
        while helpers.len() < wanted {
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
            panic: Mutex::new(None),
            owner: thread::current(),
        };
        self.task.store((&raw const task).cast_mut().cast(), Ordering::Relaxed);
        let count = u32::try_from(count).expect("parts are few");
        self.open.store(Open { count, next: 0 }.bits(), Ordering::Release);
        helpers.iter().take(wanted).for_each(Thread::unpark);
        while let Some(index) = self.take() {
            // SAFETY: the task lives to the end of this function.
            unsafe { Task::run(&raw const task, index) };
        }
        task.wait();
        drop(helpers);
        if let Some(panic) = task.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }

    /// Takes a part that nobody took yet. It is of the task that is there now, however long ago the
    /// thread looked: what is taken is said by the exchange.
    fn take(&self) -> Option<usize> {
        let more = |bits: u64| {
            let open = Open::of(bits);
            (open.next < open.count).then(|| Open { next: open.next + 1, ..open }.bits())
        };
        let taken = self.open.fetch_update(Ordering::Acquire, Ordering::Acquire, more);
        taken.ok().map(|bits| Open::of(bits).next as usize)
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
                unsafe { Task::run(self.task.load(Ordering::Relaxed), index) };
            }
        }
    }

    fn is_open(&self) -> bool {
        let open = Open::of(self.open.load(Ordering::Relaxed));
        open.next < open.count
    }
}

impl Task<'_> {
    /// Does a part. The task may be gone before this returns, so it is no reference.
    ///
    /// # Safety
    /// The task lives until all its parts are done, and this part is not.
    unsafe fn run(task: *const Self, index: usize) {
        // SAFETY: the part is not done up to the subtraction, and nothing of the task is touched
        // after it.
        let (owner, is_last) = unsafe {
            let done = catch_unwind(AssertUnwindSafe(|| ((*task).work)(index)));
            if let Err(panic) = done {
                let mut first = (*task).panic.lock().unwrap_or_else(PoisonError::into_inner);
                // A second one is forgotten: what it holds may panic when it is dropped.
                match *first {
                    None => *first = Some(panic),
                    Some(_) => std::mem::forget(panic),
                }
            }
            let owner = (*task).owner.clone();
            (owner, (*task).left.fetch_sub(1, Ordering::AcqRel) == 1)
        };
        if is_last {
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
    use std::sync::Barrier;

    use super::*;

    fn numbers(count: usize) -> Vec<AtomicUsize> {
        (0..count).map(|_| AtomicUsize::new(0)).collect()
    }

    /// Long enough for whoever waits to fall asleep.
    fn dawdle() {
        let since = Instant::now();
        while since.elapsed() < 5 * AWAKE {
            spin_loop();
        }
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
                    }
                });
            }
        });
    }

    #[test]
    fn helpers_come_awake_or_asleep() {
        static OWN: Team = Team::new();
        for round in 0..200 {
            // Both parts are begun before either ends: nobody could do them alone.
            let both = Barrier::new(2);
            OWN.share(OWN.free().unwrap(), 2, &|_| {
                both.wait();
            });
            if round % 4 == 0 {
                dawdle();
            }
        }
    }

    #[test]
    fn who_asked_waits_for_a_part_however_long_it_takes() {
        static OWN: Team = Team::new();
        let owner = thread::current().id();
        for _ in 0..20 {
            let (both, done) = (Barrier::new(2), AtomicUsize::new(0));
            OWN.share(OWN.free().unwrap(), 2, &|_| {
                both.wait();
                if thread::current().id() != owner {
                    dawdle();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_eq!(done.into_inner(), 1, "the helper is done when the work is");
        }
    }

    #[test]
    fn parts_may_be_written() {
        let mut numbers = vec![0_u32; 1_000];
        each(numbers.chunks_mut(300).collect(), |part: &mut [u32]| part.fill(7));
        assert!(numbers.iter().all(|&number| number == 7));
    }

    #[test]
    fn a_part_that_panics_does_so_where_it_was_asked_for_and_others_are_done() {
        static OWN: Team = Team::new();
        for _ in 0..20 {
            let done = numbers(3);
            let asked = catch_unwind(AssertUnwindSafe(|| {
                OWN.share(OWN.free().unwrap(), 3, &|part| {
                    assert!(part != 1, "on purpose");
                    done[part].store(1, Ordering::Relaxed);
                });
            }));
            assert_eq!(asked.unwrap_err().downcast_ref(), Some(&"on purpose"));
            let done: Vec<usize> = done.into_iter().map(AtomicUsize::into_inner).collect();
            assert_eq!(done, [1, 0, 1]);
        }
    }
}
