//! One worker, turned by hand, on a real ring: loopback for the load balancer, UNIX datagram
//! sockets in the places of TUN queues.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use super::mailbox::AdmissionPlan;
use super::mailbox::Attachment;
use super::mailbox::Policy;
use super::*;
use crate::flow::HashSeed;
use crate::flow::TablePlan;
use crate::flow::Templates;
use crate::path::Profile;
use crate::path::plan::Span;
use crate::path::plan::Transport;
use crate::stats::EndpointCell;
use crate::sys::udp;
use crate::types::Downgrade;
use crate::types::EndpointId;
use crate::types::EndpointSlot;
use crate::types::GENEVE_PORT;
use crate::types::Generation;
use crate::types::Network;
use crate::types::OuterPath;
use crate::types::Side;
use crate::uring::Features;
use crate::uring::GroupPlan;
use crate::uring::queue_of;
use crate::wire::Family;
use crate::wire::gwlb;

mod shutdown;

static BENCHES: AtomicU16 = AtomicU16::new(0);

/// Above the ports that the kernel gives out by itself.
const NODE_PORTS: u16 = 61_001;

/// Buffers of each group.
const BUFFERS: u16 = 8;

/// A virtio header and an IPv4 packet from .2 to .1 with 8 bytes of UDP.
const FRAME: [u8; 38] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // virtio: nothing asked for
    0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1, // IPv4
    0x00, 0x35, 0x12, 0x34, 0, 8, 0, 0, // UDP 53 to 4660
];

/// The packet that it answers.
const PACKET: [u8; 28] = [
    0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
    0x12, 0x34, 0x00, 0x35, 0, 8, 0, 0, // UDP 4660 to 53
];

/// What a load balancer does when it is asked in the test's own name.
struct Bench {
    worker: Worker,
    commands: Mailbox<Command>,
    events: Receiver<Event>,
    samples: Receiver<Sample>,
    /// Sends to the worker's socket.
    node: UdpSocket,
}

/// An endpoint's ends that are not the worker's.
struct Hosts {
    cell: Arc<EndpointCell>,
    queues: [UnixDatagram; 2],
}

/// With multishot reads, where the kernel has them, and with what replaces them on older kernels.
fn benches() -> [Bench; 2] {
    let features = Features::probe().expect("the tests need io_uring");
    [features, features.floor()].map(Bench::new)
}

impl Bench {
    fn new(features: Features) -> Self {
        Self::with(features, Offload::NONE)
    }

    fn with(features: Features, offload: Offload) -> Self {
        let group = |headroom_bytes| GroupPlan {
            offered: BUFFERS / 2,
            count: BUFFERS,
            headroom_bytes,
            filled_bytes: 2048,
        };
        // Addresses of this process and a port of this bench alone: a send socket takes the
        // node's port at ours.
        let [.., high, low] = std::process::id().to_be_bytes();
        let node_port = NODE_PORTS + BENCHES.fetch_add(1, Ordering::Relaxed);
        let receiver = UdpSocket::bind((Ipv4Addr::new(127, 61, high, low), 0)).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let option = nix::sys::socket::sockopt::Ipv4PacketInfo;
        nix::sys::socket::setsockopt(&receiver, option, &true).unwrap();
        let node = UdpSocket::bind((Ipv4Addr::new(127, 62, high, low), node_port)).unwrap();
        node.connect(receiver.local_addr().unwrap()).unwrap();
        let wake = Arc::new(EventFd::new().unwrap());
        let (commands, command_queue) = Mailbox::new(64, Arc::clone(&wake));
        let (events, event_queue) = Mailbox::new(64, Arc::new(EventFd::new().unwrap()));
        let (samples, sample_queue) = Mailbox::new(64, Arc::new(EventFd::new().unwrap()));
        let parts = WorkerParts {
            id: WorkerId(0),
            workers: 1,
            driver: DriverPlan {
                submissions: 64,
                completions_max: u32::MAX,
                operations_max: OPERATIONS_MAX,
                udp: group(0),
                tun: group(256),
                senders_max: 4,
                busy_poll_us: 0,
                endpoints_max: 4,
                features,
            },
            receiver: Arc::new(receiver.into()),
            offload,
            commands: command_queue,
            wake,
            events,
            samples,
            admission: Arc::new(Admission::new(AdmissionPlan {
                workers: 1,
                endpoints_max: 4,
                burst: 4,
                interval: Duration::from_secs(1),
                allowed: None,
            })),
            sources: None,
            profile: Profile::AWS,
            returns: true,
            flows: Arc::new(FlowTable::new(TablePlan::new(1000, 1), HashSeed::fixed(1))),
            cell: Arc::default(),
        };
        let mut worker = Worker::new(parts).unwrap();
        worker.start_streams();
        Self { worker, commands, events: event_queue, samples: sample_queue, node }
    }

    fn command(&mut self, command: Command) {
        self.commands.post(command).unwrap();
        self.worker.turn().unwrap();
    }

    fn attach(&mut self, slot: u16) -> Hosts {
        let hosts = self.post_attachment(slot);
        self.worker.turn().unwrap();
        hosts
    }

    /// Leaves the attachment in the mailbox.
    fn post_attachment(&mut self, slot: u16) -> Hosts {
        let cell = Arc::new(EndpointCell::default());
        let [(gwi, our_gwi), (gwo, our_gwo)] =
            [UnixDatagram::pair().unwrap(), UnixDatagram::pair().unwrap()];
        for socket in [&gwi, &gwo, &our_gwi, &our_gwo] {
            socket.set_nonblocking(true).unwrap();
        }
        let attachment = Attachment {
            id: id(slot),
            endpoint: life(slot),
            templates: Arc::new(Templates::default()),
            cell: Arc::clone(&cell),
            queues: [our_gwi, our_gwo].map(|ours| Arc::new(ours.into())).into(),
        };
        self.commands.post(Command::Attach(Box::new(attachment))).unwrap();
        Hosts { cell, queues: [gwi, gwo] }
    }

    /// A datagram of the endpoint arrives.
    fn arrive(&self, slot: u16) {
        self.arrive_with(slot, &PACKET);
    }

    fn arrive_with(&self, slot: u16, packet: &[u8]) {
        self.node.send(&datagram(slot, packet)).unwrap();
    }

    /// So many datagrams of the endpoint arrive in one go, as the kernel can merge them.
    fn arrive_at_once(&self, slot: u16, count: usize) {
        let datagram = datagram(slot, &PACKET);
        let option = nix::sys::socket::sockopt::UdpGsoSegment;
        let bytes = i32::try_from(datagram.len()).unwrap();
        nix::sys::socket::setsockopt(&self.node, option, &bytes).unwrap();
        self.node.send(&datagram.repeat(count)).unwrap();
        nix::sys::socket::setsockopt(&self.node, option, &0).unwrap();
    }

    /// Turns until as many datagrams as that were received.
    fn receive(&mut self, count: u64) {
        self.turn_until("all are received", |bench| {
            bench.worker.cell.datagrams.packets.get() == count
        });
    }

    /// Turns until `done`, a few times at most.
    fn turn_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..20 {
            if done(self) {
                return;
            }
            self.worker.turn().unwrap();
        }
        panic!("{what}: not after 20 turns of {:?}", self.worker.driver.features());
    }
}

/// The endpoint's packet as the load balancer sends it.
fn datagram(slot: u16, packet: &[u8]) -> Vec<u8> {
    let (endpoint, cookie, family) = (id(slot), *b"abcd", Family::V4);
    let header = gwlb::Repr { endpoint, attachment: 0, cookie, family }.emit();
    [&header[..], packet].concat()
}

fn id(slot: u16) -> EndpointId {
    EndpointId(100 + u64::from(slot))
}

fn life(slot: u16) -> EndpointRef {
    EndpointRef { slot: EndpointSlot(slot), generation: Generation(1) }
}

/// Frames that are more than the worker has buffers.
const MANY: u64 = 30;

/// Sends [`MANY`] frames.
fn fill(queue: &UnixDatagram) {
    for _ in 0..MANY {
        queue.send(&FRAME).unwrap();
    }
}

/// The endpoint becomes ready while its hold queue is full and more waits in the socket: the
/// worker hears of it before it looks at those.
#[test]
fn what_arrives_with_the_attachment_finds_room() {
    for mut bench in benches() {
        let mut held = 0;
        while bench.worker.cell.drops.get(DropReason::NotReady) == 0 {
            bench.arrive(1);
            held += 1;
            bench.receive(held);
        }
        for _ in 0..4 {
            bench.arrive(1);
        }
        bench.attach(1);
        bench.receive(held + 4);
        assert_eq!(bench.worker.cell.drops.get(DropReason::NotReady), 1, "the one before");
    }
}

/// The log must not lay a drop at the door of the datagram that comes next.
#[test]
fn a_dropped_datagram_is_shown_with_its_own_reason() {
    for mut bench in benches() {
        let mut policy = Policy::new(Duration::from_secs(350));
        policy.samples.drops = true;
        bench.command(Command::Policy(Arc::new(policy)));
        bench.arrive_with(1, &PACKET[..27]);
        bench.receive(1);
        assert!(bench.samples.is_empty(), "it is held");
        let hosts = bench.attach(1);
        bench.arrive(1);
        bench.turn_until("the next is delivered", |_| hosts.cell.to_gwi.packets.get() == 1);
        for slot in 2..6 {
            bench.arrive(slot);
        }
        bench.receive(6);
        let header_bytes = 40;
        let shown: Vec<_> = bench.samples.try_iter().collect();
        let shown: Vec<_> = shown.iter().map(|s| (s.dropped.unwrap(), s.len)).collect();
        let told = [(DropReason::InnerTruncated, 27), (DropReason::EndpointRate, PACKET.len())];
        assert_eq!(shown, told.map(|(reason, len)| (reason, header_bytes + len)));
    }
}

/// The sender is looked at before the header is: what a stranger sends may be anything.
#[test]
fn a_stranger_s_datagrams_are_counted_and_not_looked_into() {
    for mut bench in benches() {
        let from_elsewhere: Network = "192.0.2.0/24".parse().unwrap();
        bench.worker.sources = Some(Arc::new([from_elsewhere].into_iter().collect()));
        let hosts = bench.attach(1);
        bench.node.send(b"no GENEVE").unwrap();
        bench.arrive_at_once(1, 5);
        bench.receive(6);
        let cell = &bench.worker.cell;
        assert_eq!(cell.drops.get(DropReason::SourceDenied), 6);
        assert_eq!(cell.datagrams.bytes.get(), 9 + 5 * datagram(1, &PACKET).len() as u64);
        let IpAddr::V4(node) = bench.node.local_addr().unwrap().ip() else { unreachable!() };
        assert_eq!(cell.stranger.get(), u64::from(node.to_bits()));
        let from_here: Network = "127.0.0.0/8".parse().unwrap();
        bench.worker.sources = Some(Arc::new([from_here].into_iter().collect()));
        bench.arrive(1);
        bench.turn_until("a friend's arrives", |_| hosts.cell.to_gwi.packets.get() == 1);
    }
}

#[test]
fn a_packet_goes_in_and_its_answer_goes_back() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        bench.arrive(1);
        let mut frame = [0; 100];
        bench.turn_until("the packet is delivered", |_| match hosts.queues[0].recv(&mut frame) {
            Ok(len) => {
                assert_eq!((&frame[..10], &frame[10..len]), (&[0; 10][..], &PACKET[..]));
                true
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        });
        hosts.queues[1].send(&FRAME).unwrap();
        bench.turn_until("the answer is sent", |_| hosts.cell.to_gwlb.packets.get() == 1);
        assert_eq!(hosts.cell.to_gwi.packets.get(), 1);
    }
}

#[test]
fn a_busy_queue_starves_no_other() {
    for mut bench in benches() {
        let (busy, quiet) = (bench.attach(0), bench.attach(1));
        let [busy_gwi, busy_gwo] = &busy.queues;
        fill(busy_gwi);
        for queue in [busy_gwo, &quiet.queues[0], &quiet.queues[1]] {
            queue.send(&FRAME).unwrap();
        }
        let reads = [&busy.cell.from_gwo, &quiet.cell.from_gwi, &quiet.cell.from_gwo];
        bench.turn_until("every queue is read", |_| {
            fill(busy_gwi);
            reads.iter().all(|read| read.packets.get() == 1)
        });
    }
}

#[test]
fn a_worker_without_buffers_sleeps_until_one_is_free() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        fill(&hosts.queues[1]);
        let Bench { worker, .. } = &mut bench;
        // Somebody holds all buffers for frames, as sends to a full socket do.
        let held = hold_all_buffers(worker);
        assert_eq!(held.len(), usize::from(BUFFERS));
        worker.start_streams();
        assert_eq!(worker.patience(), IDLE_TICK);
        worker.driver.enter(1, Duration::ZERO).unwrap();
        worker.driver.take_completions(&mut worker.completions);
        assert_eq!(worker.completions, [], "nothing starts only to fail");

        for buffer in held {
            worker.driver.release(buffer);
        }
        // Four frames were in buffers that never reached the path.
        let lost = if worker.driver.features().read_multishot { BUFFERS / 2 } else { 0 };
        let all = MANY - u64::from(lost);
        bench.turn_until("the queue is read", |_| hosts.cell.from_gwo.packets.get() == all);
    }
}

/// Takes the buffers for frames, those that the kernel has too.
fn hold_all_buffers(worker: &mut Worker) -> Vec<BufferId> {
    let mut held = Vec::new();
    for _ in 0..3 {
        held.extend(std::iter::from_fn(|| worker.driver.take_buffer(Group::Tun)));
        turn_without_buffers(worker, &mut held);
    }
    held
}

/// Takes completions and keeps the buffers of frames in `held`.
fn turn_without_buffers(worker: &mut Worker, held: &mut Vec<BufferId>) {
    worker.driver.enter(1, Duration::ZERO).unwrap();
    let mut completions = Vec::with_capacity(64);
    worker.driver.take_completions(&mut completions);
    for completion in completions {
        let Completion { token, buffer, more, .. } = completion;
        if let Some(buffer) = buffer {
            let (slot, side) = queue_of(token.queue);
            held.push(buffer);
            assert!(worker.queues.read_completed(slot, side, token.generation, more));
        } else {
            worker.on_completion(completion).unwrap();
        }
    }
    worker.start_streams();
}

#[test]
fn a_lost_queue_is_told_once_and_its_endpoint_can_go() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        bench.worker.on_queue_lost(EndpointSlot(1), Side::Gwo, Errno::EBADFD);
        bench.worker.on_queue_lost(EndpointSlot(1), Side::Gwo, Errno::EBADFD);
        hosts.queues[1].send(&FRAME).unwrap();
        bench.commands.post(Command::Detach(life(1))).unwrap();
        let mut lost = 0;
        bench.turn_until("the worker lets go", |bench| {
            bench.events.try_iter().any(|event| {
                lost += u32::from(matches!(event, Event::QueueLost(..)));
                matches!(event, Event::Detached(_, endpoint) if endpoint == life(1))
            })
        });
        assert_eq!(lost, 1);
    }
}

/// A worker that stood still finds frames in a queue, and beside them the order to let go of it.
#[test]
fn what_is_in_a_queue_that_is_let_go_is_counted() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        bench.arrive(1);
        bench.turn_until("the flow is known", |_| hosts.cell.to_gwi.packets.get() == 1);
        bench.commands.post(Command::Closing(life(1))).unwrap();
        bench.commands.post(Command::Detach(life(1))).unwrap();
        fill(&hosts.queues[1]);
        bench.turn_until("the worker lets go", |bench| {
            let is_it = |event| matches!(event, Event::Detached(_, it) if it == life(1));
            bench.events.try_iter().any(is_it)
        });
        let dropped = hosts.cell.encap_drops.get(DropReason::Shutdown);
        assert_eq!(hosts.cell.to_gwlb.packets.get() + dropped, MANY);
    }
}

#[test]
fn what_is_readable_when_the_end_begins_is_still_sent() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        bench.arrive(1);
        bench.turn_until("the flow is known", |_| hosts.cell.to_gwi.packets.get() == 1);
        fill(&hosts.queues[1]);
        bench.commands.post(Command::Stop).unwrap();
        bench.turn_until("the worker stops", |bench| bench.worker.is_stopped());
        assert_eq!(hosts.cell.to_gwlb.packets.get(), MANY);
    }
}

#[test]
fn what_the_kernel_will_not_cut_is_sent_all_the_same_and_told_once() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        udp::set_no_checksum(&bench.worker.receiver).unwrap();
        let local = UdpSocket::from(bench.worker.receiver.try_clone().unwrap());
        let IpAddr::V4(local) = local.local_addr().unwrap().ip() else { panic!("IPv4") };
        let outer = OuterPath { local, remote: Ipv4Addr::LOCALHOST, remote_port: GENEVE_PORT };
        for sends in 1..=2 {
            let buffer = bench.worker.driver.take_buffer(Group::Tun).unwrap();
            bench.worker.looked_into.push(buffer);
            let job = Job {
                endpoint: EndpointSlot(1),
                target: Target::Outer(outer),
                packets: 3,
                packet_bytes: 300 - 3 * 40,
                datagram_bytes: 110,
            };
            bench.worker.plan.push(job, [Span { buffer, start: 256, len: 300 }]);
            bench.worker.execute();
            bench.turn_until("all are sent", |_| hosts.cell.to_gwlb.packets.get() == 3 * sends);
        }
        assert_eq!(hosts.cell.to_gwlb.bytes.get(), 2 * 180);
        assert_eq!(bench.worker.driver.in_flight(), 0);
        let told: Vec<_> = bench.events.try_iter().collect();
        assert!(
            matches!(told[..], [Event::Downgraded(WorkerId(0), Downgrade::UdpGso, Errno::EINVAL)]),
            "{told:?}"
        );
    }
}

#[test]
fn a_super_packet_that_the_kernel_refuses_is_counted_and_told_once() {
    let features = Features::probe().unwrap();
    for features in [features, features.floor()] {
        let mut bench = Bench::with(features, Offload::ALL);
        let hosts = bench.attach(1);
        // A file that wants a number says EINVAL, as a TUN does of a header that it dislikes.
        let file = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
        let file = file.unwrap();
        bench.worker.driver.unregister_gwi(EndpointSlot(1)).unwrap();
        bench.worker.driver.register_gwi(EndpointSlot(1), file.as_fd()).unwrap();
        for (merged, packets) in [
            (Some(Transport::Udp), 3),
            (Some(Transport::Udp), 5),
            (None, 1),
            (Some(Transport::Tcp), 2),
        ] {
            let buffer = bench.worker.driver.take_buffer(Group::Tun).unwrap();
            bench.worker.looked_into.push(buffer);
            let (endpoint, target) = (EndpointSlot(1), Target::Gwi(merged));
            let job = Job { endpoint, target, packets, packet_bytes: 50, datagram_bytes: 0 };
            bench.worker.plan.push(job, [Span { buffer, start: 0, len: 60 }]);
            bench.worker.execute();
            bench.turn_until("it has ended", |bench| bench.worker.driver.in_flight() == 0);
        }
        assert_eq!(hosts.cell.decap_drops.get(DropReason::TunError), 11);
        let told: Vec<_> = bench.events.try_iter().collect();
        let [first, second] = [Downgrade::UdpCoalescing, Downgrade::TcpCoalescing];
        assert!(
            matches!(told[..], [
                Event::Downgraded(WorkerId(0), a, Errno::EINVAL),
                Event::Downgraded(WorkerId(0), b, Errno::EINVAL),
            ] if (a, b) == (first, second)),
            "{told:?}"
        );
    }
}

/// A TCP super-packet of the flow that [`PACKET`] is not of: so many segments of one byte, behind
/// its virtio header.
fn super_frame(segments: u8) -> Vec<u8> {
    let mut frame = vec![
        1, 1, 40, 0, 1, 0, 20, 0, 16, 0, // virtio: TCP over IPv4, 1 byte each, checksum open
        0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1, // IPv4
        0, 80, 0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0, // TCP
    ];
    frame[13] += segments;
    frame.extend(std::iter::repeat_n(b'x', segments.into()));
    frame
}

/// The packet that it answers.
const SEGMENT: [u8; 40] = [
    0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
    0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0, // TCP
];

/// What is read takes buffers, and so do the headers of its segments: the last buffer is not for
/// one more frame.
#[test]
fn frames_leave_buffers_for_the_headers_of_their_segments() {
    const SEGMENTS: u8 = 15;
    const FRAMES: u64 = 20;
    for mut bench in benches() {
        let hosts = bench.attach(1);
        bench.arrive_with(1, &SEGMENT);
        bench.turn_until("the flow is known", |_| hosts.cell.to_gwi.packets.get() == 1);
        for _ in 0..FRAMES {
            hosts.queues[1].send(&super_frame(SEGMENTS)).unwrap();
        }
        let all = FRAMES * u64::from(SEGMENTS);
        bench.turn_until("all are read", |_| hosts.cell.from_gwo.packets.get() == all);
        let is_done = |bench: &mut Bench| bench.worker.driver.in_flight() == 0;
        bench.turn_until("all are sent", is_done);
        let lost = hosts.cell.encap_drops.get(DropReason::NoBuffer);
        assert_eq!((lost, hosts.cell.to_gwlb.packets.get()), (0, all));
    }
}

/// What is held when the worker ends, however late it came, is counted.
#[test]
fn what_is_held_at_the_end_is_counted() {
    for mut bench in benches() {
        bench.arrive(1);
        bench.receive(1);
        bench.worker.phase = Phase::Stopping(Moment::ZERO);
        bench.worker.run_until_stopped().unwrap();
        let cell = &bench.worker.cell;
        assert_eq!((cell.held_in.get(), cell.held_out.get()), (1, 1));
        assert_eq!(cell.drops.get(DropReason::Shutdown), 1);
    }
}

/// A frame that something cuts on its way comes back as many, and a link's queue holds no more than
/// it does: a frame presses its pair as much as its packets.
#[test]
fn frames_count_as_what_they_may_come_back_as() {
    let features = Features::probe().unwrap();
    for (frames, is_pressed) in [(31, false), (32, true)] {
        let mut bench = Bench::with(features, Offload::ALL);
        let hosts = bench.attach(1);
        let buffer = bench.worker.driver.take_buffer(Group::Tun).unwrap();
        bench.worker.looked_into.push(buffer);
        let (endpoint, target) = (EndpointSlot(1), Target::Gwi(None));
        let job = Job { endpoint, target, packets: 64, packet_bytes: 640, datagram_bytes: 0 };
        for _ in 0..frames {
            bench.worker.plan.push(job, [Span { buffer, start: 0, len: 50 }]);
        }
        bench.worker.execute();
        hosts.queues[1].send(&FRAME).unwrap();
        assert_eq!(bench.worker.queues.is_pressed(), is_pressed, "{frames}");
    }
}

/// Datagrams wait for room behind a pressed pair, and that for a buffer to read into: nothing to do
/// but to sleep.
#[test]
fn a_pressed_worker_that_cannot_read_does_not_spin() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        fill(&hosts.queues[1]);
        let Bench { worker, .. } = &mut bench;
        let held = hold_all_buffers(worker);
        bench.worker.queues.written(EndpointSlot(1), 4096);
        bench.worker.queues.at(EndpointSlot(1)).unwrap().in_flight -= 1;
        bench.arrive(1);
        bench.turn_until("a datagram waits", |bench| !bench.worker.arrivals.is_empty());
        bench.worker.turn().unwrap();
        assert!(!bench.worker.arrivals.is_empty());
        assert!(bench.worker.patience() > Duration::ZERO);

        for buffer in held {
            bench.worker.driver.release(buffer);
        }
        bench.turn_until("it is delivered", |_| hosts.cell.to_gwi.packets.get() == 1);
    }
}

/// What the kernel has merged before it was told to stop is still all there.
#[test]
fn merged_datagrams_that_wait_when_merging_stops_are_taken_apart() {
    for mut bench in benches() {
        let hosts = bench.attach(1);
        let gro = nix::sys::socket::sockopt::UdpGroSegment;
        nix::sys::socket::setsockopt(&bench.worker.receiver, gro, &true).unwrap();
        bench.arrive_at_once(1, 10);
        bench.command(Command::StopMerging);
        for _ in 0..20 {
            bench.worker.turn().unwrap();
        }
        assert_eq!(hosts.cell.to_gwi.packets.get(), 10);
    }
}

/// The kernel is asked to merge while that finds something; in between nothing is lost.
#[test]
fn merging_pauses_where_it_finds_nothing_and_comes_back_with_neighbours() {
    let features = Features::probe().unwrap();
    let mut bench = Bench::with(features, Offload { udp_gro: true, ..Offload::NONE });
    let hosts = bench.attach(1);
    let merges = |bench: &Bench| {
        let option = nix::sys::socket::sockopt::UdpGroSegment;
        let is_on = nix::sys::socket::getsockopt(&bench.worker.receiver, option).unwrap();
        assert_eq!(is_on, bench.worker.cell.merging_paused.get() == 0);
        is_on
    };
    udp::set_merging(&bench.worker.receiver, true).unwrap();
    let mut sent = 0;
    let mut send_until = |bench: &mut Bench, is_on: bool, lengths: [usize; 2]| {
        let limit = bench.worker.now.after(Duration::from_secs(10));
        let mut lengths = lengths.into_iter().cycle();
        while merges(bench) != is_on {
            assert!(bench.worker.now < limit, "{:?}", bench.worker.merging);
            let mut packet = PACKET.to_vec();
            packet.resize(lengths.next().unwrap(), 0);
            bench.arrive_with(1, &packet);
            sent += 1;
            bench.receive(sent);
            while hosts.queues[0].recv(&mut [0; 64]).is_ok() {}
        }
        sent
    };
    send_until(&mut bench, false, [28, 29]);
    let sent = send_until(&mut bench, true, [28, 28]);
    let receives = bench.worker.cell.receives.get();
    bench.arrive_at_once(1, 10);
    bench.receive(sent + 10);
    assert_eq!(bench.worker.cell.receives.get(), receives + 1);
    bench.turn_until("all are written", |_| hosts.cell.to_gwi.packets.get() == sent + 10);
    // Off for good while it pauses: it does not pause any more.
    bench.worker.merging = Merging::new(true);
    bench.worker.cell.merging_paused.set(1);
    bench.command(Command::StopMerging);
    assert_eq!(bench.worker.cell.merging_paused.get(), 0);
}
