//! Classic BPF: an accumulator A, an index X, 16 scratch cells, forward jumps
//! (`Documentation/networking/filter.rst`).
//!
//! A load beyond the end of the packet ends the program with the result 0.

use nix::libc;
use nix::libc::sock_filter;

use super::Alu;
use super::Label;
use super::Width;
use super::labels::Labels;

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub struct Instruction(pub(super) sock_filter);

/// One of the scratch cells, 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell(pub u8);

/// A program in the making. What each call adds is executed in the order of the calls.
#[derive(Debug, Default)]
pub struct Program {
    code: Vec<sock_filter>,
    labels: Labels,
    /// Jumps whose way is not known yet.
    jumps: Vec<(usize, Label)>,
}

const LD: u32 = libc::BPF_LD;
const LDX: u32 = libc::BPF_LDX;
const JMP: u32 = libc::BPF_JMP;

impl Program {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, code: u32, k: u32) {
        let code = u16::try_from(code).expect("codes have 16 bits");
        self.code.push(sock_filter { code, jt: 0, jf: 0, k });
    }

    /// A = number of bytes of the packet.
    pub fn load_len(&mut self) {
        self.push(LD | libc::BPF_W | libc::BPF_LEN, 0);
    }

    /// A = what is at `offset` of the packet.
    pub fn load(&mut self, width: Width, offset: u32) {
        self.push(LD | u32::from(width.code()) | libc::BPF_ABS, offset);
    }

    /// A = what is at X + `offset` of the packet.
    pub fn load_at_x(&mut self, width: Width, offset: u32) {
        self.push(LD | u32::from(width.code()) | libc::BPF_IND, offset);
    }

    /// A = `value`.
    pub fn load_value(&mut self, value: u32) {
        self.push(LD | libc::BPF_IMM, value);
    }

    /// A = the cell.
    pub fn load_cell(&mut self, cell: Cell) {
        self.push(LD | libc::BPF_MEM, cell.0.into());
    }

    /// X = the cell.
    pub fn load_x_cell(&mut self, cell: Cell) {
        self.push(LDX | libc::BPF_MEM, cell.0.into());
    }

    /// The cell = A.
    pub fn store(&mut self, cell: Cell) {
        self.push(libc::BPF_ST, cell.0.into());
    }

    /// X = A.
    pub fn copy_to_x(&mut self) {
        self.push(libc::BPF_MISC | libc::BPF_TAX, 0);
    }

    /// A = A `alu` `value`.
    pub fn alu(&mut self, alu: Alu, value: u32) {
        self.push(libc::BPF_ALU | u32::from(alu.code()) | libc::BPF_K, value);
    }

    /// A = A `alu` X.
    pub fn alu_x(&mut self, alu: Alu) {
        self.push(libc::BPF_ALU | u32::from(alu.code()) | libc::BPF_X, 0);
    }

    /// Ends with `value`.
    pub fn ret(&mut self, value: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, value);
    }

    /// Ends with A.
    pub fn ret_a(&mut self) {
        self.push(libc::BPF_RET | libc::BPF_A, 0);
    }

    /// A name for a place that is still to come.
    pub fn new_label(&mut self) -> Label {
        self.labels.new_label()
    }

    /// What comes next is what `label` names.
    pub fn place(&mut self, label: Label) {
        self.labels.place(label, self.code.len());
    }

    /// Goes to `label`.
    pub fn jump(&mut self, label: Label) {
        self.jump_on(libc::BPF_JA, 0, label);
    }

    /// Goes to `label` if A is `value`.
    pub fn jump_if_equal(&mut self, value: u32, label: Label) {
        self.jump_on(libc::BPF_JEQ | libc::BPF_K, value, label);
    }

    /// Goes to `label` if A and `mask` have a bit in common.
    pub fn jump_if_any_bit(&mut self, mask: u32, label: Label) {
        self.jump_on(libc::BPF_JSET | libc::BPF_K, mask, label);
    }

    /// Goes to `label` if A is `value` or more.
    pub fn jump_if_at_least(&mut self, value: u32, label: Label) {
        self.jump_on(libc::BPF_JGE | libc::BPF_K, value, label);
    }

    /// Goes to `label` if A is X or more.
    pub fn jump_if_at_least_x(&mut self, label: Label) {
        self.jump_on(libc::BPF_JGE | libc::BPF_X, 0, label);
    }

    fn jump_on(&mut self, condition: u32, k: u32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(JMP | condition, k);
    }

    /// The whole program.
    ///
    /// # Panics
    /// If a label was never placed, or a conditional jump goes further than 255 instructions: a
    /// mistake in the program, which every run shows.
    pub fn finish(mut self) -> Vec<Instruction> {
        let always = u16::try_from(JMP | libc::BPF_JA).expect("codes have 16 bits");
        for (from, label) in self.jumps {
            let skipped = self.labels.skipped(label, from);
            let jump = &mut self.code[from];
            if jump.code == always {
                jump.k = u32::try_from(skipped).expect("programs are short");
            } else {
                jump.jt = u8::try_from(skipped).expect("conditional jumps are short");
            }
        }
        self.code.into_iter().map(Instruction).collect()
    }
}
