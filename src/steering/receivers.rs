//! The program of the receive sockets: which of them a datagram goes to, by the flow inside.
//!
//! Without it the kernel's hash of the outer addresses and ports decides, and a load balancer that
//! uses few of those leaves workers without work. With it every flow is on its own, and so UDP
//! receive offload must be off: it merges the datagrams of one outer path, whichever flows they
//! belong to, and a merged one can go to one worker only.
//!
//! The program sees a datagram from its GENEVE header on. What it cannot read goes where the
//! kernel's hash says: a load beyond the end would end the program with socket 0, so it asks for
//! the length first.

use std::os::fd::AsFd;

use super::M1;
use super::M2;
use super::PORTS_BYTES;
use super::TCP;
use super::UDP;
use super::V4_ADDRESSES;
use super::V4_BYTES;
use super::V4_FRAGMENT;
use super::V4_IS_FRAGMENT;
use super::V4_PROTOCOL;
use super::V6_ADDRESSES;
use super::V6_BYTES;
use super::V6_NEXT_HEADER;
use super::modulus;
use crate::sys;
use crate::sys::bpf;
use crate::sys::bpf::Alu;
use crate::sys::bpf::Label;
use crate::sys::bpf::Width;
use crate::sys::bpf::classic::Cell;
use crate::sys::bpf::classic::Instruction;
use crate::sys::bpf::classic::Program;

/// A GENEVE header without options, bytes (RFC 8926 §3.4).
const GENEVE_BYTES: u32 = 8;

/// Length of the options, in words, in the header's first byte.
const OPTIONS_WORDS: u32 = 0x3f;

/// No socket has this place: the kernel's hash chooses.
const NO_CHOICE: u32 = u32::MAX;

/// Where the inner packet begins.
const PACKET_AT: Cell = Cell(0);
/// Sum of the words of both addresses.
const ADDRESSES: Cell = Cell(1);
/// Protocol and ports.
const REST: Cell = Cell(2);
/// Where the ports are.
const PORTS_AT: Cell = Cell(3);

/// Chooses by the flow inside from now on. `receivers` are the sockets of all workers, in the order
/// in which they were bound. The kernel must merge no datagrams then, or will soon be told so: what
/// it merges goes to the worker of the first flow in it.
///
/// A flow that has its datagrams on the way may be reordered, once. Sockets of another process on
/// the port are before ours in the group, and get the datagrams until they are closed.
///
/// # Errors
/// See [`bpf::attach_reuseport`].
pub fn steer_by_flow(receivers: &[impl AsFd]) -> Result<(), sys::Error> {
    let Some(any) = receivers.first() else { return Ok(()) };
    bpf::attach_reuseport(any, &program(receivers.len()))
}

/// Leaves the choice to the kernel: takes away the program that a process which was killed may
/// have left in the group.
///
/// # Errors
/// See [`bpf::detach_reuseport`].
pub fn steer_by_outer_path(receivers: &[impl AsFd]) -> Result<(), sys::Error> {
    receivers.first().map_or(Ok(()), bpf::detach_reuseport)
}

fn program(workers: usize) -> Vec<Instruction> {
    let mut p = Program::new();
    let [has_header, has_packet, v4, v6, ports, mix] = [(); 6].map(|()| p.new_label());
    p.load_len();
    p.jump_if_at_least(GENEVE_BYTES, has_header);
    p.ret(NO_CHOICE);

    p.place(has_header);
    p.load(Width::Byte, 0);
    p.alu(Alu::And, OPTIONS_WORDS);
    p.alu(Alu::ShiftLeft, 2);
    p.alu(Alu::Add, GENEVE_BYTES);
    p.store(PACKET_AT);
    jump_if_there_is(&mut p, V4_BYTES, has_packet);
    p.ret(NO_CHOICE);

    p.place(has_packet);
    p.load_x_cell(PACKET_AT);
    p.load_at_x(Width::Byte, 0);
    p.alu(Alu::ShiftRight, 4);
    p.jump_if_equal(4, v4);
    p.jump_if_equal(6, v6);
    p.ret(NO_CHOICE);

    p.place(v4);
    read_v4(&mut p, ports, mix);
    p.place(v6);
    read_v6(&mut p, ports, mix);
    p.place(ports);
    add_ports(&mut p, mix);
    p.place(mix);
    p.load_x_cell(ADDRESSES);
    p.load_cell(REST);
    p.alu(Alu::Mul, M1);
    p.alu_x(Alu::Xor);
    p.alu(Alu::Mul, M2);
    p.alu(Alu::ShiftRight, 16);
    p.alu(Alu::Mod, modulus(workers));
    p.ret_a();
    p.finish()
}

/// Goes to `label` if the packet has `bytes` bytes behind the place that A holds.
fn jump_if_there_is(p: &mut Program, bytes: u32, label: Label) {
    p.alu(Alu::Add, bytes);
    p.copy_to_x();
    p.load_len();
    p.jump_if_at_least_x(label);
}

/// Reads an IPv4 header, and goes to `ports` where there are any, else to `mix`.
fn read_v4(p: &mut Program, ports: Label, mix: Label) {
    sum_addresses(p, &V4_ADDRESSES);
    p.load_at_x(Width::Byte, V4_PROTOCOL);
    p.alu(Alu::ShiftLeft, 16);
    p.store(REST);
    // The header's length: the low half of its first byte, in words.
    p.load_at_x(Width::Byte, 0);
    p.alu(Alu::And, 0x0f);
    p.alu(Alu::ShiftLeft, 2);
    p.alu_x(Alu::Add);
    p.store(PORTS_AT);
    p.load_at_x(Width::Half, V4_FRAGMENT);
    p.jump_if_any_bit(V4_IS_FRAGMENT, mix);
    jump_if_it_has_ports(p, ports);
    p.jump(mix);
}

/// The same for IPv6.
fn read_v6(p: &mut Program, ports: Label, mix: Label) {
    let is_whole = p.new_label();
    p.load_cell(PACKET_AT);
    jump_if_there_is(p, V6_BYTES, is_whole);
    p.ret(NO_CHOICE);
    p.place(is_whole);
    p.load_x_cell(PACKET_AT);
    sum_addresses(p, &V6_ADDRESSES);
    p.load_at_x(Width::Byte, V6_NEXT_HEADER);
    p.alu(Alu::ShiftLeft, 16);
    p.store(REST);
    p.load_value(V6_BYTES);
    p.alu_x(Alu::Add);
    p.store(PORTS_AT);
    jump_if_it_has_ports(p, ports);
    p.jump(mix);
}

/// Sums what is at these places of the packet, which begins at X, and leaves X as it is.
fn sum_addresses(p: &mut Program, offsets: &[u32]) {
    p.load_value(0);
    p.store(ADDRESSES);
    for &offset in offsets {
        p.load_at_x(Width::Word, offset);
        add_to(p, ADDRESSES);
        p.load_x_cell(PACKET_AT);
    }
}

/// Adds A to a cell; X is lost.
fn add_to(p: &mut Program, cell: Cell) {
    p.load_x_cell(cell);
    p.alu_x(Alu::Add);
    p.store(cell);
}

fn jump_if_it_has_ports(p: &mut Program, ports: Label) {
    p.load_cell(REST);
    for protocol in [TCP, UDP] {
        p.jump_if_equal(protocol << 16, ports);
    }
}

/// Adds both ports, unless the packet ends before them.
fn add_ports(p: &mut Program, mix: Label) {
    let are_there = p.new_label();
    p.load_cell(PORTS_AT);
    jump_if_there_is(p, PORTS_BYTES, are_there);
    p.jump(mix);
    p.place(are_there);
    for offset in [0, 2] {
        p.load_x_cell(PORTS_AT);
        p.load_at_x(Width::Half, offset);
        add_to(p, REST);
    }
}
