//! A hook's output: read from a pipe with io_uring, put into the log line by line.
//!
//! A read is submitted only when poll says that there is something. One that waited in the ring
//! on a daemon's pipe would hold up the hook's end for as long as the daemon lives, and
//! `O_NONBLOCK` does not prevent that: io_uring waits on such a pipe all the same (Linux 6.18).
//!
//! The program may not end while a read is under way: tokio-uring 0.5 frees the buffer of a read
//! that nobody waits for any more before the kernel has let go of it, and Linux 6.1 hands reads of
//! pipes to a thread. So [`Reads`] knows of all, and can be closed.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time;

use super::HookAction;
use super::HookLimits;
use crate::log::Log;
use crate::log::LogEvent;
use crate::log::Value;
use crate::sys::Readiness;
use crate::types::EndpointId;

/// Bytes of one read: all that a pipe holds (pipe(7), *Pipe capacity*).
const READ_BYTES: usize = 64 << 10;

/// Time between two reads of a daemon's output that is not logged any more.
const UNSEEN_PAUSE: Duration = Duration::from_millis(20);

/// Bytes after which a line is cut in two.
const LINE_BYTES_MAX: usize = 1024;

/// The reads of all hooks' outputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Reads(Rc<ReadsState>);

#[derive(Debug, Default)]
struct ReadsState {
    under_way: Cell<usize>,
    is_closed: Cell<bool>,
    one_ended: Notify,
}

impl Reads {
    /// Begins none any more, and waits for those that are under way. Each has something to read, so
    /// that is soon.
    pub(super) async fn close(&self) {
        self.0.is_closed.set(true);
        while self.under_way() > 0 {
            self.0.one_ended.notified().await;
        }
    }

    /// How many are under way.
    pub(super) fn under_way(&self) -> usize {
        self.0.under_way.get()
    }

    fn began(&self) {
        self.0.under_way.set(self.under_way() + 1);
    }

    fn ended(&self) {
        self.0.under_way.set(self.under_way() - 1);
        self.0.one_ended.notify_one();
    }
}

/// The reading end of a hook's output, and where its lines go.
pub(super) struct Output {
    reads: Reads,
    ready: Readiness,
    pipe: tokio_uring::fs::File,
    open: bool,
    buffer: Vec<u8>,
    lines: Lines,
}

impl Output {
    /// A pipe with its two writing ends, for standard output and standard error. `hook` starts
    /// each line in the log.
    pub(super) fn new(
        reads: Reads,
        log: Log,
        hook: (HookAction, EndpointId),
        limits: HookLimits,
    ) -> io::Result<(Self, Stdio, Stdio)> {
        let (reader, writer) = io::pipe()?;
        let output = Self {
            reads,
            ready: Readiness::of(&reader).map_err(io::Error::other)?,
            pipe: tokio_uring::fs::File::from_std(File::from(OwnedFd::from(reader))),
            open: true,
            buffer: Vec::with_capacity(READ_BYTES),
            lines: Lines {
                log,
                hook,
                partial: Vec::new(),
                room: Room { bytes: limits.output_bytes, lines: limits.output_lines },
                is_cut: false,
            },
        };
        Ok((output, writer.try_clone()?.into(), writer.into()))
    }

    /// Whether somebody still has the writing end.
    pub(super) const fn is_open(&self) -> bool {
        self.open
    }

    /// Waits until there is something to read, or the end. Never returns once the end was read.
    pub(super) async fn readable(&self) -> bool {
        if !self.open {
            std::future::pending::<()>().await;
        }
        self.ready.wait().await.is_ok()
    }

    /// Reads what is there, and logs it. One read and no more: a hook that writes without end must
    /// not keep its caller from looking at the clock.
    pub(super) async fn take(&mut self) {
        if self.reads.0.is_closed.get() {
            self.open = false;
        }
        if self.open && self.ready.is_readable() {
            let buffer = std::mem::take(&mut self.buffer);
            self.reads.began();
            let (result, buffer) = self.pipe.read_at(buffer, 0).await;
            self.reads.ended();
            self.buffer = buffer;
            match result {
                Ok(count @ 1..) => self.lines.add(&self.buffer[..count]),
                Ok(0) | Err(_) => self.open = false,
            }
        }
        if !self.open {
            self.lines.finish();
        } else if !self.ready.is_readable() {
            self.ready.clear();
        }
    }

    /// Reads until the last writer is gone: a daemon must not stall on a full pipe, nor die of a
    /// closed one.
    pub(super) async fn take_until_closed(mut self) {
        while self.open && self.readable().await {
            self.take().await;
            if self.lines.is_cut {
                // Nobody will see what it writes: at its pace it would keep this thread busy.
                time::sleep(UNSEEN_PAUSE).await;
            }
        }
    }
}

/// Cuts bytes into lines for the log, up to the hook's share.
struct Lines {
    log: Log,
    hook: (HookAction, EndpointId),
    partial: Vec<u8>,
    room: Room,
    /// There was more than there was room for.
    is_cut: bool,
}

/// What is left of a hook's share of the log.
struct Room {
    bytes: usize,
    lines: usize,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.is_cut {
                return;
            }
            self.add_byte(byte);
        }
    }

    fn add_byte(&mut self, byte: u8) {
        if self.room.bytes == 0 || self.room.lines == 0 {
            self.finish();
            self.write("the rest of its output is not logged");
            self.is_cut = true;
            return;
        }
        self.room.bytes -= 1;
        if byte != b'\n' {
            self.partial.push(byte);
        }
        if byte == b'\n' || self.partial.len() == LINE_BYTES_MAX {
            self.end_line();
        }
    }

    fn finish(&mut self) {
        if !self.partial.is_empty() {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        self.room.lines = self.room.lines.saturating_sub(1);
        self.write(&String::from_utf8_lossy(&line));
    }

    fn write(&self, text: &str) {
        let (action, id) = &self.hook;
        let fields = [("endpoint", Value::Text(id)), ("action", Value::Text(action))];
        // The reference program's hooks write past its log: no level hides them.
        let line = format_args!("{action} hook for {id}: {text}");
        self.log.always(LogEvent::HookOutput, &fields, line);
    }
}
