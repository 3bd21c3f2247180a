//! The simulated load balancer on a thread of the test.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;

use super::clock::wait_until;
use crate::sim::daemon::Daemon;
use crate::sim::report::Report;

/// What a test may ask of the thread.
#[derive(Debug)]
enum Question {
    Report(mpsc::Sender<Report>),
    ToggleRegistration,
    Inject(Vec<(u64, Vec<u8>)>),
}

/// A running load balancer.
#[derive(Debug)]
pub(crate) struct Simulator {
    wake: Arc<EventFd>,
    questions: Option<mpsc::Sender<Question>>,
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
        self.ask(Question::Report(reply));
        answer.recv().expect("the simulator answers")
    }

    /// Deregisters the target, or registers it anew.
    pub(crate) fn toggle_registration(&self) {
        self.ask(Question::ToggleRegistration);
    }

    /// Sends packets from clients through endpoints, by their ids. What returns is checked as every
    /// packet is, and nobody's if the endpoint has no client.
    pub(crate) fn inject(&self, packets: Vec<(u64, Vec<u8>)>) {
        self.ask(Question::Inject(packets));
    }

    /// Waits until every node says so of the target.
    pub(crate) fn wait_until_health(&self, state: &str) {
        wait_until(&format!("the target is {state}"), || {
            let nodes = self.report().nodes;
            !nodes.is_empty() && nodes.iter().all(|node| node.state == state)
        });
    }

    fn ask(&self, question: Question) {
        let questions = self.questions.as_ref().expect("running");
        questions.send(question).expect("the simulator runs");
        self.wake.write(1).expect("eventfd");
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
    questions: &mpsc::Receiver<Question>,
) -> io::Result<Report> {
    loop {
        let is_woken = daemon.turn(wake.as_fd(), false)?;
        // Tests look at the states themselves.
        drop(daemon.gwlb.take_changes());
        if !is_woken {
            continue;
        }
        let _ = wake.read();
        loop {
            match questions.try_recv() {
                // A test that fails meanwhile hears no answer, and needs none.
                Ok(Question::Report(reply)) => drop(reply.send(daemon.gwlb.report())),
                Ok(Question::ToggleRegistration) => daemon.gwlb.toggle_registration(),
                Ok(Question::Inject(packets)) => {
                    for (endpoint, inner) in packets {
                        daemon.inject(endpoint, &inner)?;
                    }
                }
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => return Ok(daemon.gwlb.report()),
            }
        }
    }
}
