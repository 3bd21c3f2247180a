//! A program that is asked about every packet and says yes: what a filter behind NFQUEUE is.

use std::os::fd::AsFd as _;
use std::sync::mpsc;
use std::sync::mpsc::TryRecvError;
use std::thread::JoinHandle;

use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::sim::netns::Namespace;

/// `NETLINK_NETFILTER` of `linux/netlink.h`.
const NETFILTER: isize = 12;

/// Message types of `linux/netfilter/nfnetlink_queue.h`, of subsystem `NFNL_SUBSYS_QUEUE`.
const VERDICT: u16 = 3 << 8 | 1;
const CONFIG: u16 = 3 << 8 | 2;
/// Attributes of a packet: `NFQA_PACKET_HDR` and `NFQA_PAYLOAD`.
const PACKET_HEADER: u16 = 1;
const PAYLOAD: u16 = 10;

/// How often it looks whether it should end, in milliseconds.
const LOOK_INTERVAL_MS: u16 = 50;

/// What it was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) packets: u64,
    /// The longest packet in bytes.
    pub(crate) longest: usize,
}

/// A running consumer.
#[derive(Debug)]
pub(crate) struct NfQueue {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<Asked>>,
}

impl NfQueue {
    /// Takes the queue `number` of a namespace. `takes_super_packets` is what a program says that
    /// knows them (`NFQA_CFG_F_GSO`); to others the kernel gives packets.
    pub(crate) fn start(namespace: &Namespace, number: u16, takes_super_packets: bool) -> Self {
        let open = || Socket::new(NETFILTER);
        let mut socket = namespace.enter(open).expect("a netlink socket");
        socket.bind_auto().expect("a netlink address");
        setsockopt(&socket, sockopt::RcvBufForce, &(32 << 20)).expect("SO_RCVBUFFORCE");
        // NFQNL_CFG_CMD_BIND for AF_INET; NFQNL_COPY_PACKET of 64 KiB; NFQA_CFG_QUEUE_MAXLEN.
        configure(&socket, number, &attribute(1, &[1, 0, 0, 2]));
        configure(&socket, number, &attribute(2, &[0, 1, 0, 0, 2]));
        configure(&socket, number, &attribute(3, &8192_u32.to_be_bytes()));
        if takes_super_packets {
            let gso = 4_u32.to_be_bytes();
            configure(&socket, number, &[attribute(5, &gso), attribute(4, &gso)].concat());
        }
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || answer(&socket, number, &stopped));
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// Ends it.
    pub(crate) fn finish(mut self) -> Asked {
        drop(self.stop.take());
        self.thread.take().expect("finished once").join().expect("the consumer")
    }
}

fn answer(socket: &Socket, queue: u16, stopped: &mpsc::Receiver<()>) -> Asked {
    let mut asked = Asked::default();
    while stopped.try_recv() == Err(TryRecvError::Empty) {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(LOOK_INTERVAL_MS)).expect("poll") == 0 {
            continue;
        }
        let mut message = Vec::with_capacity(1 << 17);
        socket.recv(&mut message, 0).expect("the kernel asks");
        // A message header has 16 bytes, the subsystem's 4.
        let attributes = attributes(&message[20..]);
        let find =
            |wanted| attributes.iter().find(|(kind, _)| *kind == wanted).map(|found| found.1);
        let Some(header) = find(PACKET_HEADER) else { continue };
        asked.packets += 1;
        asked.longest = asked.longest.max(find(PAYLOAD).map_or(0, <[u8]>::len));
        let accept = [&1_u32.to_be_bytes(), &header[..4]].concat();
        send(socket, VERDICT, queue, 1, &attribute(2, &accept));
    }
    asked
}

/// Sends a setting and requires that the kernel takes it.
fn configure(socket: &Socket, queue: u16, attributes: &[u8]) {
    send(socket, CONFIG, queue, 1 | 4, attributes);
    let mut reply = Vec::with_capacity(4096);
    socket.recv(&mut reply, 0).expect("an acknowledgement");
    assert_eq!(reply[16..20], [0; 4], "the kernel refuses a setting of a queue");
}

fn send(socket: &Socket, kind: u16, queue: u16, flags: u16, attributes: &[u8]) {
    let mut message = Vec::new();
    message.extend(u32::try_from(20 + attributes.len()).expect("short").to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0, 0]);
    message.extend(queue.to_be_bytes());
    message.extend(attributes);
    socket.send_to(&message, &SocketAddr::new(0, 0), 0).expect("the kernel takes it");
}

/// One attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).expect("short").to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The attributes of a message, each with its kind.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        found.push((u16::from_ne_bytes([c, d]) & 0x3fff, &bytes[4..length]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}
