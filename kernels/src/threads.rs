//! Work in parts, each by a thread of its own.

/// Does something with every part: the last one here, others by threads that wait for such work.
pub(crate) fn each<T: Send>(mut parts: Vec<T>, work: impl Fn(T) + Sync) {
    let Some(here) = parts.pop() else { return };
    if parts.is_empty() {
        return work(here);
    }
    let work = &work;
    rayon::in_place_scope(|scope| {
        for part in parts {
            scope.spawn(move |_| work(part));
        }
        work(here);
    });
}
