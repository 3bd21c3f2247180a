//! Looks at packets for the log: a few of each kind in a second, copied into a bounded channel.
//!
//! Off, it costs one branch per packet. On, a packet that is not looked at costs a comparison and
//! an addition, so that `-x` and `-d` can be left on under load. Nothing here allocates or waits:
//! a sample that finds no room in the channel is counted with those that were passed over.

use std::time::Duration;

use super::mailbox::Mailbox;
use super::mailbox::Sample;
use super::mailbox::SampleWish;
use super::mailbox::Sight;
use crate::types::DropReason;
use crate::types::Moment;
use crate::types::WorkerId;

/// Samples of one kind in one window. The log lets no more lines of one event pass.
const SAMPLES_PER_WINDOW: u32 = 10;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(1);

/// One worker's eye on packets.
#[derive(Debug)]
pub(super) struct Sampler {
    worker: WorkerId,
    channel: Mailbox<Sample>,
    wish: SampleWish,
    /// One for each kind of sample: see [`kind`].
    windows: [Window; 4],
}

#[derive(Debug, Default)]
struct Window {
    start: Moment,
    taken: u32,
    passed_over: u64,
    /// What the passed over ones were: the kind of the next sample that tells their number.
    last: Option<(Sight, Option<DropReason>)>,
}

impl Sampler {
    pub(super) fn new(worker: WorkerId, channel: Mailbox<Sample>) -> Self {
        Self { worker, channel, wish: SampleWish::default(), windows: Default::default() }
    }

    pub(super) fn set_wish(&mut self, wish: SampleWish) {
        self.wish = wish;
    }

    /// Whether every packet is to be offered.
    pub(super) const fn wants_packets(&self) -> bool {
        self.wish.packets
    }

    /// Whether every dropped packet is to be offered.
    pub(super) const fn wants_drops(&self) -> bool {
        self.wish.drops
    }

    /// Takes a sample of a packet, or counts it as passed over.
    pub(super) fn offer(
        &mut self,
        sight: Sight,
        dropped: Option<DropReason>,
        bytes: &[u8],
        now: Moment,
    ) {
        let window = &mut self.windows[kind(sight, dropped)];
        if now.since(window.start) >= WINDOW {
            window.start = now;
            window.taken = 0;
        }
        if window.taken == SAMPLES_PER_WINDOW {
            window.pass_over(sight, dropped);
            return;
        }
        window.taken += 1;
        let passed_over = std::mem::take(&mut window.passed_over);
        let sample = Sample::new(self.worker, sight, dropped, bytes, passed_over);
        if self.channel.post(sample).is_err() {
            window.passed_over = passed_over;
            window.pass_over(sight, dropped);
        }
    }

    /// The same for a packet that may have been dropped: only if it was.
    pub(super) fn offer_dropped(
        &mut self,
        sight: Sight,
        dropped: Option<DropReason>,
        bytes: &[u8],
        now: Moment,
    ) {
        if dropped.is_some() {
            self.offer(sight, dropped, bytes, now);
        }
    }

    /// Tells how many were passed over in windows that are over, where no sample came after them.
    pub(super) fn tell_passed_over(&mut self, now: Moment) {
        if !self.wish.packets && !self.wish.drops {
            return;
        }
        for window in &mut self.windows {
            if window.passed_over == 0 || now.since(window.start) < WINDOW {
                continue;
            }
            let Some((sight, dropped)) = window.last else {
                continue;
            };
            let number = Sample::new(self.worker, sight, dropped, &[], window.passed_over);
            if self.channel.post(number).is_ok() {
                window.passed_over = 0;
            }
        }
    }
}

impl Window {
    fn pass_over(&mut self, sight: Sight, dropped: Option<DropReason>) {
        self.passed_over += 1;
        self.last = Some((sight, dropped));
    }
}

/// The window of a sample: one each for what comes and what is dropped, from either side.
const fn kind(sight: Sight, dropped: Option<DropReason>) -> usize {
    let side = match sight {
        Sight::Datagram(_) => 0,
        Sight::Packet(..) => 1,
    };
    2 * side + dropped.is_some() as usize
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crossbeam_channel::Receiver;

    use super::*;
    use crate::sys::EventFd;
    use crate::types::EndpointId;
    use crate::types::Side;

    fn sampler(room: usize) -> (Sampler, Receiver<Sample>) {
        let wake = Arc::new(EventFd::new().unwrap());
        let (channel, samples) = Mailbox::new(room, wake);
        let mut sampler = Sampler::new(WorkerId(3), channel);
        sampler.set_wish(SampleWish { packets: true, drops: true });
        (sampler, samples)
    }

    const SEEN: Sight = Sight::Packet(EndpointId(7), Side::Gwo);

    #[test]
    fn ten_a_second_and_the_number_of_the_others() {
        let (mut sampler, samples) = sampler(64);
        let start = Moment::from_secs(5);
        for n in 0..25 {
            sampler.offer(SEEN, None, &[n], start);
        }
        sampler.offer(SEEN, Some(DropReason::FlowUnknown), b"dropped", start);
        let taken: Vec<_> = samples.try_iter().collect();
        assert_eq!(taken.len(), 11, "kinds do not share");
        assert_eq!(taken[9].bytes[..], [9]);
        assert_eq!(taken[10].dropped, Some(DropReason::FlowUnknown));
        assert!(taken.iter().all(|sample| sample.passed_over == 0));
        sampler.offer(SEEN, None, b"next", Moment::from_secs(6));
        assert_eq!(samples.try_recv().unwrap().passed_over, 15);
    }

    #[test]
    fn silence_after_a_flood_still_gives_the_number() {
        let (mut sampler, samples) = sampler(64);
        let start = Moment::from_secs(5);
        for _ in 0..12 {
            sampler.offer(SEEN, None, b"x", start);
        }
        sampler.tell_passed_over(start);
        assert_eq!(samples.try_iter().count(), 10);
        sampler.tell_passed_over(Moment::from_secs(6));
        let number = samples.try_recv().unwrap();
        assert_eq!((number.passed_over, number.len), (2, 0));
        sampler.tell_passed_over(Moment::from_secs(7));
        assert!(samples.is_empty());
    }

    #[test]
    fn a_full_channel_loses_the_look_and_not_the_number() {
        let (mut sampler, samples) = sampler(2);
        let start = Moment::from_secs(5);
        for _ in 0..5 {
            sampler.offer(SEEN, None, b"x", start);
        }
        assert_eq!(samples.try_iter().count(), 2);
        sampler.offer(SEEN, None, b"x", start);
        assert_eq!(samples.try_recv().unwrap().passed_over, 3);
    }

    #[test]
    fn a_long_packet_is_cut() {
        let (mut sampler, samples) = sampler(2);
        sampler.offer(SEEN, None, &[7; 9000], Moment::from_secs(5));
        let sample = samples.try_recv().unwrap();
        assert_eq!((sample.len, sample.bytes.len(), sample.worker), (9000, 256, WorkerId(3)));
    }
}
