//! CUDA cards, driven through dfdx.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use dfdx::tensor::Cuda;

use super::definition::Flat;

/// Makes a card, or a tensor on it, `Send` and `Sync`. dfdx makes neither so, because the handle of a CUDA stream is a
/// raw pointer.
#[derive(Clone, Debug)]
pub struct OnCard<T>(T);

// SAFETY: the driver lets any thread use the handle of a stream. Kernels are launched and elements copied only under
// `with_card_lock`. A tensor that is dropped outside the lock is freed by the driver or enters dfdx's cache, which has
// its own lock.
unsafe impl Send for OnCard<Cuda> {}
unsafe impl Sync for OnCard<Cuda> {}
unsafe impl Send for OnCard<Flat<Cuda>> {}
unsafe impl Sync for OnCard<Flat<Cuda>> {}

impl<T> OnCard<T> {
    pub(super) fn new(inner: T) -> Self {
        OnCard(inner)
    }

    pub(super) fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for OnCard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Runs `work` while no other thread uses a card. The lock is reentrant, so `work` may take it again.
pub(super) fn with_card_lock<T>(work: impl FnOnce() -> T) -> T {
    static CARD: Mutex<()> = Mutex::new(());
    thread_local! {
        static IS_HELD: Cell<bool> = const { Cell::new(false) };
    }
    if IS_HELD.get() {
        return work();
    }
    let _held = CARD.lock().unwrap_or_else(PoisonError::into_inner);
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            IS_HELD.set(false);
        }
    }
    IS_HELD.set(true);
    let _release = Release;
    work()
}
