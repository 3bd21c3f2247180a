//! The driver on a real ring, with sockets in the places of TUNs.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::sched::CloneFlags;
use nix::sched::unshare;

use super::*;
use crate::path::plan::Job;
use crate::path::plan::Plan;
use crate::path::plan::SPANS_MAX;
use crate::path::plan::Target;
use crate::sys::EventFd;
use crate::sys::udp;

const SLOT: EndpointSlot = EndpointSlot(2);
const PATIENCE: Duration = Duration::from_secs(2);

/// With and without deferred task work: the second is what a kernel before 6.1 gets.
fn drivers() -> [Driver; 2] {
    let features = Features::probe().expect("the tests need io_uring");
    [features, Features { defer_taskrun: false, ..features }].map(driver)
}

fn driver(features: Features) -> Driver {
    Driver::new(DriverPlan {
        submissions: 8,
        completions_max: u32::MAX,
        operations_max: 16,
        udp: GroupPlan { offered: 4, count: 8, headroom_bytes: 0, filled_bytes: 2048 },
        tun: GroupPlan { offered: 4, count: 8, headroom_bytes: 256, filled_bytes: 2048 },
        senders_max: 4,
        busy_poll_us: 50,
        endpoints_max: 4,
        features,
    })
    .unwrap()
}

/// Turns until `count` completions of `operation` have come.
fn wait_for(driver: &mut Driver, operation: Operation, count: usize) -> Vec<Completion> {
    let mut wanted = Vec::new();
    let mut all = Vec::with_capacity(64);
    for _ in 0..100 {
        driver.enter(1, PATIENCE).unwrap();
        assert_eq!(driver.take_completions(&mut all), 0, "strays");
        let (these, others): (Vec<_>, Vec<_>) =
            all.drain(..).partition(|completion| completion.token.operation == operation);
        assert!(
            others.iter().all(|other| other.token.operation == Operation::Cancel),
            "{others:?}"
        );
        wanted.extend(these);
        if wanted.len() >= count {
            return wanted;
        }
    }
    panic!("only {} of {count} completions of {operation:?}", wanted.len());
}

/// A receive socket as the worker has it, and one that sends to it.
fn receiver(driver: &mut Driver) -> (UdpSocket, UdpSocket) {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let option = nix::sys::socket::sockopt::Ipv4PacketInfo;
    nix::sys::socket::setsockopt(&receiver, option, &true).unwrap();
    driver.set_receiver(receiver.as_fd());
    let peer = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    peer.connect(receiver.local_addr().unwrap()).unwrap();
    (receiver, peer)
}

fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

#[test]
fn datagrams_arrive_until_the_buffers_are_gone_and_go_on_after_a_refill() {
    for mut driver in drivers() {
        let (receiver, peer) = receiver(&mut driver);
        driver.refill(Group::Udp);
        driver.arm_receive(receiver.as_fd());
        for text in [b"one", b"two", b"3rd", b"4th", b"5th", b"6th"] {
            peer.send(text).unwrap();
        }
        // Four buffers are offered: the fifth datagram finds none, and the operation ends.
        let first = wait_for(&mut driver, Operation::Receive, 5);
        let (last, filled) = first.split_last().unwrap();
        assert_eq!((last.result, last.more), (Err(Errno::ENOBUFS), false));
        for (completion, text) in filled.iter().zip([b"one", b"two", b"3rd", b"4th"]) {
            let buffer = completion.buffer.unwrap();
            let len = completion.result.unwrap() as usize;
            let bytes = driver.bytes_mut(buffer);
            let received = received::parse(&bytes[..len]).unwrap();
            assert_eq!(&bytes[received.bytes], text);
            assert_eq!(received.outer.local, Ipv4Addr::LOCALHOST);
            assert_eq!(received.outer.remote_port, port(&peer));
            driver.release(buffer);
        }
        assert_eq!(driver.offered(Group::Udp), 0);
        driver.refill(Group::Udp);
        driver.arm_receive(receiver.as_fd());
        let rest = wait_for(&mut driver, Operation::Receive, 2);
        assert!(rest.iter().all(|completion| completion.more && completion.buffer.is_some()));

        driver.cancel(Operation::Receive, 0, 0);
        let end = wait_for(&mut driver, Operation::Receive, 1);
        assert_eq!((end[0].result, end[0].more), (Err(Errno::ECANCELED), false));
    }
}

#[test]
fn frames_are_read_behind_their_headroom() {
    for mut driver in drivers() {
        let (mut host, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        driver.refill(Group::Tun);
        driver.arm_tun_read(ours.as_fd(), SLOT, Side::Gwo, 7);
        host.write_all(b"frame").unwrap();
        let read = wait_for(&mut driver, Operation::TunRead, 1)[0];
        assert_eq!((queue_of(read.token.queue), read.token.generation), ((SLOT, Side::Gwo), 7));
        if !driver.features().read_multishot {
            assert_eq!(read.buffer, None, "a poll before Linux 6.7: the worker reads by itself");
            continue;
        }
        let buffer = read.buffer.unwrap();
        let start = driver.headroom_bytes(Group::Tun);
        assert_eq!(&driver.bytes_mut(buffer)[start..start + 5], b"frame");
    }
}

/// A job whose spans are the given texts, each in a buffer of its own.
fn job_of(driver: &mut Driver, target: Target, texts: &[&[u8]]) -> (Plan, Vec<BufferId>) {
    let mut plan = Plan::new(1, SPANS_MAX);
    let mut buffers = Vec::new();
    let mut spans = Vec::new();
    for text in texts {
        let buffer = driver.take_buffer(Group::Udp).unwrap();
        driver.bytes_mut(buffer)[100..100 + text.len()].copy_from_slice(text);
        let len = u32::try_from(text.len()).unwrap();
        spans.push(Span { buffer, start: 100, len });
        buffers.push(buffer);
    }
    let job = Job { endpoint: SLOT, target, packets: 1, packet_bytes: 9, datagram_bytes: 0 };
    plan.push(job, spans);
    (plan, buffers)
}

/// How many buffers of a group are free.
fn free_buffers(driver: &mut Driver, group: Group) -> usize {
    let all: Vec<_> = std::iter::from_fn(|| driver.take_buffer(group)).collect();
    release(driver, &all);
    all.len()
}

fn release(driver: &mut Driver, buffers: &[BufferId]) {
    for &buffer in buffers {
        driver.release(buffer);
    }
}

#[test]
fn a_write_gathers_its_spans_and_gives_its_leases_back() {
    for mut driver in drivers() {
        let (ours, mut host) = UnixStream::pair().unwrap();
        driver.register_gwi(SLOT, ours.as_fd()).unwrap();
        for texts in [&[&b"one piece"[..]][..], &[b"three", b" small ", b"pieces"]] {
            let (plan, buffers) = job_of(&mut driver, Target::Gwi(None), texts);
            let (job, spans) = plan.jobs().next().unwrap();
            driver.write_gwi(job, spans).unwrap();
            for &buffer in &buffers {
                driver.release(buffer);
            }
            assert_eq!(driver.in_flight(), 1);
            let free = free_buffers(&mut driver, Group::Udp);
            assert_eq!(free, 8 - texts.len(), "leased buffers are not free");
            let written = wait_for(&mut driver, Operation::TunWrite, 1)[0];
            let whole = texts.concat();
            assert_eq!(written.result, Ok(u32::try_from(whole.len()).unwrap()));
            let mut got = vec![0; whole.len()];
            host.read_exact(&mut got).unwrap();
            assert_eq!(got, whole);
            let ended = driver.finish(written.token).unwrap();
            assert_eq!(ended, Ended { endpoint: SLOT, packets: 1, packet_bytes: 9, merged: None });
            assert_eq!(driver.finish(written.token), None, "an operation ends once");
            assert_eq!(free_buffers(&mut driver, Group::Udp), 8);
        }
    }
}

#[test]
fn a_send_reaches_the_remote_from_its_own_socket() {
    for mut driver in drivers() {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let remote = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        driver.register_sender(SenderId(3), sender.as_fd()).unwrap();
        let SocketAddr::V4(to) = remote.local_addr().unwrap() else { panic!("IPv4") };
        let (plan, buffers) = job_of(&mut driver, Target::Gwi(None), &[b"head", b"payload"]);
        let (job, spans) = plan.jobs().next().unwrap();
        let token = driver.prepare_send(SenderId(3), Ipv4Addr::LOCALHOST, to, job, spans).unwrap();
        for &buffer in &buffers {
            driver.release(buffer);
        }
        driver.start_send(token);
        let sent = wait_for(&mut driver, Operation::Send, 1)[0];
        assert_eq!((sent.token, sent.result), (token, Ok(11)));
        let mut got = [0; 32];
        let (len, from) = remote.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from.port()), (&b"headpayload"[..], port(&sender)));
        assert!(driver.finish(token).is_some());
    }
}

#[test]
fn the_receive_socket_answers_from_the_address_that_was_hit() {
    for mut driver in drivers() {
        let any = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        driver.set_receiver(any.as_fd());
        let remote = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        remote.set_read_timeout(Some(PATIENCE)).unwrap();
        let SocketAddr::V4(to) = remote.local_addr().unwrap() else { panic!("IPv4") };
        for local in [Ipv4Addr::new(127, 60, 81, 3), Ipv4Addr::new(127, 60, 81, 4)] {
            let (plan, buffers) = job_of(&mut driver, Target::Gwi(None), &[b"answer"]);
            let (job, spans) = plan.jobs().next().unwrap();
            let token = driver.prepare_send(SenderId::RECEIVER, local, to, job, spans).unwrap();
            driver.release(buffers[0]);
            driver.start_send(token);
            assert_eq!(wait_for(&mut driver, Operation::Send, 1)[0].result, Ok(6));
            let (_, from) = remote.recv_from(&mut [0; 32]).unwrap();
            assert_eq!(from, SocketAddr::from((local, port(&any))));
            assert!(driver.finish(token).is_some());
        }
    }
}

/// Three datagrams as the path plans them: headers side by side in one buffer, each followed by
/// its payload, which stands in one buffer for the first two and in another for the last.
fn three_datagrams(driver: &mut Driver) -> (Plan, [BufferId; 3], [Vec<u8>; 3]) {
    let buffers = [(); 3].map(|()| driver.take_buffer(Group::Tun).unwrap());
    let [headers, payloads, last] = buffers;
    let mut plan = Plan::new(1, SPANS_MAX);
    let mut datagrams = [b"0", b"1", b"2"].map(|digit| digit.repeat(70));
    datagrams[2].truncate(50);
    let mut spans = Vec::new();
    for (place, datagram) in datagrams.iter().enumerate() {
        let (header, payload) = datagram.split_at(40);
        let (payload_buffer, start) = if place < 2 { (payloads, 300 * place) } else { (last, 9) };
        for (buffer, start, bytes) in
            [(headers, 48 * place, header), (payload_buffer, start, payload)]
        {
            driver.bytes_mut(buffer)[start..start + bytes.len()].copy_from_slice(bytes);
            let (start, len) = (start.try_into().unwrap(), bytes.len().try_into().unwrap());
            spans.push(Span { buffer, start, len });
        }
    }
    let target = Target::Gwi(None);
    let job = Job { endpoint: SLOT, target, packets: 3, packet_bytes: 99, datagram_bytes: 70 };
    plan.push(job, spans);
    (plan, buffers, datagrams)
}

/// In a namespace of its own.
#[test]
fn one_send_is_many_datagrams() {
    private_loopback(&[]);
    for mut driver in drivers() {
        let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 60_000)).unwrap();
        driver.register_sender(SenderId(0), own.as_fd()).unwrap();
        let any = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6081)).unwrap();
        driver.set_receiver(any.as_fd());
        let remote = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        remote.set_read_timeout(Some(PATIENCE)).unwrap();
        let SocketAddr::V4(to) = remote.local_addr().unwrap() else { panic!("IPv4") };
        for (sender, local, port) in [
            (SenderId(0), Ipv4Addr::LOCALHOST, 60_000),
            (SenderId::RECEIVER, Ipv4Addr::new(127, 60, 81, 5), 6081),
        ] {
            let (plan, buffers, datagrams) = three_datagrams(&mut driver);
            let (job, spans) = plan.jobs().next().unwrap();
            assert!(distinct_buffers(spans).eq(buffers), "each is leased once");
            let token = driver.prepare_send(sender, local, to, job, spans).unwrap();
            release(&mut driver, &buffers);
            driver.start_send(token);
            assert_eq!(wait_for(&mut driver, Operation::Send, 1)[0].result, Ok(190));
            for datagram in datagrams {
                let mut got = [0; 100];
                let (len, from) = remote.recv_from(&mut got).unwrap();
                assert_eq!((&got[..len], from), (&datagram[..], SocketAddr::from((local, port))));
            }
            let ended = Ended { endpoint: SLOT, packets: 3, packet_bytes: 99, merged: None };
            assert_eq!(driver.finish(token), Some(ended));
            assert_eq!(free_buffers(&mut driver, Group::Tun), 8);
        }
    }
}

#[test]
fn the_largest_job_fits_into_one_slot() {
    for mut driver in drivers() {
        let (ours, mut host) = UnixStream::pair().unwrap();
        driver.register_gwi(SLOT, ours.as_fd()).unwrap();
        // No buffer is among the two before: every span leases.
        let buffers = [(); 3].map(|()| driver.take_buffer(Group::Udp).unwrap());
        let mut plan = Plan::new(1, SPANS_MAX);
        let spans = (0..SPANS_MAX).map(|place| {
            let start = place.try_into().unwrap();
            Span { buffer: buffers[place % 3], start, len: 1 }
        });
        for buffer in buffers {
            for (place, byte) in driver.bytes_mut(buffer)[..SPANS_MAX].iter_mut().enumerate() {
                *byte = place.try_into().unwrap();
            }
        }
        let target = Target::Gwi(None);
        let job = Job { endpoint: SLOT, target, packets: 64, packet_bytes: 9, datagram_bytes: 0 };
        plan.push(job, spans);
        let (job, spans) = plan.jobs().next().unwrap();
        driver.write_gwi(job, spans).unwrap();
        release(&mut driver, &buffers);
        let written = wait_for(&mut driver, Operation::TunWrite, 1)[0];
        assert_eq!(written.result, Ok(128));
        let mut got = [0; SPANS_MAX];
        host.read_exact(&mut got).unwrap();
        assert!(got.iter().enumerate().all(|(place, &byte)| usize::from(byte) == place));
        assert!(driver.finish(written.token).is_some());
        assert_eq!(free_buffers(&mut driver, Group::Udp), 8);
    }
}

/// A loopback link in a namespace of this test alone, set up further with these lines.
fn private_loopback(lines: &[&str]) {
    unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
    for line in ["ip link set lo up"].iter().chain(lines) {
        let mut words = line.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{line}");
    }
}

#[test]
fn a_full_raw_sender_says_so_and_has_room_again() {
    private_loopback(&["tc qdisc add dev lo root tbf rate 1mbit burst 2k limit 100k"]);
    let (local, to) = (Ipv4Addr::LOCALHOST, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 6081));
    for mut driver in drivers() {
        let sender = udp::open_raw_sender(1).unwrap();
        driver.register_sender(SenderId::RAW, sender.as_fd()).unwrap();
        let (token, errno) = loop {
            let (plan, buffers) = job_of(&mut driver, Target::Gwi(None), &[&[0; 1200]]);
            let (job, spans) = plan.jobs().next().unwrap();
            let token = driver.prepare_send(SenderId::RAW, local, to, job, spans).unwrap();
            driver.release(buffers[0]);
            driver.start_send(token);
            let sent = wait_for(&mut driver, Operation::Send, 1)[0];
            if let Err(errno) = sent.result {
                break (token, errno);
            }
            driver.finish(token);
        };
        assert_eq!(errno, Errno::ENOBUFS);
        driver.arm_send_ready(SenderId::RAW);
        wait_for(&mut driver, Operation::SendReady, 1);
        driver.start_send(token);
        assert_eq!(wait_for(&mut driver, Operation::Send, 1)[0].result, Ok(1200));
        assert!(driver.finish(token).is_some());
    }
}

#[test]
fn a_failed_operation_gives_its_buffer_back() {
    const BUFFER_0: u32 = 1; // IORING_CQE_F_BUFFER, the buffer's number above bit 15
    for mut driver in drivers() {
        for (operation, group) in
            [(Operation::Receive, Group::Udp), (Operation::TunRead, Group::Tun)]
        {
            driver.refill(group);
            assert_eq!(driver.offered(group), 4);
            let token = token(operation, 0, 0, 0);
            let failed = driver.interpret(token.into(), -libc::ECANCELED, BUFFER_0).unwrap();
            assert_eq!((failed.result, failed.buffer), (Err(Errno::ECANCELED), None));
            let free = std::iter::from_fn(|| driver.take_buffer(group)).count();
            assert_eq!((driver.offered(group), free), (3, 5));
        }
    }
}

#[test]
fn slots_are_bounded_and_a_small_queue_is_no_bound() {
    for mut driver in drivers() {
        let (ours, _host) = UnixStream::pair().unwrap();
        driver.register_gwi(SLOT, ours.as_fd()).unwrap();
        let (plan, _buffers) = job_of(&mut driver, Target::Gwi(None), &[b"x"]);
        let (job, spans) = plan.jobs().next().unwrap();
        // Sixteen slots, eight entries in the submission queue.
        for _ in 0..16 {
            driver.write_gwi(job, spans).unwrap();
        }
        assert_eq!(driver.write_gwi(job, spans), Err(DropReason::NoBuffer));
        for written in wait_for(&mut driver, Operation::TunWrite, 16) {
            assert_eq!(written.result, Ok(1));
            assert!(driver.finish(written.token).is_some());
        }
        assert_eq!(driver.in_flight(), 0);
        driver.write_gwi(job, spans).unwrap();
        wait_for(&mut driver, Operation::TunWrite, 1);
    }
}

#[test]
fn busy_polling_is_set_where_the_kernel_has_it() {
    for driver in drivers() {
        if driver.features().busy_poll {
            // The kernel answers with what was set before.
            let mut before = io_uring::types::Napi::new();
            driver.ring.submitter().register_napi(&mut before).unwrap();
            assert_eq!(before.busy_poll_timeout(), 50);
        }
    }
}

#[test]
fn the_mailbox_wakes_an_idle_ring_again_and_again() {
    for mut driver in drivers() {
        let wake = EventFd::new().unwrap();
        driver.arm_wake(wake.as_fd());
        for _ in 0..3 {
            wake.notify();
            let woken = wait_for(&mut driver, Operation::Wake, 1);
            assert!(woken[0].more, "armed once for all times");
            assert!(wake.drain());
        }
    }
}
