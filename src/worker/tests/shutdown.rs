//! The end of a worker while its endpoint comes and goes.

use super::*;
use crate::stats::Drops;
use crate::stats::Traffic;

/// What may happen before the end, in the order that control keeps.
#[derive(Clone, Copy, Debug)]
enum Step {
    Attach,
    Closing,
    Detach,
    /// A datagram of the endpoint arrives, and a frame waits in its `gwo`.
    Traffic,
}

const STEPS: [Step; 6] =
    [Step::Traffic, Step::Attach, Step::Traffic, Step::Closing, Step::Traffic, Step::Detach];

/// `Stop` follows each step at once, and the worker has had a turn after any of the steps or has
/// not. Whatever it received or read is then in one counter that says where it went.
#[test]
fn a_stop_behind_any_step_counts_each_packet() {
    let features = Features::probe().unwrap();
    for features in [features, features.floor()] {
        for count in 1..=STEPS.len() {
            for turns in 0..1_u32 << count {
                let turned = |step: usize| turns >> step & 1 == 1;
                let steps: Vec<_> = (0..count).map(|step| (STEPS[step], turned(step))).collect();
                let mut bench = Bench::new(features);
                let cell = run_through(&mut bench, &steps);
                expect_balance(&bench.worker.cell, cell.as_deref(), &format!("{steps:?}"));
            }
        }
    }
}

/// Takes the steps, each with a turn after it or without, and stops the worker. Returns the
/// endpoint's counters, if it was attached.
fn run_through(bench: &mut Bench, steps: &[(Step, bool)]) -> Option<Arc<EndpointCell>> {
    let mut hosts = None;
    for (step, has_turn) in steps {
        match step {
            Step::Attach => hosts = Some(bench.post_attachment(1)),
            Step::Closing => bench.commands.post(Command::Closing(life(1))).unwrap(),
            Step::Detach => bench.commands.post(Command::Detach(life(1))).unwrap(),
            Step::Traffic => {
                bench.arrive(1);
                if let Some(Hosts { queues: [_, gwo], .. }) = &hosts {
                    gwo.send(&FRAME).unwrap();
                }
            }
        }
        if *has_turn {
            bench.worker.turn().unwrap();
        }
    }
    bench.commands.post(Command::Stop).unwrap();
    bench.worker.run_until_stopped().unwrap();
    hosts.map(|Hosts { cell, .. }| cell)
}

fn expect_balance(worker: &WorkerCell, endpoint: Option<&EndpointCell>, what: &str) {
    let drops =
        |drops: &Drops| DropReason::ALL.iter().map(|&reason| drops.get(reason)).sum::<u64>();
    let packets = |traffic: &Traffic| traffic.packets.get();
    assert_eq!(worker.held_in.get(), worker.held_out.get(), "{what}: still held");
    let mut seen = drops(&worker.drops);
    if let Some(endpoint) = endpoint {
        seen += packets(&endpoint.from_gwlb);
        let passed = packets(&endpoint.to_gwi) + drops(&endpoint.decap_drops);
        assert_eq!(packets(&endpoint.from_gwlb), passed, "{what}: towards gwi");
        let read = packets(&endpoint.from_gwi) + packets(&endpoint.from_gwo);
        let noise = endpoint.host_noise.get();
        let passed = packets(&endpoint.to_gwlb) + noise + drops(&endpoint.encap_drops);
        assert_eq!(read, passed, "{what}: towards the load balancer");
    }
    assert_eq!(packets(&worker.datagrams), seen, "{what}: datagrams");
}
