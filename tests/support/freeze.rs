//! Stops one thread of a program that goes on otherwise, as a debugger does.

#![expect(unsafe_code, reason = "ptrace is unsafe")]

use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::WaitPidFlag;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// A thread that stands still until this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen {
    thaw: Option<mpsc::Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Frozen {
    /// Stops the thread with this id. Needs root.
    pub(crate) fn thread(id: u32) -> Self {
        let id = Pid::from_raw(i32::try_from(id).expect("a thread id"));
        let (thaw, thawed) = mpsc::channel::<()>();
        let (stopped, is_stopped) = mpsc::channel();
        // Only the thread that traces may let go again.
        let tracer = std::thread::spawn(move || {
            ask(libc::PTRACE_SEIZE, id);
            ask(libc::PTRACE_INTERRUPT, id);
            waitpid(id, Some(WaitPidFlag::__WALL)).expect("it stops");
            stopped.send(()).expect("somebody waits");
            // Ends when the other side is dropped.
            let _ = thawed.recv();
            // A thread that has ended needs no letting go.
            let _ = ptrace(libc::PTRACE_DETACH, id);
        });
        is_stopped.recv().expect("the thread stops");
        Self { thaw: Some(thaw), tracer: Some(tracer) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.thaw.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

fn ask(request: libc::c_uint, id: Pid) {
    ptrace(request, id).unwrap_or_else(|error| panic!("ptrace {request} of {id}: {error}"));
}

fn ptrace(request: libc::c_uint, id: Pid) -> nix::Result<libc::c_long> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests neither read nor write memory of ours.
    Errno::result(unsafe { libc::ptrace(request, id.as_raw(), nothing, nothing) })
}
