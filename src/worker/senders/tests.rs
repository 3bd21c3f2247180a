//! Which way each datagram goes, and that none overtakes another of its port.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sched::unshare;

use super::*;
use crate::path::plan::Group;
use crate::path::plan::Plan;
use crate::path::plan::Target;
use crate::sys::udp;
use crate::uring::Completion;
use crate::uring::DriverPlan;
use crate::uring::Features;
use crate::uring::GroupPlan;

mod order;

const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, GENEVE_PORT);

/// A loopback address of these tests alone.
const LOCAL: Ipv4Addr = Ipv4Addr::new(127, 60, 81, 7);

const PATIENCE: Duration = Duration::from_secs(5);

/// Operations and buffers of a rig.
const MANY: u16 = 128;

fn outer(remote_port: u16) -> OuterPath {
    OuterPath { local: LOCAL, remote: *TO.ip(), remote_port }
}

fn at(millis: u64) -> Moment {
    Moment::from_secs(100).after(Duration::from_millis(millis))
}

/// Send sockets on a real ring. Most tests never enter it: what is started stays in its submission
/// queue, and the test says what becomes of it.
struct Rig {
    driver: Driver,
    queues: Queues,
    senders: Senders,
    lost: Vec<(u32, DropReason)>,
}

impl Rig {
    /// With so many sockets and places to wait at most.
    fn new(sockets_max: u16, waiting_max: u16) -> Self {
        let group = GroupPlan { offered: 4, count: MANY, headroom_bytes: 0, filled_bytes: 2048 };
        let features = Features::probe().expect("the tests need io_uring");
        let driver = Driver::new(DriverPlan {
            submissions: 256,
            completions_max: u32::MAX,
            operations_max: MANY.into(),
            udp: group,
            tun: group,
            senders_max: sockets_max,
            busy_poll_us: 0,
            endpoints_max: 4,
            features,
        });
        Self {
            driver: driver.unwrap(),
            queues: Queues::new(4),
            senders: Senders::new(sockets_max, waiting_max, 64),
            lost: Vec::new(),
        }
    }

    fn with_desk<T>(
        &mut self,
        act: impl FnOnce(&mut Senders, &mut Desk<'_, &mut dyn FnMut(&Ended, DropReason)>) -> T,
    ) -> T {
        let Self { driver, queues, senders, lost } = self;
        let mut lost = |ended: &Ended, reason| lost.push((ended.packets, reason));
        act(senders, &mut Desk { driver, queues, lost: &mut lost })
    }

    /// Sends jobs as a plan does: datagrams of an endpoint on a path, each made of a header and a
    /// payload as long as given, which lie in two buffers.
    fn send(&mut self, slot: u16, jobs: &[(OuterPath, Vec<Vec<u8>>)], now: Moment) {
        let mut plan = Plan::new(64, 64 * SPANS_MAX);
        let mut buffers = Vec::new();
        for (outer, datagrams) in jobs {
            let spans = self.spans(datagrams, &mut buffers);
            let length = |n: usize| u32::try_from(n).unwrap();
            let headers: usize = datagrams.iter().map(|datagram| datagram.len().min(4)).sum();
            let all: usize = datagrams.iter().map(Vec::len).sum();
            let job = Job {
                endpoint: EndpointSlot(slot),
                target: Target::Outer(*outer),
                packets: length(datagrams.len()),
                packet_bytes: length(all - headers),
                datagram_bytes: u16::try_from(datagrams[0].len()).unwrap(),
            };
            plan.push(job, spans);
        }
        for (job, spans) in plan.jobs() {
            let Target::Outer(outer) = &job.target else { unreachable!() };
            self.senders.choose(&mut self.driver, outer, (job, spans), now);
        }
        for (job, spans) in plan.jobs() {
            let Target::Outer(outer) = &job.target else { unreachable!() };
            self.with_desk(|senders, desk| senders.send(desk, outer, job, spans));
        }
        for buffer in buffers {
            self.driver.release(buffer);
        }
    }

    fn spans(
        &mut self,
        datagrams: &[Vec<u8>],
        buffers: &mut Vec<crate::path::plan::BufferId>,
    ) -> Vec<Span> {
        let [headers, payloads] = [(); 2].map(|()| self.driver.take_buffer(Group::Tun).unwrap());
        buffers.extend([headers, payloads]);
        let mut spans = Vec::new();
        for (place, datagram) in datagrams.iter().enumerate() {
            let (header, payload) = datagram.split_at(datagram.len().min(4));
            for (buffer, start, bytes) in
                [(headers, 8 + 16 * place, header), (payloads, 30 * place, payload)]
            {
                self.driver.bytes_mut(buffer)[start..start + bytes.len()].copy_from_slice(bytes);
                let (start, len) = (start.try_into().unwrap(), bytes.len().try_into().unwrap());
                if len > 0 {
                    spans.push(Span { buffer, start, len });
                }
            }
        }
        spans
    }

    /// Sends one datagram from the receive socket for an endpoint.
    fn send_one(&mut self, slot: u16) {
        self.send(slot, &[(outer(GENEVE_PORT), vec![b"x".to_vec()])], at(0));
    }

    fn complete(&mut self, token: Token, result: Result<u32, Errno>) -> Outcome {
        self.with_desk(|senders, desk| senders.completed(desk, token, result))
    }

    fn ready(&mut self, id: SenderId) {
        self.with_desk(|senders, desk| senders.ready(desk, id));
    }

    /// What was started since this was asked last.
    fn started(&mut self) -> Vec<Token> {
        std::mem::take(&mut self.driver.sends_started)
    }

    fn waiting(&self) -> Vec<Token> {
        self.senders.waiting.iter().map(|waiting| waiting.token).collect()
    }

    fn find(&mut self, port: u16, packets: u32, millis: u64) -> Result<SenderId, DropReason> {
        self.senders.find(&self.driver, &outer(port), packets, at(millis))
    }

    /// Turns on the real ring until nothing is in flight.
    fn turn_until_done(&mut self) {
        let mut completions: Vec<Completion> = Vec::with_capacity(256);
        while self.driver.in_flight() > 0 {
            self.driver.enter(1, PATIENCE).unwrap();
            assert_eq!(self.driver.take_completions(&mut completions), 0);
            assert!(!completions.is_empty(), "nothing happens any more");
            for completion in completions.drain(..) {
                let Completion { token, result, .. } = completion;
                if token.operation == Operation::Send {
                    assert_ne!(self.complete(token, result), Outcome::Stray);
                } else {
                    self.ready(SenderId(token.queue));
                }
            }
        }
    }
}

/// A loopback link in a namespace of this test alone.
fn private_loopback() {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(status.success());
}

/// The first of three sends of endpoints 0, 1 and 0 has found its socket full.
fn three_waiting() -> (Rig, Vec<Token>) {
    let mut rig = Rig::new(4, 3);
    for slot in [0, 1, 0] {
        rig.send_one(slot);
    }
    let tokens = rig.started();
    assert_eq!((tokens.len(), rig.waiting()), (3, vec![]));
    for &token in &tokens {
        assert_eq!(rig.complete(token, Err(Errno::EAGAIN)), Outcome::Unsent);
    }
    assert_eq!(rig.waiting(), tokens);
    (rig, tokens)
}

#[test]
fn a_full_socket_keeps_a_bounded_number_waiting_in_order() {
    let (mut rig, tokens) = three_waiting();
    rig.send_one(0);
    assert_eq!(rig.lost, [(1, DropReason::SendFull)]);
    assert_eq!(rig.started(), []);
    rig.ready(SenderId::RECEIVER);
    assert_eq!((rig.started(), rig.waiting()), (tokens, vec![]));
    assert_eq!(rig.senders.receiver.in_flight, 3);
    assert_eq!(rig.driver.in_flight(), 3, "the fourth has ended");
}

/// A send of many datagrams holds many buffers, and those are what must not run out.
#[test]
fn what_waits_is_bounded_by_the_buffers_it_holds() {
    let mut rig = Rig::new(4, 8);
    let mut plan = Plan::new(4, 40);
    let mut buffers = Vec::new();
    for _ in 0..3 {
        let spans: Vec<_> = (0..5)
            .map(|_| Span { buffer: rig.driver.take_buffer(Group::Tun).unwrap(), start: 8, len: 9 })
            .collect();
        buffers.extend(spans.iter().map(|span| span.buffer));
        let (endpoint, target) = (EndpointSlot(0), Target::Outer(outer(GENEVE_PORT)));
        let job = Job { endpoint, target, packets: 5, packet_bytes: 25, datagram_bytes: 9 };
        plan.push(job, spans);
    }
    rig.senders.receiver.is_proven = true;
    for (job, spans) in plan.jobs() {
        rig.senders.choose(&mut rig.driver, &outer(GENEVE_PORT), (job, spans), at(0));
        rig.with_desk(|senders, desk| senders.send(desk, &outer(GENEVE_PORT), job, spans));
    }
    let tokens = rig.started();
    rig.complete(tokens[0], Err(Errno::EAGAIN));
    rig.complete(tokens[1], Err(Errno::EAGAIN));
    assert_eq!((rig.waiting(), &rig.lost[..]), (vec![tokens[0]], &[(5, DropReason::SendFull)][..]));
    rig.send_one(0);
    assert_eq!(rig.waiting().len(), 2, "there is room for three more buffers");
    rig.ready(SenderId::RECEIVER);
    assert_eq!((rig.waiting(), rig.senders.waiting_buffers), (vec![], 0));
    rig.complete(tokens[2], Err(Errno::EAGAIN));
    assert_eq!(rig.waiting(), [tokens[2]]);
    rig.senders.abandon(|_| true);
    assert_eq!(rig.senders.waiting_buffers, 0);
}

/// Completions of one batch may come in two: in between, something new was sent.
#[test]
fn what_waits_stands_in_the_order_in_which_it_was_sent() {
    let mut rig = Rig::new(4, 9);
    for slot in [0, 0] {
        rig.send_one(slot);
    }
    let tokens = rig.started();
    rig.complete(tokens[0], Err(Errno::EAGAIN));
    rig.send_one(0);
    rig.complete(tokens[1], Err(Errno::EAGAIN));
    assert_eq!(rig.waiting()[..2], tokens);
    assert_eq!(rig.waiting().len(), 3);
}

#[test]
fn one_that_got_through_drops_those_that_it_overtook() {
    let mut rig = Rig::new(4, 3);
    for slot in [0, 1, 0, 1] {
        rig.send_one(slot);
    }
    let tokens = rig.started();
    for &token in &tokens[..2] {
        rig.complete(token, Err(Errno::EAGAIN));
    }
    assert!(matches!(rig.complete(tokens[2], Ok(1)), Outcome::Sent(_)));
    assert_eq!(rig.lost, [(1, DropReason::SendFull); 2]);
    assert!(matches!(rig.complete(tokens[3], Ok(1)), Outcome::Sent(_)));
    assert!(rig.senders.receiver.is_idle());
    assert_eq!(rig.driver.in_flight(), 0);
    assert_eq!(rig.complete(tokens[3], Ok(1)), Outcome::Stray);
}

#[test]
fn an_endpoint_that_goes_takes_its_own_sends_along() {
    let (mut rig, tokens) = three_waiting();
    let Rig { driver, senders, .. } = &mut rig;
    let mut dropped = Vec::new();
    senders.abandon(|token| {
        let over = driver.endpoint_of(token) == Some(EndpointSlot(0));
        if over {
            dropped.push(token);
        }
        over
    });
    assert_eq!(dropped, [tokens[0], tokens[2]]);
    assert_eq!((rig.waiting(), rig.senders.receiver.waiting), (vec![tokens[1]], 1));
    rig.senders.abandon(|_| true);
    assert_eq!((rig.waiting(), rig.senders.receiver.waiting), (vec![], 0));
}

#[test]
fn a_port_leaves_the_raw_sender_only_when_nothing_is_under_way_there() {
    private_loopback();
    let mut rig = Rig::new(1, 3);
    let taken = UdpSocket::bind((LOCAL, 60_003)).unwrap();
    assert_eq!(rig.find(60_003, 1, 0), Ok(SenderId::RAW));
    drop(taken);
    assert_eq!(rig.find(60_003, 1, 9_999), Ok(SenderId::RAW));
    let one = (outer(60_003), vec![b"one datagram".to_vec()]);
    rig.send(0, std::slice::from_ref(&one), at(9_999));
    let [sent] = rig.started()[..] else { panic!("one") };
    assert_eq!(rig.find(60_003, 1, 10_000), Ok(SenderId::RAW));
    rig.complete(sent, Err(Errno::ENOBUFS));
    assert_eq!(rig.find(60_003, 1, 10_000), Ok(SenderId::RAW));
    rig.ready(SenderId::RAW);
    assert!(matches!(rig.complete(sent, Ok(20)), Outcome::Sent(_)));
    assert_eq!(rig.find(60_003, 1, 10_000), Ok(SenderId(0)));
    assert_eq!(rig.find(80, 9, 10_000), Ok(SenderId::RAW), "never bound");
    assert_eq!(rig.find(80, 1, 60_000), Ok(SenderId::RAW));
    assert_eq!(rig.senders.take_refusal(), None);
}

#[test]
fn a_socket_is_replaced_for_many_datagrams_or_when_it_was_unused() {
    private_loopback();
    let mut rig = Rig::new(2, 3);
    assert_eq!(rig.find(60_001, 1, 0), Ok(SenderId(0)));
    assert_eq!(rig.find(60_002, 1, 500), Ok(SenderId(1)));
    assert_eq!(rig.find(60_003, 3, 999), Ok(SenderId::RAW));
    assert_eq!(rig.find(60_003, 1, 1_000), Ok(SenderId(0)), "unused for a second");
    assert_eq!(rig.find(60_004, 4, 1_000), Ok(SenderId(1)), "the other was just used");
    assert_eq!(rig.find(60_002, 3, 1_000), Ok(SenderId::RAW));
    assert_eq!(rig.find(60_003, 1, 1_001), Ok(SenderId(0)));

    // Nobody replaces what is under way, or promised.
    let many = |port| (outer(port), vec![b"many".to_vec(); 4]);
    let one = |port| (outer(port), vec![b"one".to_vec()]);
    rig.send(0, &[one(60_003), one(60_004), many(60_005)], at(1_002));
    let queues: Vec<_> = rig.started().iter().map(|token| SenderId(token.queue)).collect();
    let raw = SenderId::RAW;
    assert_eq!(queues, [SenderId(0), SenderId(1), raw, raw, raw, raw]);
    assert_eq!(rig.find(60_005, 4, 9_000), Ok(SenderId::RAW));
}

#[test]
fn without_a_raw_sender_the_least_recently_used_is_replaced() {
    private_loopback();
    let mut rig = Rig::new(2, 3);
    rig.senders.raw_retry = Moment::from_nanos(u64::MAX);
    assert_eq!(rig.find(60_001, 1, 0), Ok(SenderId(0)));
    assert_eq!(rig.find(60_002, 1, 1), Ok(SenderId(1)));
    assert_eq!(rig.find(60_003, 1, 2), Ok(SenderId(0)));
    assert_eq!(rig.find(60_001, 1, 3), Ok(SenderId(1)));
    let one = |port| (outer(port), vec![b"one".to_vec()]);
    rig.send(0, &[one(60_001), one(60_003), one(60_004)], at(4));
    assert_eq!(rig.lost, [(1, DropReason::SendError)], "both have something under way");
}

#[test]
fn refusals_are_told_once_a_second_and_their_number_is_bounded() {
    let mut rig = Rig::new(100, 3);
    // Not an address of this host: a raw socket would not help.
    let nowhere = OuterPath { local: Ipv4Addr::new(192, 0, 2, 1), ..outer(60_005) };
    let Rig { driver, senders, .. } = &mut rig;
    for (millis, told) in [(0, 1), (999, 0), (1000, 1)] {
        let found = senders.find(driver, &nowhere, 1, at(millis));
        assert_eq!(found, Err(DropReason::SendError));
        let refusals = std::iter::from_fn(|| senders.take_refusal());
        let errnos: Vec<_> = refusals.map(|refusal| refusal.errno).collect();
        assert_eq!(errnos, vec![Errno::EADDRNOTAVAIL; told], "at {millis} ms");
    }
    for port in 2000..2050 {
        let path = OuterPath { remote_port: port, ..nowhere };
        senders.find(driver, &path, 1, at(2000)).unwrap_err();
        if port < 2010 {
            senders.take_refusal();
        }
    }
    let left = std::iter::from_fn(|| senders.take_refusal()).count();
    assert_eq!(left, REFUSALS_MAX - 10);
}

/// Datagrams of 20 bytes each, the last of 9, that begin with their numbers from `first`.
fn numbered(first: u8, count: u8) -> Vec<Vec<u8>> {
    let mut datagrams: Vec<_> = (first..first + count).map(|number| vec![number; 20]).collect();
    datagrams.last_mut().unwrap().truncate(9);
    datagrams
}

/// What a node gets from a port, in order, until it has got that many datagrams.
fn expect(node: &UdpSocket, port: u16, datagrams: &[Vec<u8>]) {
    for datagram in datagrams {
        let mut got = [0; 100];
        let (len, from) = node.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from.port()), (&datagram[..], port));
    }
}

fn node() -> UdpSocket {
    let node = UdpSocket::bind(TO).unwrap();
    node.set_read_timeout(Some(PATIENCE)).unwrap();
    node
}

#[test]
fn many_datagrams_leave_through_the_raw_sender_one_by_one() {
    private_loopback();
    let node = node();
    let _taken = UdpSocket::bind((LOCAL, 60_000)).unwrap();
    let mut rig = Rig::new(2, 3);
    let (first, second) = (numbered(0, 5), numbered(5, 7));
    // Both jobs name the same buffers as the path's do: no header may be written once one started.
    rig.send(0, &[(outer(60_000), first.clone()), (outer(60_000), second.clone())], at(0));
    assert_eq!(rig.started().len(), 12);
    rig.turn_until_done();
    expect(&node, 60_000, &[first, second].concat());
    assert_eq!(rig.lost, []);
}

/// A send socket bound to the port that answers `EINVAL` to `UDP_SEGMENT`, in place of the rig's.
fn refuse_to_cut(rig: &Rig, id: SenderId, port: u16) {
    let fd = udp::open_sender(LOCAL, port, 1 << 20).unwrap();
    udp::set_no_checksum(&fd).unwrap();
    rig.driver.register_sender(id, fd.as_fd()).unwrap();
}

#[test]
fn what_the_kernel_will_not_cut_is_sent_one_by_one_and_nothing_overtakes_it() {
    private_loopback();
    let node = node();
    let mut rig = Rig::new(2, 20);
    let batches = [numbered(0, 5), numbered(5, 1), numbered(6, 7), numbered(13, 1)];
    assert_eq!(rig.find(60_000, 1, 0), Ok(SenderId(0)));
    refuse_to_cut(&rig, SenderId(0), 60_000);
    rig.send(0, &batches.clone().map(|batch| (outer(60_000), batch)), at(0));
    assert_eq!(rig.started().len(), 1, "the first goes alone");
    assert!(rig.senders.can_segment());
    rig.turn_until_done();
    expect(&node, 60_000, &batches.concat());
    assert_eq!((rig.lost.as_slice(), rig.senders.can_segment()), (&[][..], false));
    assert_eq!(rig.senders.take_uncut(), Some(Errno::EINVAL));
    assert_eq!(rig.senders.take_uncut(), None, "told once");

    rig.started();
    rig.send(0, &[(outer(60_000), numbered(20, 9))], at(1));
    assert_eq!(rig.started().len(), 9, "cut before it is sent");
    rig.turn_until_done();
    expect(&node, 60_000, &numbered(20, 9));
    assert!(rig.senders.sockets[0].is_idle() && rig.senders.waiting.is_empty());
}

#[test]
fn what_the_kernel_cuts_goes_alone_only_once() {
    private_loopback();
    let node = node();
    let mut rig = Rig::new(2, 20);
    let batches = [numbered(0, 5), numbered(5, 1), numbered(6, 7)];
    rig.send(0, &batches.clone().map(|batch| (outer(60_000), batch)), at(0));
    assert_eq!((rig.started().len(), rig.waiting().len()), (1, 2));
    rig.turn_until_done();
    expect(&node, 60_000, &batches.concat());
    rig.started();
    rig.send(0, &batches.clone().map(|batch| (outer(60_000), batch)), at(0));
    assert_eq!(rig.started().len(), 3);
    rig.turn_until_done();
    expect(&node, 60_000, &batches.concat());
    assert!(rig.senders.can_segment() && rig.lost.is_empty());
}

/// More wait behind the first send that the kernel shall cut than may wait.
#[test]
fn nothing_is_dropped_for_the_sake_of_the_first_cut() {
    private_loopback();
    let mut rig = Rig::new(2, 2);
    let jobs: Vec<_> = (0..6).map(|n| (outer(60_000), numbered(10 * n, 3))).collect();
    rig.send(0, &jobs, at(0));
    let started = rig.started();
    assert_eq!((started.len(), rig.lost.len()), (6, 0));
    let ages: Vec<_> = started.iter().map(|&t| rig.driver.sending(t).unwrap().age).collect();
    assert!(ages.is_sorted(), "{ages:?}");
    for token in started {
        assert!(matches!(rig.complete(token, Ok(60)), Outcome::Sent(_)));
    }
    assert!(rig.senders.sockets[0].is_idle() && rig.lost.is_empty());
}

/// The same, and then the kernel cuts none of them: what was under way goes again, however much may
/// wait, and what comes next waits for nothing.
#[test]
fn nothing_is_dropped_for_a_kernel_that_does_not_cut() {
    private_loopback();
    let mut rig = Rig::new(2, 2);
    let jobs: Vec<_> = (0..6).map(|n| (outer(60_000), numbered(10 * n, 3))).collect();
    rig.send(0, &jobs, at(0));
    for token in rig.started() {
        assert_eq!(rig.complete(token, Err(Errno::EIO)), Outcome::Unsent);
    }
    rig.send(0, &[(outer(60_000), numbered(60, 1))], at(0));
    let parts = rig.started();
    assert_eq!((parts.len(), rig.lost.len(), rig.waiting().len()), (19, 0, 0));
    let ages: Vec<_> = parts.iter().map(|&t| rig.driver.sending(t).unwrap().age).collect();
    assert!(ages.is_sorted(), "{ages:?}");
    for token in parts {
        assert!(matches!(rig.complete(token, Ok(20)), Outcome::Sent(_)));
    }
    rig.ready(SenderId(0));
    assert!(rig.senders.sockets[0].is_idle() && rig.lost.is_empty());
}

/// Before Linux 6.14, `EINVAL` may also say that the datagrams are too long for the link.
#[test]
fn what_is_too_long_does_not_end_the_cutting() {
    private_loopback();
    let mut rig = Rig::new(2, 20);
    rig.send(0, &[(outer(60_000), numbered(0, 3)), (outer(60_000), numbered(3, 1))], at(0));
    let whole = rig.started();
    rig.complete(whole[0], Err(Errno::EINVAL));
    let parts = rig.started();
    assert_eq!(parts.len(), 4, "three parts, and what waited");
    for &part in &parts[..2] {
        rig.complete(part, Err(Errno::EMSGSIZE));
    }
    for &part in &parts[2..] {
        assert!(matches!(rig.complete(part, Ok(9)), Outcome::Sent(_)));
    }
    assert_eq!(rig.lost, [(1, DropReason::Mtu); 2]);
    assert!(rig.senders.can_segment());
    assert_eq!(rig.senders.take_uncut(), None);
}

#[test]
fn packets_that_find_no_slot_to_be_sent_from_are_counted() {
    private_loopback();
    let mut rig = Rig::new(2, MANY);
    rig.send(0, &[(outer(60_000), numbered(0, 60))], at(0));
    let whole = rig.started();
    for _ in 1..MANY - 50 {
        rig.send_one(0);
    }
    rig.started();
    rig.complete(whole[0], Err(Errno::EIO));
    assert_eq!(rig.senders.take_uncut(), Some(Errno::EIO), "that has one reason only");
    assert_eq!(rig.started().len(), 50);
    assert_eq!(rig.lost, [(1, DropReason::NoBuffer); 10]);
}
