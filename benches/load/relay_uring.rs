//! The bare relay on `io_uring`: the least that any program with these system calls must do.
//!
//! ```text
//!   multishot recvmsg → one write to gwi per packet ═ redirect ═▶
//!                       multishot read of gwo → one sendmsg per packet
//! ```
//!
//! It knows one endpoint, reads everything at fixed offsets, checks nothing and looks nothing up:
//! an array indexed with the inner UDP source port, which numbers the flow, holds the header that
//! the packet came with. It keeps one promise of a real target, that each packet goes back under
//! its own flow's header from its own flow's outer port.
//!
//! A packet is never copied in user space. Its virtio header is written over the last bytes of the
//! GENEVE header that stands in front of it. Each buffer is part of at most one operation, so its
//! number is all that a completion must carry, and the number of buffers bounds what is in flight.
//!
//! Needs Linux 6.7 (`IORING_OP_READ_MULTISHOT`). Ends when its standard input ends, and then prints
//! how many datagrams it sent.
#![expect(unsafe_code, reason = "message headers are shared with the kernel by address")]

use std::io::ErrorKind;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;

use io_uring::IoUring;
use io_uring::cqueue;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::squeue::Flags;
use io_uring::types::Fd;
use io_uring::types::Fixed;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use crate::blast;
use crate::buffers::BUFFERS_MAX;
use crate::buffers::BufferRing;
use crate::lab;
use crate::lab::Failure;
use crate::packet::GENEVE_BYTES;
use crate::packet::inner_port_at;
use crate::tun;
use crate::tun::VNET_BYTES;
use crate::workload::FLOWS_MAX;

/// Buffers of each of the two rings: what can be in flight each way. The kernel takes them in turn,
/// so all of them are in use; more would only spread over the caches.
const BUFFERS: u16 = BUFFERS_MAX;

/// Bytes of a buffer: the largest datagram of a 9,001-byte MTU and what recvmsg puts before it.
const BUFFER_BYTES: usize = 9216;

/// A multishot recvmsg puts before the payload: `struct io_uring_recvmsg_out` (16 bytes), the
/// source address (16) and the control message with the destination address (32).
const NAME_AT: usize = 16;
const CONTROL_AT: usize = NAME_AT + NAME_BYTES;
const DATAGRAM_AT: usize = CONTROL_AT + CONTROL_BYTES;
const NAME_BYTES: usize = size_of::<libc::sockaddr_in>();
const CONTROL_BYTES: usize = 32;

/// Where the port stands in a `sockaddr_in`.
const NAME_PORT_AT: usize = NAME_AT + 2;

/// Places in the ring's file table. Send sockets follow.
const UDP: u32 = 0;
const GWI: u32 = 1;
const GWO: u32 = 2;
const SENDERS: u32 = 3;

/// What a completion is about: the upper half of its user data. The lower half is the buffer.
const RECEIVED: u64 = 1;
const WRITTEN: u64 = 2;
const READ: u64 = 3;
const SENT: u64 = 4;
const STOP: u64 = 5;

/// Receive buffer of the socket in bytes, as much as the engine asks for on a large host.
const RECEIVE_BUFFER_BYTES: usize = 128 << 20;

/// Relays until standard input ends.
pub(crate) fn run() -> Result<(), Failure> {
    blast::raise_descriptor_limit()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6081))?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
    let (gwi, gwo) = tun::pair(tun::NO_OFFLOADS)?;
    let files = [socket.as_raw_fd(), gwi.as_raw_fd(), gwo.as_raw_fd()];
    let mut relay = Relay::new(files)?;
    writeln!(std::io::stdout(), "ready")?;
    relay.turn_until_stopped()?;
    writeln!(std::io::stdout(), "{}", relay.sent)?;
    Ok(())
}

/// How a flow's packets came in, and therefore go back.
#[derive(Clone, Copy)]
struct Origin {
    header: [u8; GENEVE_BYTES],
    /// Place of the outer port's socket in the file table, 0 while the flow is unknown.
    sender: u32,
}

/// What the kernel reads while it sends the packet of one TUN buffer.
struct Letter {
    header: [u8; GENEVE_BYTES],
    parts: [libc::iovec; 2],
    message: libc::msghdr,
}

struct Relay {
    ring: IoUring,
    datagrams: BufferRing,
    frames: BufferRing,
    /// One per frame buffer; never moved once the ring knows its address.
    letters: Box<[Letter]>,
    /// By inner UDP source port.
    origins: Box<[Origin]>,
    /// By outer UDP source port: place in the file table, 0 for none.
    sender_of_port: Box<[u32]>,
    /// Send sockets, in the order of their places.
    senders: Vec<UdpSocket>,
    /// What a multishot recvmsg reads when it is armed: sizes of name and control part.
    receive_shape: Box<libc::msghdr>,
    /// Where the sink is; the same for all.
    remote: Box<libc::sockaddr_in>,
    stop_byte: Box<[u8; 1]>,
    is_receiving: bool,
    is_reading: bool,
    is_stopping: bool,
    sent: u64,
}

impl Relay {
    fn new(files: [RawFd; 3]) -> Result<Self, Failure> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(u32::from(BUFFERS) * 8)
            .build(u32::from(BUFFERS) * 4)?;
        let places = SENDERS + u32::from(FLOWS_MAX);
        ring.submitter().register_files_sparse(places)?;
        ring.submitter().register_files_update(0, &files)?;
        let unknown = Origin { header: [0; GENEVE_BYTES], sender: 0 };
        let mut datagrams = BufferRing::register(&ring, 0, BUFFER_BYTES)?;
        let mut frames = BufferRing::register(&ring, 1, BUFFER_BYTES)?;
        for buffers in [&mut datagrams, &mut frames] {
            (0..BUFFERS).for_each(|buffer| buffers.put(buffer));
            buffers.publish();
        }
        Ok(Self {
            datagrams,
            frames,
            ring,
            letters: (0..BUFFERS).map(|_| Letter::blank()).collect(),
            origins: vec![unknown; 1 << 16].into(),
            sender_of_port: vec![0; 1 << 16].into(),
            senders: Vec::new(),
            receive_shape: Box::new(receive_shape()?),
            remote: Box::new(sink_address()?),
            stop_byte: Box::new([0]),
            is_receiving: false,
            is_reading: false,
            is_stopping: false,
            sent: 0,
        })
    }

    fn turn_until_stopped(&mut self) -> Result<(), Failure> {
        let stop = opcode::Read::new(Fd(libc::STDIN_FILENO), self.stop_byte.as_mut_ptr(), 1);
        self.push(&stop.build().user_data(STOP << 32))?;
        let mut done: Vec<cqueue::Entry> = Vec::with_capacity(usize::from(BUFFERS) * 8);
        while !self.is_stopping {
            self.arm()?;
            self.ring.submit_and_wait(1)?;
            done.extend(self.ring.completion());
            for completion in done.drain(..) {
                self.on_completion(&completion)?;
            }
            self.datagrams.publish();
            self.frames.publish();
        }
        Ok(())
    }

    /// Arms both multishots again where they ended, once there are buffers for them.
    fn arm(&mut self) -> Result<(), Failure> {
        if !self.is_receiving && self.datagrams.free > 0 {
            let shape = &raw const *self.receive_shape;
            let receive = opcode::RecvMsgMulti::new(Fixed(UDP), shape, self.datagrams.group);
            self.push(&receive.build().user_data(RECEIVED << 32))?;
            self.is_receiving = true;
        }
        if !self.is_reading && self.frames.free > 0 {
            // The builder of io-uring 0.7 forgets FIXED_FILE here: both flags by hand.
            let read = opcode::ReadMulti::new(Fixed(GWO), 0, self.frames.group)
                .offset(u64::MAX)
                .build()
                .flags(Flags::FIXED_FILE | Flags::BUFFER_SELECT);
            self.push(&read.user_data(READ << 32))?;
            self.is_reading = true;
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: &cqueue::Entry) -> Result<(), Failure> {
        let buffer = u16::try_from(completion.user_data() & 0xffff)?;
        let has_more = cqueue::more(completion.flags());
        let result = match completion.result() {
            error if error < 0 => Err(Errno::from_raw(-error)),
            bytes => Ok(usize::try_from(bytes)?),
        };
        match (completion.user_data() >> 32, result) {
            (RECEIVED, Ok(bytes)) => {
                self.is_receiving = has_more;
                let buffer = cqueue::buffer_select(completion.flags()).ok_or("no buffer")?;
                self.datagrams.free -= 1;
                self.write(buffer, bytes)?;
            }
            (READ, Ok(bytes)) => {
                self.is_reading = has_more;
                let buffer = cqueue::buffer_select(completion.flags()).ok_or("no buffer")?;
                self.frames.free -= 1;
                self.send(buffer, bytes)?;
            }
            // All buffers are in flight; arm() waits for one.
            (RECEIVED, Err(Errno::ENOBUFS)) => self.is_receiving = false,
            (READ, Err(Errno::ENOBUFS)) => self.is_reading = false,
            (WRITTEN, Ok(_)) => self.datagrams.put(buffer),
            (SENT, Ok(_)) => {
                self.sent += 1;
                self.frames.put(buffer);
            }
            (STOP, _) => self.is_stopping = true,
            (operation, outcome) => {
                return Err(format!("operation {operation} ended with {outcome:?}").into());
            }
        }
        Ok(())
    }

    /// A datagram is in `buffer`: remembers how it came, and writes the packet in it to gwi.
    fn write(&mut self, buffer: u16, bytes: usize) -> Result<(), Failure> {
        let outer_port = u16_at(self.datagrams.bytes(buffer), NAME_PORT_AT);
        let sender = match self.sender_of_port[usize::from(outer_port)] {
            0 => self.new_sender(outer_port)?,
            sender => sender,
        };
        let whole = &mut self.datagrams.bytes_mut(buffer)[..bytes];
        let flow = flow_of(&whole[DATAGRAM_AT + GENEVE_BYTES..]);
        let (front, _packet) = whole.split_at_mut(DATAGRAM_AT + GENEVE_BYTES);
        let header: &mut [u8; GENEVE_BYTES] = front.last_chunk_mut().ok_or("no header")?;
        self.origins[flow] = Origin { header: *header, sender };
        header[GENEVE_BYTES - VNET_BYTES..].fill(0);
        let frame = &whole[DATAGRAM_AT + GENEVE_BYTES - VNET_BYTES..];
        let frame_bytes = u32::try_from(frame.len())?;
        let write = opcode::Write::new(Fixed(GWI), frame.as_ptr(), frame_bytes).offset(u64::MAX);
        self.push(&write.build().user_data(WRITTEN << 32 | u64::from(buffer)))
    }

    /// A frame is in `buffer`: sends its packet back the way its flow came.
    fn send(&mut self, buffer: u16, bytes: usize) -> Result<(), Failure> {
        let frame = &mut self.frames.bytes_mut(buffer)[..bytes];
        let origin = &self.origins[flow_of(&frame[VNET_BYTES..])];
        if origin.sender == 0 {
            return Err("a packet of no flow came back".into());
        }
        let packet = &mut frame[VNET_BYTES..];
        let letter = &mut self.letters[usize::from(buffer)];
        letter.header = origin.header;
        letter.parts[0] =
            libc::iovec { iov_base: letter.header.as_mut_ptr().cast(), iov_len: GENEVE_BYTES };
        letter.parts[1] =
            libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: packet.len() };
        letter.message.msg_name = (&raw mut *self.remote).cast();
        letter.message.msg_namelen = u32::try_from(NAME_BYTES)?;
        letter.message.msg_iov = letter.parts.as_mut_ptr();
        letter.message.msg_iovlen = letter.parts.len();
        let send = opcode::SendMsg::new(Fixed(origin.sender), &raw const letter.message);
        self.push(&send.build().user_data(SENT << 32 | u64::from(buffer)))
    }

    /// A socket that sends from `port`, as the load balancer expects. It receives nothing.
    fn new_sender(&mut self, port: u16) -> Result<u32, Failure> {
        let socket = UdpSocket::bind((lab::TARGET, port))?;
        let place = SENDERS + u32::try_from(self.senders.len())?;
        let submitter = self.ring.submitter();
        submitter.register_files_update(place, &[socket.as_raw_fd()])?;
        self.senders.push(socket);
        self.sender_of_port[usize::from(port)] = place;
        Ok(place)
    }

    /// Queues an operation, handing what is queued to the kernel first where there is no room.
    fn push(&mut self, entry: &squeue::Entry) -> Result<(), Failure> {
        // SAFETY: whatever an operation points to lives in this relay, at an address that does not
        // change: leaked buffers, boxed letters, boxed address, shape and byte. A buffer or letter
        // is not touched again before its completion, and the relay outlives its ring's process.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Letter {
    fn blank() -> Self {
        Self {
            header: [0; GENEVE_BYTES],
            parts: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2],
            message: blank_message(),
        }
    }
}

/// The shape of what [`opcode::RecvMsgMulti`] leaves in a buffer.
fn receive_shape() -> Result<libc::msghdr, Failure> {
    let mut message = blank_message();
    message.msg_namelen = u32::try_from(NAME_BYTES)?;
    message.msg_controllen = CONTROL_BYTES;
    Ok(message)
}

fn blank_message() -> libc::msghdr {
    // SAFETY: msghdr is plain integers and pointers; all zeroes is a value of it.
    unsafe { std::mem::zeroed() }
}

fn sink_address() -> Result<libc::sockaddr_in, Failure> {
    Ok(libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET)?,
        sin_port: 6081_u16.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(lab::SENDER.octets()) },
        sin_zero: [0; 8],
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The inner source port, which numbers the flow.
fn flow_of(packet: &[u8]) -> usize {
    usize::from(u16_at(packet, inner_port_at(packet[0])))
}
