//! The bare relay that merges: the least that any program must do which turns packets in sequence
//! into super-packets and back.
//!
//! ```text
//!   multishot recvmsg, UDP_GRO → merge → one gathered write to gwi per super-packet ═ redirect ═▶
//!   multishot read of gwo → cut → one sendmsg, UDP_SEGMENT, per run of equal datagrams of a port
//! ```
//!
//! Like the other relays it knows one endpoint, reads everything at fixed offsets and looks nothing
//! up but in arrays: by inner source port, which numbers the flow, the header that the flow's last
//! packet came with and the super-packet that its next one may join; by outer port the socket. It
//! verifies the checksums of what it merges, since merging would mend wrong ones, and nothing else.
//! It never holds a packet over the end of a turn.
//!
//! Needs Linux 6.7 (`IORING_OP_READ_MULTISHOT`). Ends when its standard input ends, and then prints
//! how many datagrams it sent.
#![expect(unsafe_code, reason = "message headers are shared with the kernel by address")]

mod cut;
mod headers;
mod merge;
mod pool;

use std::collections::VecDeque;
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
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

use self::cut::Cutter;
use self::headers::u16_at;
use self::merge::Merger;
use self::merge::Span;
use self::pool::Pool;
use crate::blast;
use crate::lab;
use crate::lab::Failure;
use crate::packet::GENEVE_BYTES;
use crate::packet::inner_port_at;
use crate::tun;
use crate::tun::VNET_BYTES;
use crate::workload::FLOWS_MAX;

/// A multishot recvmsg puts before the payload: `struct io_uring_recvmsg_out` (16 bytes), the
/// source address (16), the control messages with the segment size (24) and the destination
/// address (32).
const CONTROL_LENGTH_AT: usize = 4;
const PAYLOAD_LENGTH_AT: usize = 8;
const NAME_AT: usize = 16;
const CONTROL_AT: usize = NAME_AT + NAME_BYTES;
const DATAGRAM_AT: usize = CONTROL_AT + CONTROL_BYTES;
const NAME_BYTES: usize = size_of::<libc::sockaddr_in>();
const CONTROL_BYTES: usize = 24 + 32;

/// Where the port stands in a `sockaddr_in`.
const NAME_PORT_AT: usize = NAME_AT + 2;

/// Places in the ring's file table. Send sockets follow.
const UDP: u32 = 0;
const GWI: u32 = 1;
const GWO: u32 = 2;
const SENDERS: u32 = 3;

/// What a completion is about: the upper half of its user data. The lower half is a number.
const RECEIVED: u64 = 1;
const WRITTEN: u64 = 2;
const READ: u64 = 3;
const SENT: u64 = 4;
const STOP: u64 = 5;

/// Completions that the ring has room for.
const COMPLETIONS_MAX: usize = 8192;

/// After how many completions there may be more: the kernel runs a multishot operation 32 times
/// before it lets others have their turn, and then returns if one completion was wanted.
const BUSY_COMPLETIONS: usize = 32;

/// Frames written and not yet read back: half of what gwo's queue holds.
const FRAMES_MAX: usize = 2048;

/// Receive buffer of the socket in bytes, as much as the engine asks for on a large host.
const RECEIVE_BUFFER_BYTES: usize = 128 << 20;

/// Send buffer of each socket in bytes: no send has to wait.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// Relays until standard input ends.
pub(crate) fn run() -> Result<(), Failure> {
    blast::raise_descriptor_limit()?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6081))?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
    let (gwi, gwo) = tun::pair(tun::ALL_OFFLOADS)?;
    let files = [socket.as_raw_fd(), gwi.as_raw_fd(), gwo.as_raw_fd()];
    let mut relay = Relay::new(files)?;
    writeln!(std::io::stdout(), "ready")?;
    relay.turn_until_stopped()?;
    writeln!(std::io::stdout(), "{}", relay.sent)?;
    Ok(())
}

/// How a flow's packets came in, and therefore go back.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Origin {
    header: [u8; GENEVE_BYTES],
    /// Place of the outer port's socket in the file table, 0 while the flow is unknown.
    sender: u32,
}

struct Relay {
    ring: IoUring,
    datagrams: Pool,
    frames: Pool,
    merger: Merger,
    cutter: Cutter,
    /// Received and not yet merged: buffer and bytes.
    inbox: VecDeque<(u16, usize)>,
    /// Frames written or about to be, less those read.
    frames_out: usize,
    /// By inner source port.
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
    sent: usize,
}

impl Relay {
    fn new(files: [RawFd; 3]) -> Result<Self, Failure> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(u32::try_from(COMPLETIONS_MAX)?)
            .build(2048)?;
        let places = SENDERS + u32::from(FLOWS_MAX);
        ring.submitter().register_files_sparse(places)?;
        ring.submitter().register_files_update(0, &files)?;
        let unknown = Origin { header: [0; GENEVE_BYTES], sender: 0 };
        Ok(Self {
            datagrams: Pool::register(&ring, 0)?,
            frames: Pool::register(&ring, 1)?,
            ring,
            merger: Merger::new(),
            cutter: Cutter::new(usize::try_from(places)?),
            inbox: VecDeque::new(),
            frames_out: 0,
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
        let mut done: Vec<cqueue::Entry> = Vec::with_capacity(COMPLETIONS_MAX);
        let mut is_busy = false;
        while !self.is_stopping {
            self.datagrams.offer();
            self.frames.offer();
            self.arm()?;
            self.enter(is_busy)?;
            done.extend(self.ring.completion());
            is_busy = done.len() >= BUSY_COMPLETIONS;
            for completion in done.drain(..) {
                self.on_completion(&completion)?;
            }
            self.send_letters()?;
            while self.frames_out < FRAMES_MAX
                && let Some((buffer, bytes)) = self.inbox.pop_front()
            {
                self.merge(buffer, bytes)?;
            }
            self.write_frames()?;
        }
        Ok(())
    }

    /// Hands the queue to the kernel. Waits for a completion, or, if the last turn had much to do,
    /// takes all that are there.
    fn enter(&self, is_busy: bool) -> Result<(), Failure> {
        let at_once = Timespec::new();
        let arguments = SubmitArgs::new().timespec(&at_once);
        let entered = if is_busy {
            self.ring.submitter().submit_with_args(COMPLETIONS_MAX, &arguments)
        } else {
            self.ring.submit_and_wait(1)
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Arms both multishots again where they ended, once there are buffers for them.
    fn arm(&mut self) -> Result<(), Failure> {
        if !self.is_receiving && self.datagrams.is_offered() {
            let shape = &raw const *self.receive_shape;
            let receive = opcode::RecvMsgMulti::new(Fixed(UDP), shape, self.datagrams.group());
            self.push(&receive.build().user_data(RECEIVED << 32))?;
            self.is_receiving = true;
        }
        if !self.is_reading && self.frames.is_offered() {
            // The builder of io-uring 0.7 forgets FIXED_FILE here: both flags by hand.
            let read = opcode::ReadMulti::new(Fixed(GWO), 0, self.frames.group())
                .offset(u64::MAX)
                .build()
                .flags(Flags::FIXED_FILE | Flags::BUFFER_SELECT);
            self.push(&read.user_data(READ << 32))?;
            self.is_reading = true;
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: &cqueue::Entry) -> Result<(), Failure> {
        let number = u16::try_from(completion.user_data() & 0xffff)?;
        let has_more = cqueue::more(completion.flags());
        let buffer = cqueue::buffer_select(completion.flags());
        let result = match completion.result() {
            error if error < 0 => Err(Errno::from_raw(-error)),
            bytes => Ok(u32::try_from(bytes)?),
        };
        match (completion.user_data() >> 32, result) {
            (RECEIVED, Ok(bytes)) => {
                self.is_receiving = has_more;
                let buffer = buffer.ok_or("no buffer")?;
                self.datagrams.take(buffer, bytes);
                self.inbox.push_back((buffer, usize::try_from(bytes)?));
            }
            (READ, Ok(bytes)) => {
                self.is_reading = has_more;
                let buffer = buffer.ok_or("no buffer")?;
                self.frames.take(buffer, bytes);
                self.frames_out = self.frames_out.saturating_sub(1);
                self.cut(buffer, usize::try_from(bytes)?)?;
            }
            // All buffers are in use; arm() waits for one.
            (RECEIVED, Err(Errno::ENOBUFS)) => self.is_receiving = false,
            (READ, Err(Errno::ENOBUFS)) => self.is_reading = false,
            (WRITTEN, Ok(_)) => self.merger.written(&mut self.datagrams, number),
            (SENT, Ok(_)) => self.sent += self.cutter.sent(&mut self.frames, number),
            (STOP, _) => self.is_stopping = true,
            (operation, outcome) => {
                return Err(format!("operation {operation} ended with {outcome:?}").into());
            }
        }
        Ok(())
    }

    /// A datagram, or several, is in `buffer`: remembers how each came, and merges the packets.
    fn merge(&mut self, buffer: u16, received_bytes: usize) -> Result<(), Failure> {
        let whole = self.datagrams.bytes(buffer);
        let outer_port = u16_at(whole, NAME_PORT_AT);
        let payload_bytes = usize::try_from(native_u32(whole, PAYLOAD_LENGTH_AT))?;
        let segment_bytes = segment_bytes(whole)?.unwrap_or(payload_bytes);
        let end = DATAGRAM_AT + payload_bytes;
        if end != received_bytes {
            return Err(format!("{received_bytes} bytes received, not {end}").into());
        }
        let sender = match self.sender_of_port[usize::from(outer_port)] {
            0 => self.new_sender(outer_port)?,
            sender => sender,
        };
        let items = self.merger.batch.len();
        for at in (DATAGRAM_AT..end).step_by(segment_bytes) {
            let bytes = segment_bytes.min(end - at);
            let datagram = &self.datagrams.bytes(buffer)[at..at + bytes];
            let (header, packet) = datagram.split_first_chunk().ok_or("no header")?;
            let flow = flow_of(packet);
            let origin = Origin { header: *header, sender };
            let known = &mut self.origins[usize::from(flow)];
            if *known != origin {
                *known = origin;
                self.merger.close(flow);
            }
            self.merger.add(&mut self.datagrams, flow, Span { buffer, at, bytes });
        }
        self.frames_out += self.merger.batch.len() - items;
        self.datagrams.release(buffer);
        Ok(())
    }

    /// Queues the writes of what was merged.
    fn write_frames(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.merger.batch);
        for &number in &batch {
            let parts = &self.merger.finish(&mut self.datagrams, number).parts;
            let count = u32::try_from(parts.len())?;
            let write = if let &[part] = parts.as_slice() {
                let bytes = u32::try_from(part.iov_len)?;
                let start = part.iov_base.cast_const().cast();
                opcode::Write::new(Fixed(GWI), start, bytes).offset(u64::MAX).build()
            } else {
                opcode::Writev::new(Fixed(GWI), parts.as_ptr(), count).offset(u64::MAX).build()
            };
            self.push(&write.user_data(WRITTEN << 32 | u64::from(number)))?;
        }
        self.merger.batch = batch;
        self.merger.batch.clear();
        Ok(())
    }

    /// A frame is in `buffer`: its packets go back the way their flow came.
    fn cut(&mut self, buffer: u16, bytes: usize) -> Result<(), Failure> {
        let flow = flow_of(&self.frames.bytes(buffer)[VNET_BYTES..]);
        let Origin { header, sender } = &self.origins[usize::from(flow)];
        if *sender == 0 {
            return Err("a packet of no flow came back".into());
        }
        self.cutter.add(&mut self.frames, (buffer, bytes), *sender, header)?;
        self.frames.release(buffer);
        Ok(())
    }

    /// Queues the sends of what was cut.
    fn send_letters(&mut self) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.cutter.batch);
        for &number in &batch {
            let letter = self.cutter.finish(number, &raw mut *self.remote);
            let send = opcode::SendMsg::new(Fixed(letter.sender), &raw const letter.message);
            self.push(&send.build().user_data(SENT << 32 | u64::from(number)))?;
        }
        self.cutter.batch = batch;
        self.cutter.batch.clear();
        Ok(())
    }

    /// A socket that sends from `port`, as the load balancer expects. It receives nothing.
    fn new_sender(&mut self, port: u16) -> Result<u32, Failure> {
        let socket = UdpSocket::bind((lab::TARGET, port))?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES)?;
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
        // change: leaked buffers, boxed items and letters, boxed address, shape and byte. Buffers,
        // items and letters are not touched again before the completion of the last operation that
        // uses them, and the relay outlives its ring's process.
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

/// How long the datagrams are that a received buffer holds, if it holds several.
fn segment_bytes(received: &[u8]) -> Result<Option<usize>, Failure> {
    const LEVEL_AT: usize = 8;
    const TYPE_AT: usize = 12;
    const VALUE_AT: usize = 16;
    let control_bytes = usize::try_from(native_u32(received, CONTROL_LENGTH_AT))?;
    let mut control = &received[CONTROL_AT..CONTROL_AT + control_bytes];
    while control.len() >= VALUE_AT {
        let level = i32::try_from(native_u32(control, LEVEL_AT))?;
        let kind = i32::try_from(native_u32(control, TYPE_AT))?;
        if level == libc::SOL_UDP && kind == libc::UDP_GRO {
            return Ok(Some(usize::try_from(native_u32(control, VALUE_AT))?));
        }
        // The length is a 64-bit number, the next message begins at a multiple of eight.
        let length = usize::try_from(native_u32(control, 0))?.next_multiple_of(8).max(VALUE_AT);
        control = control.get(length..).unwrap_or_default();
    }
    Ok(None)
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

/// A number as the kernel writes it; of a 64-bit one the lower half, on a little-endian machine.
fn native_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(*bytes[at..].first_chunk().expect("four bytes"))
}

/// The inner source port, which numbers the flow.
fn flow_of(packet: &[u8]) -> u16 {
    u16_at(packet, inner_port_at(packet[0]))
}
