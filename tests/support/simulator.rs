//! The simulated load balancer on a thread of the test.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

use crate::sim::daemon::Daemon;
use crate::sim::report::Report;

/// A running load balancer.
#[derive(Debug)]
pub(crate) struct Simulator {
    wake: Arc<EventFd>,
    questions: Option<mpsc::Sender<mpsc::Sender<Report>>>,
    thread: Option<JoinHandle<io::Result<Report>>>,
}

impl Simulator {
    pub(crate) fn start(daemon: Daemon) -> Self {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags).expect("eventfd"));
        let (questions, received) = mpsc::channel();
        let thread = std::thread::spawn({
            let wake = Arc::clone(&wake);
            move || serve(daemon, &wake, &received)
        });
        Self { wake, questions: Some(questions), thread: Some(thread) }
    }

    /// What was counted so far.
    pub(crate) fn report(&self) -> Report {
        let (reply, answer) = mpsc::channel();
        let questions = self.questions.as_ref().expect("running");
        questions.send(reply).expect("the simulator runs");
        self.wake.write(1).expect("eventfd");
        answer.recv().expect("the simulator answers")
    }

    /// Ends the load balancer and requires that the target broke no rule.
    pub(crate) fn stop_clean(mut self) -> Report {
        let report = self.stop().expect("the simulator's sockets work");
        assert_clean(&report);
        report
    }

    fn stop(&mut self) -> io::Result<Report> {
        drop(self.questions.take());
        self.wake.write(1).expect("eventfd");
        let thread = self.thread.take().expect("stopped once");
        thread.join().expect("the simulator's thread")
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.stop();
        }
    }
}

/// Requires that no rule was broken.
pub(crate) fn assert_clean(report: &Report) {
    assert_eq!(report.breaches(), 0, "{:#?}", report.described());
    assert_eq!(report.undelivered, 0, "a host did not take its packet");
    assert_eq!(report.other_direction, 0, "a packet got the other direction's header");
}

/// Turns until nobody can ask any more.
fn serve(
    mut daemon: Daemon,
    wake: &EventFd,
    questions: &mpsc::Receiver<mpsc::Sender<Report>>,
) -> io::Result<Report> {
    loop {
        if !daemon.turn(wake.as_fd())? {
            continue;
        }
        let _ = wake.read();
        loop {
            match questions.try_recv() {
                // A test that fails meanwhile hears no answer, and needs none.
                Ok(reply) => drop(reply.send(daemon.gwlb.report())),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return Ok(daemon.gwlb.report()),
            }
        }
    }
}
