//! Which core each worker is tied to, and whether it still is: a core that goes offline, a cpuset
//! or `taskset` may have moved it.

use super::WorkerLink;
use crate::sys::affinity;
use crate::sys::affinity::Place;

/// The core of each worker, as far as it has one.
#[derive(Debug)]
pub(super) struct Ties(Vec<Option<usize>>);

impl Ties {
    pub(super) const fn new(cores: Vec<Option<usize>>) -> Self {
        Self(cores)
    }

    /// Workers that are not where they were tied to, and their cores.
    fn broken<'a>(
        &'a self,
        workers: &'a [WorkerLink],
    ) -> impl Iterator<Item = (&'a WorkerLink, usize, Place)> {
        let tied = workers.iter().zip(&self.0);
        tied.filter_map(|(worker, core)| {
            let place = affinity::place_of(worker.thread_id, (*core)?)?;
            (place != Place::Tied).then_some((worker, (*core)?, place))
        })
    }

    /// Ties workers again that may run on their cores, but elsewhere too: the kernel has set them
    /// loose when a core went, and it is back. Who may not run there was moved, and stays.
    pub(super) fn tie_again(&self, workers: &[WorkerLink]) {
        for (worker, core, place) in self.broken(workers) {
            if place == Place::Loose {
                affinity::tie(worker.thread_id, core);
            }
        }
    }

    /// What an operator should look at.
    pub(super) fn warning(&self, workers: &[WorkerLink]) -> Option<String> {
        let list: Vec<_> = self.broken(workers).map(|(worker, ..)| worker.id.to_string()).collect();
        (!list.is_empty()).then(|| {
            format!(
                "not tied to their cores any more: workers {}; a core is offline, or a cpuset or \
                 taskset moved them",
                list.join(", ")
            )
        })
    }
}
