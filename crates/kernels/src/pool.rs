//! The worker pool of the token loop: a few hundred short dispatches per token, so waiting threads spin for a moment, then offer
//! their core to others, and only then park; and a dispatch allocates nothing.
//!
//! One word, the *gate*, coordinates a dispatch: `epoch << 32 | CLOSED | number of workers inside`. The caller writes the job,
//! opens the gate with a new epoch and works itself; workers enter while the gate is open, claim task numbers from a cursor, and
//! leave. When no task number is left the caller closes the gate and waits for those inside only: a worker that was
//! still asleep finds the gate closed and holds nobody up. That matters on shared machines, where waking takes longer than
//! most dispatches.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::SharedMut;

/// How long a waiting thread keeps its core: about as long as a short task takes.
const SPIN: Duration = Duration::from_micros(5);
/// How long it waits in all before it parks, yielding its core to whoever has work. Where threads outnumber cores, the thread
/// that is waited for may need that very core.
const YIELD: Duration = Duration::from_micros(50);
const CLOSED: u64 = 1 << 31;
const INSIDE: u64 = CLOSED - 1; // mask of the number of workers inside

/// A task as the workers see it: its real lifetime is the dispatch.
type Task = dyn Fn(usize) + Sync + 'static;

/// What the workers of one dispatch need. The task is borrowed from the caller's stack.
#[derive(Clone)]
struct Job {
    task: *const Task,
    n_tasks: usize,
    caller: Thread,
}

struct Shared {
    gate: AtomicU64,
    /// Written by the caller only while the gate is closed and nobody is inside; read by workers only while inside.
    job: UnsafeCell<Option<Job>>,
    cursor: AtomicUsize,
    /// Threads that may work on a dispatch, the caller included; changed only between dispatches.
    limit: AtomicUsize,
    /// Workers below the limit that are parked or about to be.
    sleepers: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: everything but `job` is Sync by itself; `job` is guarded by the gate (see its field), and the task behind its pointer
// is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the task pointer is only followed while its owner waits in `run`.
unsafe impl Send for Shared {}

thread_local! {
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// A fixed set of threads that run numbered tasks together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    busy: AtomicBool,
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] being one of them; 0 counts as 1.
    ///
    /// # Panics
    /// The system refuses to start a thread.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(CLOSED),
            job: UnsafeCell::new(None),
            cursor: AtomicUsize::new(0),
            limit: AtomicUsize::new(threads.max(1)),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let start = |i: usize| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("slotbank-{i}"));
            builder.spawn(move || shared.work(i)).expect("cannot start a worker thread")
        };
        let workers = (1..threads.max(1)).map(start).collect();
        Pool { shared, workers, busy: AtomicBool::new(false) }
    }

    /// Number of threads that work on a dispatch, the caller included: all of them unless limited.
    pub fn threads(&self) -> usize {
        self.shared.limit.load(Ordering::Relaxed)
    }

    /// From the next dispatch on at most `threads` of the pool's threads work; the others sleep. 0 counts as 1.
    pub fn limit(&mut self, threads: usize) {
        let limit = threads.clamp(1, self.workers.len() + 1);
        if self.shared.limit.swap(limit, Ordering::SeqCst) != limit {
            // Each finds out on which side of the limit it is now.
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
    }

    /// Calls `task(0) … task(n_tasks − 1)`, each exactly once, on any of the threads, and returns when all have returned. Which
    /// thread runs which task is not defined, so a result must not depend on it.
    ///
    /// # Panics
    /// With a task's own panic (the first one) after every running task has ended, the tasks not begun being dropped; or when
    /// called from inside a task, or by two threads at once.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        assert!(!IN_TASK.get(), "Pool::run called from inside a task of a pool");
        if n_tasks <= 1 || self.threads() == 1 {
            let _mark = Mark::set();
            (0..n_tasks).for_each(task);
            return;
        }
        assert!(!self.busy.swap(true, Ordering::Acquire), "Pool::run called by two threads at once");
        let _release = Release(&self.busy);
        self.shared.dispatch(n_tasks, task, &self.workers);
    }

    /// Cuts `data` into consecutive pieces of `piece` elements (the last may be shorter) and runs `task(index, piece)` on each.
    ///
    /// # Panics
    /// Like [`Pool::run`], or when `piece` is 0.
    pub fn run_pieces<T: Send>(&self, data: &mut [T], piece: usize, task: &(dyn Fn(usize, &mut [T]) + Sync)) {
        assert!(piece > 0, "pieces of no elements");
        let (len, data) = (data.len(), SharedMut::new(data));
        self.run(len.div_ceil(piece), &|i| {
            let from = i * piece;
            // SAFETY: task numbers are handed out once each, and different numbers have different pieces.
            task(i, unsafe { data.part(from, piece.min(len - from)) });
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            // Workers catch the panics of their tasks, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Shared {
    fn dispatch(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync), workers: &[JoinHandle<()>]) {
        // SAFETY: only the lifetime is erased. Workers follow the pointer only while they are inside the gate, and this
        // function does not return (or unwind: `work_through` catches) before the gate is closed and empty.
        let task = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Task>(task) };
        let job = Job { task, n_tasks, caller: std::thread::current() };
        // SAFETY: the gate is closed and nobody is inside, and `busy` admits one caller at a time.
        unsafe { *self.job.get() = Some(job.clone()) };
        self.cursor.store(0, Ordering::Relaxed);
        let epoch = (self.gate.load(Ordering::Relaxed) >> 32) + 1;
        // SeqCst pairs with `sleepers` below: either the sleeper sees the open gate or we see the sleeper.
        self.gate.store(epoch << 32, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let wanted = n_tasks.min(self.limit.load(Ordering::Relaxed)) - 1;
            workers.iter().take(wanted).for_each(|worker| worker.thread().unpark());
        }
        self.work_through(&job);
        let mut gate = self.gate.fetch_or(CLOSED, Ordering::AcqRel);
        let mut patience = Patience::new();
        while gate & INSIDE != 0 {
            if patience.is_over() {
                std::thread::park();
            }
            gate = self.gate.load(Ordering::Acquire);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Claims and runs tasks until none is left.
    fn work_through(&self, job: &Job) {
        // SAFETY: the caller of `run` keeps the task alive until everybody inside the gate has left, and we are inside
        // (or are the caller).
        let task = unsafe { &*job.task };
        let mark = Mark::set();
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.cursor.fetch_add(1, Ordering::Relaxed);
                if i >= job.n_tasks {
                    break;
                }
                task(i);
            }
        }));
        drop(mark);
        if let Err(panic) = result {
            // No further task begins. A dispatch has far fewer than usize::MAX / 2 claims, so this cannot wrap.
            self.cursor.store(usize::MAX / 2, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// The life of worker `index`, the caller being 0.
    fn work(&self, index: usize) {
        let mut seen = 0; // the last epoch worked on
        while let Some(gate) = self.wait_open(index, seen) {
            if self.gate.compare_exchange(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue; // it closed, or somebody else entered first
            }
            seen = gate >> 32;
            {
                // SAFETY: we are inside, so the caller does not write the job.
                let job = unsafe { (*self.job.get()).clone() }.expect("an open gate has a job");
                self.work_through(&job);
                let before = self.gate.fetch_sub(1, Ordering::AcqRel);
                // From here on the job's task may be gone; the caller's handle is our own clone.
                if before & CLOSED != 0 && before & INSIDE == 1 {
                    job.caller.unpark();
                }
            }
        }
    }

    /// Waits for an open gate of an epoch other than `seen`, while the worker is below the limit; `None` means stop.
    fn wait_open(&self, index: usize, seen: u64) -> Option<u64> {
        let may_work = || index < self.limit.load(Ordering::SeqCst);
        let is_new = |gate: u64| gate & CLOSED == 0 && gate >> 32 != seen && may_work();
        let mut patience = Patience::new();
        loop {
            let gate = self.gate.load(Ordering::Acquire);
            if is_new(gate) {
                return Some(gate);
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if !may_work() {
                // Nobody calls this one before the limit changes, or at the end; either leaves a token that ends the park.
                std::thread::park();
                patience = Patience::new();
                continue;
            }
            if patience.is_over() {
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                if !is_new(self.gate.load(Ordering::SeqCst)) && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                patience = Patience::new();
            }
        }
    }
}

/// Spins, then yields, for a bounded time.
struct Patience {
    spins: u32,
    since: Option<Instant>,
    yields: bool,
}

impl Patience {
    fn new() -> Patience {
        Patience { spins: 0, since: None, yields: false }
    }

    /// Waits a little; true once the time is up.
    fn is_over(&mut self) -> bool {
        if self.yields {
            std::thread::yield_now();
        } else {
            self.spins += 1;
            if !self.spins.is_multiple_of(32) {
                std::hint::spin_loop();
                return false;
            }
        }
        let now = Instant::now();
        let waited = now - *self.since.get_or_insert(now);
        self.yields = waited >= SPIN;
        waited >= YIELD
    }
}

/// Marks the thread as running tasks, for as long as it lives.
struct Mark;

impl Mark {
    fn set() -> Mark {
        IN_TASK.set(true);
        Mark
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        IN_TASK.set(false);
    }
}

struct Release<'a>(&'a AtomicBool);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts_each_once(pool: &Pool, n: usize) {
        let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        pool.run(n, &|i| {
            hits[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [0, 1, 2, 3, 9] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads.max(1));
            for n in [0, 1, 2, 3, 17, 1000] {
                counts_each_once(&pool, n);
            }
        }
    }

    #[test]
    fn many_small_dispatches_with_more_threads_than_cores() {
        let pool = Pool::new(8);
        let total = AtomicUsize::new(0);
        for i in 0..5000 {
            pool.run(1 + i % 13, &|t| {
                total.fetch_add(t, Ordering::Relaxed);
            });
        }
        let expected: usize = (0..5000).map(|i| (0..1 + i % 13).sum::<usize>()).sum();
        assert_eq!(total.into_inner(), expected);
    }

    #[test]
    fn workers_wake_up_after_they_parked() {
        let pool = Pool::new(3);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(2));
            // Two tasks that wait for each other need two threads.
            let arrived = AtomicUsize::new(0);
            pool.run(2, &|_| {
                arrived.fetch_add(1, Ordering::SeqCst);
                while arrived.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_limit_keeps_the_others_out() {
        let mut pool = Pool::new(4);
        for limit in [1, 3, 2, 4, 0, 9, 1] {
            pool.limit(limit);
            assert_eq!(pool.threads(), limit.clamp(1, 4));
            for _ in 0..50 {
                let seen = Mutex::new(std::collections::HashSet::new());
                pool.run(40, &|_| {
                    seen.lock().unwrap().insert(std::thread::current().id());
                    std::thread::yield_now();
                });
                assert!(seen.into_inner().unwrap().len() <= limit.clamp(1, 4));
                counts_each_once(&pool, 7);
            }
        }
        // All of them come back: four tasks that wait for each other need four threads.
        pool.limit(4);
        let arrived = AtomicUsize::new(0);
        pool.run(4, &|_| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 4 {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn writes_are_visible_after_the_barrier() {
        let pool = Pool::new(4);
        let mut data = vec![0u32; 1003];
        for round in 1..200 {
            pool.run_pieces(&mut data, 10, &|i, piece| {
                piece.iter_mut().for_each(|v| *v += 1 + u32::from(i == 100));
            });
            assert!(data[..1000].iter().all(|&v| v == round));
            assert!(data[1000..].iter().all(|&v| v == 2 * round));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for round in 0..50 {
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(20, &|i| assert!(i != round % 20, "task {i} failed"));
                }));
                let message = *caught.unwrap_err().downcast::<String>().unwrap();
                assert_eq!(message, format!("task {} failed", round % 20));
                counts_each_once(&pool, 20);
            }
        }
    }

    #[test]
    fn running_tasks_end_before_a_panic_is_thrown() {
        let pool = Pool::new(4);
        let running = AtomicUsize::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(4, &|i| {
                running.fetch_add(1, Ordering::SeqCst);
                if i > 0 {
                    std::thread::sleep(Duration::from_millis(3));
                }
                running.fetch_sub(1, Ordering::SeqCst);
                assert!(i != 0);
            });
        }));
        assert!(caught.is_err());
        assert_eq!(running.into_inner(), 0);
    }

    #[test]
    fn nesting_is_a_clear_panic() {
        for threads in [1, 3] {
            let (outer, inner) = (Pool::new(threads), Pool::new(2));
            let caught = catch_unwind(AssertUnwindSafe(|| outer.run(3, &|_| inner.run(2, &|_| ()))));
            let message = *caught.unwrap_err().downcast::<&str>().unwrap();
            assert!(message.contains("from inside a task"));
            counts_each_once(&outer, 5);
            counts_each_once(&inner, 5);
        }
    }

    #[test]
    fn two_callers_at_once_are_a_clear_panic() {
        let pool = Pool::new(2);
        let (entered, leave) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pool.run(2, &|_| {
                    entered.store(true, Ordering::SeqCst);
                    while !leave.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                });
            });
            while !entered.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(2, &|_| ())));
            leave.store(true, Ordering::SeqCst);
            assert!(caught.is_err());
        });
        counts_each_once(&pool, 4);
    }

    #[test]
    fn pools_come_and_go() {
        for i in 0..50 {
            counts_each_once(&Pool::new(1 + i % 5), i);
        }
    }
}
