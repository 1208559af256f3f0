//! How the groups of a batch share the threads. A group may wait until another group's forward pass has ended, so that
//! the activations that some groups keep grow while those of others shrink. Threads without a group, meanwhile or at
//! the end of a batch, help the groups that are running.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use rayon::{Scope, Yield};

use crate::profile;

/// The number of groups that are ready for a thread to begin. While there are any, a thread that waits for a helper
/// might begin one of them and be late for its own group.
static WAITING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The number of groups that this thread is in: more than one if it began another while it waited for a helper.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// A semaphore that limits the activations that groups keep for their backward passes, so that no group runs far ahead
/// of the others. One permit stands for the activations of one block. A thread that waits for a permit helps other
/// groups until they have released theirs.
pub struct Semaphore {
    held: AtomicUsize,
    most: usize,
}

impl Semaphore {
    /// A semaphore with `most` permits. Groups may deadlock unless `most` is at least the number of blocks of the
    /// model, times the number of groups that may be in their forward pass at once.
    pub fn new(most: usize) -> Arc<Self> {
        let held = AtomicUsize::new(0);
        Arc::new(Semaphore { held, most })
    }

    /// Waits until the group may keep the activations of another block. The permit is held as long as the result lives.
    ///
    /// Deadlock-free: at most `at_once` groups are in their forward pass, and one that waits holds fewer permits than
    /// the model has blocks, so the waiting groups together hold fewer than `most`. A group that a thread began while
    /// its outer group waits for a helper never waits for a permit itself (`DEPTH`), because the outer group cannot go
    /// on before it ends.
    pub fn acquire(self: &Arc<Self>) -> Permit {
        while self.held.load(Relaxed) >= self.most && DEPTH.get() == 1 {
            // Help only while no group is ready to begin: a further group would need memory of its own.
            let has_helped =
                WAITING.load(Relaxed) == 0 && rayon::yield_now() == Some(Yield::Executed);
            if !has_helped {
                std::thread::yield_now();
            }
        }
        self.held.fetch_add(1, Relaxed);
        Permit(self.clone())
    }
}

/// The permission to keep the activations of one block. Dropping it gives it back.
pub struct Permit(Arc<Semaphore>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}

/// The groups of one call of [`map_groups`], with their results.
struct Groups<'a, T, R, W> {
    groups: &'a [T],
    results: &'a [OnceLock<R>],
    /// The number of groups that have begun or are ready to begin.
    begun: &'a AtomicUsize,
    work: &'a W,
}

impl<'a, T: Sync, R: Send + Sync, W: Fn(&T, &mut dyn FnMut()) -> R + Sync> Groups<'a, T, R, W> {
    /// Makes the next group, if there is one, ready for a thread to begin.
    fn next(&'a self, scope: &Scope<'a>) {
        let number = self.begun.fetch_add(1, Relaxed);
        let (Some(group), Some(result)) = (self.groups.get(number), self.results.get(number))
        else {
            return;
        };
        WAITING.fetch_add(1, Relaxed);
        scope.spawn(move |scope| {
            WAITING.fetch_sub(1, Relaxed);
            let mut has_started_next = false;
            let mut start_next = || {
                if !std::mem::replace(&mut has_started_next, true) {
                    self.next(scope);
                }
            };
            DEPTH.set(DEPTH.get() + 1);
            let value = (self.work)(group, &mut start_next);
            DEPTH.set(DEPTH.get() - 1);
            start_next();
            assert!(result.set(value).is_ok(), "a group is worked on once");
        });
    }
}

/// Applies `work` to every group on all threads and returns the results in order. At most `at_once` groups begin at
/// first. The next may begin when a group calls the second argument of `work` (its forward pass has ended), or ends.
pub(crate) fn map_groups<T: Sync, R: Send + Sync>(
    groups: &[T],
    at_once: usize,
    work: impl Fn(&T, &mut dyn FnMut()) -> R + Sync,
) -> Vec<R> {
    let mut results: Vec<OnceLock<R>> = Vec::new();
    results.resize_with(groups.len(), OnceLock::new);
    let all = Groups {
        groups,
        results: &results,
        begun: &AtomicUsize::new(0),
        work: &work,
    };
    rayon::scope(|scope| (0..at_once.max(1)).for_each(|_| all.next(scope)));
    let values = results.into_iter().map(OnceLock::into_inner);
    values
        .map(|value| value.expect("every group has ended"))
        .collect()
}

/// Whether other threads may be idle.
fn has_helpers() -> bool {
    WAITING.load(Relaxed) == 0 && rayon::current_thread_index().is_some()
}

/// Runs `work` on all `places`, in parts of at least `least` places that other threads may take. What `work` computes
/// must not depend on the parts.
pub(crate) fn share(places: Range<usize>, least: usize, work: &(impl Fn(Range<usize>) + Sync)) {
    if places.len() < 2 * least.max(1) || !has_helpers() {
        return work(places);
    }
    let middle = places.start + places.len() / 2;
    let pass = profile::pass();
    rayon::join_context(
        |_| share(places.start..middle, least, work),
        |context| {
            let rest = || share(middle..places.end, least, work);
            match context.migrated() {
                true => profile::help(pass, rest),
                false => rest(),
            }
        },
    );
}

/// Runs `work` on all items; other threads may take some. `buffers` is called once for each run of items that
/// a thread takes.
pub(crate) fn share_items<I: IndexedParallelIterator, B>(
    items: I,
    buffers: impl Fn() -> B + Send + Sync,
    work: impl Fn(&mut B, I::Item) + Send + Sync,
) {
    let least = if has_helpers() { 1 } else { items.len().max(1) };
    let (pass, owner) = (profile::pass(), rayon::current_thread_index());
    items
        .with_min_len(least)
        .for_each_init(buffers, |buffers, item| {
            match rayon::current_thread_index() == owner {
                true => work(buffers, item),
                false => profile::help(pass, || work(buffers, item)),
            }
        });
}

/// The number of elements in a part that other threads may take: some microseconds of work.
pub(crate) const PART: usize = 1 << 13;

/// The number of whole rows that make up about [`PART`] elements.
pub(crate) fn rows_of_a_part(columns: usize) -> usize {
    (PART / columns.max(1)).max(1)
}

/// Applies `change` to `values` and `others`, part by part.
pub(crate) fn share_elements(
    values: &mut [f32],
    others: &[f32],
    change: impl Fn(&mut [f32], &[f32]) + Send + Sync,
) {
    assert_eq!(values.len(), others.len(), "two slices of one length");
    let parts = values.par_chunks_mut(PART).zip(others.par_chunks(PART));
    share_items(parts, || (), |(), (values, others)| change(values, others));
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cpu) fn pool(threads: usize) -> rayon::ThreadPool {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
        builder.build().expect("threads")
    }

    #[test]
    fn every_place_is_worked_on_once() {
        let counts: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
        pool(4).install(|| {
            share(0..counts.len(), 7, &|part| {
                assert!(part.len() >= 7);
                part.for_each(|place| {
                    counts[place].fetch_add(1, Relaxed);
                });
            });
        });
        assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
    }

    #[test]
    fn groups_are_in_order() {
        let groups: Vec<usize> = (0..100).collect();
        let results = pool(3).install(|| {
            map_groups(&groups, 2, |group, start_next| {
                if group % 3 == 0 {
                    start_next();
                }
                2 * group
            })
        });
        assert_eq!(
            results,
            groups.iter().map(|group| 2 * group).collect::<Vec<_>>()
        );
    }

    /// With one forward pass at a time, groups reach the limit and never exceed it. With two, a group that begins while
    /// another one on its thread waits may exceed it, so only the release of all permits is checked.
    #[test]
    fn groups_keep_no_more_than_they_may() {
        let blocks = 6;
        for (threads, at_once) in [(2, 1), (4, 2)] {
            let semaphore = Semaphore::new(at_once * blocks + 1);
            let most = AtomicUsize::new(0);
            let work = |group: &u64, start_next: &mut dyn FnMut()| {
                let mut kept: Vec<Permit> = Vec::new();
                for _ in 0..blocks {
                    kept.push(semaphore.acquire());
                    most.fetch_max(semaphore.held.load(Relaxed), Relaxed);
                }
                start_next();
                while kept.pop().is_some() {
                    std::thread::sleep(std::time::Duration::from_micros(50 * (group % 4)));
                    share(0..64, 1, &|part| {
                        std::hint::black_box(part.sum::<usize>());
                    });
                }
            };
            let groups: Vec<u64> = (0..40).collect();
            pool(threads).install(|| map_groups(&groups, at_once, work));
            assert_eq!(semaphore.held.load(Relaxed), 0);
            if at_once == 1 {
                assert_eq!(most.load(Relaxed), semaphore.most);
            }
        }
    }
}
