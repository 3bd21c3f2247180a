//! What is in use, and why the rest is not: some of it was settled at the start, some changes.

use super::Facts;
use super::FeatureRow;
use super::Report;

impl Report<'_> {
    /// Every feature, in the order of a packet's way.
    pub(super) fn features(&self) -> Vec<FeatureRow> {
        let mut rows = self.facts.features.clone();
        rows.extend(self.offload_pieces());
        rows.push(self.vector_checksum());
        rows.extend(self.steering());
        rows
    }

    fn offload_pieces(&self) -> Vec<FeatureRow> {
        let Facts { offload_asked, offload_found, .. } = self.facts;
        let steps = [offload_asked, offload_found, &self.page.offload].map(|step| step.pieces());
        let [asked, found, left] = steps;
        let paused = self.page.workers.iter().filter(|row| row.counters.merging_paused > 0).count();
        let row = |place: usize| {
            let ((name, asked), found, left) = (asked[place], found[place].1, left[place].1);
            let missing = if !asked {
                Some("switched off, or of no use with another switch that is".to_owned())
            } else if !found {
                Some("this kernel lacks it".to_owned())
            } else if !left && name == "udp-gro" {
                Some("datagrams are spread by the flow inside".to_owned())
            } else if !left {
                Some("the kernel refused it in traffic: see the warnings".to_owned())
            } else if name == "udp-gro" && paused == self.page.workers.len() && paused > 0 {
                Some("paused, as it finds nothing to merge".to_owned())
            } else {
                None
            };
            FeatureRow { name, missing }
        };
        (0..asked.len()).map(row).collect()
    }

    fn vector_checksum(&self) -> FeatureRow {
        let missing = match (self.page.checksum.as_str(), self.facts.vectors_asked) {
            ("scalar", true) => Some("this processor has neither AVX2 nor NEON".to_owned()),
            ("scalar", false) => Some("switched off".to_owned()),
            _ => None,
        };
        FeatureRow { name: "vector-checksum", missing }
    }

    /// Both ways of giving a packet to its worker; with one worker there is nothing to give.
    fn steering(&self) -> [FeatureRow; 2] {
        let row = self.page.steering.as_ref();
        let alone = || Some("one worker has it all".to_owned());
        let by_flow = match row.map(|row| row.receive) {
            None => alone(),
            Some("inner") => None,
            Some(_) => Some("outer paths decide, see --steer".to_owned()),
        };
        let by_program = match row.map(|row| row.queues.as_str()) {
            None => alone(),
            Some("program") => None,
            Some(_) if !self.facts.steering_asked => Some("switched off".to_owned()),
            Some(queues) => Some(format!("{queues}; CAP_BPF may allow it")),
        };
        [
            FeatureRow { name: "inner-steering", missing: by_flow },
            FeatureRow { name: "tun-steering", missing: by_program },
        ]
    }
}
