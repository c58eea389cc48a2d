//! A bell: wakes an operator once, however many replies lie there for it.

use std::sync::atomic::{AtomicBool, Ordering};

use timely::scheduling::SyncActivator;

/// Wakes one operator, from any thread.
pub(super) struct Bell {
    activator: SyncActivator,
    rung: AtomicBool,
}

impl Bell {
    /// The bell of the operator that the activator wakes.
    pub(super) fn new(activator: SyncActivator) -> Bell {
        Bell { activator, rung: AtomicBool::new(false) }
    }

    /// Wakes the operator, if it was not woken since it last looked. Ring after the reply was sent.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The worker is gone when a run is being stopped: then nobody is to be woken.
            let _ = self.activator.activate();
        }
    }

    /// The operator is about to look: what is sent from now on rings again.
    pub(super) fn heard(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }
}
