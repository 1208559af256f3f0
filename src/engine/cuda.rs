//! Cards by way of dfdx.

use std::ops::Deref;

/// A card, or a tensor on it, that threads may hand to each other. dfdx does not say so of either, as the handle of a
/// stream is a raw pointer.
#[derive(Clone, Debug)]
pub struct OnCard<T>(T);

// SAFETY: the driver lets any thread use the handle of a stream, what dfdx changes lies behind mutexes of its own, and
// no two threads compute on a card at once: its groups run one after the other (`Device::map_groups`), and scripts
// run on the CPU.
unsafe impl<T> Send for OnCard<T> {}
unsafe impl<T> Sync for OnCard<T> {}

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
