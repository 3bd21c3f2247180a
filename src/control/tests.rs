//! Control as a whole: real links in a namespace of their own, real hooks, and workers that are
//! threads which do as they are told.

use super::*;
use crate::log::Format;
use crate::log::Thresholds;
use crate::log::page::Page;
use crate::settings::Host;
use crate::stats::report::Facts;
use crate::sys::Errno;
use crate::types::DropReason;
use crate::types::EndpointRef;
use crate::types::Offload;
use crate::types::Side;
use crate::worker::mailbox::AdmissionPlan;
use crate::worker::mailbox::Attachment;
use crossbeam_channel::RecvTimeoutError;
use crossbeam_channel::Sender;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use std::ffi::OsString;
use std::io::Read;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// A signal reaches every control of the process, so there is one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running control and its surroundings.
struct Rig {
    _alone: MutexGuard<'static, ()>,
    admission: Arc<Admission>,
    events: Mailbox<Event>,
    /// What the workers were told, in order.
    told: Receiver<(WorkerId, Command)>,
    stalled: Arc<AtomicBool>,
    /// Workers do not let go of what they are told to; the test answers for them.
    clinging: Arc<AtomicBool>,
    health: Option<u16>,
    log: Page,
    directory: PathBuf,
    control: thread::JoinHandle<Result<(), ControlError>>,
}

impl Rig {
    /// Starts control with two workers and the given flags, where `@` is a directory of the
    /// test's own. `prepare` runs in the namespace before.
    fn start(flags: &[&str], prepare: impl FnOnce() + Send + 'static) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let template = std::env::temp_dir().join("gwlbtun-test-XXXXXX");
        let directory = nix::unistd::mkdtemp(&template).unwrap();
        let settings = settings(flags, directory.to_str().unwrap());
        let listener = settings.health.map(|_| health::bind(0).unwrap());
        let health = listener.as_ref().map(|listener| listener.local_addr().unwrap().port());
        let wake = Arc::new(EventFd::new().unwrap());
        let (events, event_queue) = Mailbox::new(64, Arc::clone(&wake));
        let (tell, told) = crossbeam_channel::unbounded();
        let [stalled, clinging] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let flags = [&stalled, &clinging];
        let workers = [WorkerId(0), WorkerId(1)]
            .map(|id| worker(id, events.clone(), tell.clone(), flags.map(Arc::clone)));
        let admission = two_endpoints();
        let log = Page::default();
        let (log_handle, _) = Log::start(Thresholds::default(), Format::Text, log.clone()).unwrap();
        let permits = Arc::clone(&admission);
        let control = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            prepare();
            let (netdev, netdev_thread) =
                netdev::spawn(Offload::ALL.floor(), true, &Side::BOTH).unwrap();
            let settings = Arc::new(settings);
            let outcome = run(Parts {
                settings: Arc::clone(&settings),
                workers: workers.into(),
                events: event_queue,
                samples: crossbeam_channel::never(),
                wake,
                admission: permits,
                hook_commands: hooks::check(&settings.hooks).unwrap(),
                hook_open_files: None,
                ports: Ports { health: listener, metrics: None },
                netdev,
                spreading: Spreading::of_one_worker(),
                source_filter: None,
                service_manager: None,
                facts: Facts::default(),
                log: log_handle,
            });
            netdev_thread.join().unwrap();
            assert_eq!(links(), 0, "links are left");
            outcome
        });
        let rig = Self {
            _alone: alone,
            admission,
            events,
            told,
            stalled,
            clinging,
            health,
            log,
            directory,
            control,
        };
        // The policy is posted after the signal handlers are in place.
        rig.expect("both hear the policy", 2, |command| {
            matches!(command, Command::Policy(policy)
                if policy.other_idle == Duration::from_mins(2)
                    && policy.tcp_idle == Duration::from_secs(77))
        });
        rig
    }

    /// A worker sees the first datagram of an endpoint.
    fn announce(&self, worker: u16, id: u64) {
        let event = Event::EndpointSeen(WorkerId(worker), EndpointId(id));
        self.events.post(event).unwrap();
    }

    /// The next `count` commands, all of which must be as described.
    fn expect(&self, what: &str, count: usize, is_it: impl Fn(&Command) -> bool) -> Vec<Command> {
        let next = || self.told.recv_timeout(PATIENCE).expect(what).1;
        let commands: Vec<_> = (0..count).map(|_| next()).collect();
        assert!(commands.iter().all(is_it), "{what}: {commands:?}");
        commands
    }

    /// Both workers get the endpoint; what one of them got.
    fn expect_attach(&self, id: u64) -> Attachment {
        let mut commands = self.expect(
            "Attach",
            2,
            |command| matches!(command, Command::Attach(it) if it.id == EndpointId(id)),
        );
        let Some(Command::Attach(attachment)) = commands.pop() else {
            unreachable!("just looked at");
        };
        *attachment
    }

    fn hook_calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.directory.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The log's lines, without the head, that are not output of hooks.
    fn log_lines(&self) -> Vec<String> {
        let text = self.log.text();
        text.lines().map(|line| line.split_once(" : : ").unwrap().1.to_owned()).collect()
    }

    fn signal(&self) {
        assert!(!self.control.is_finished());
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    fn finish(self) -> Result<(), ControlError> {
        let outcome = self.control.join().unwrap();
        std::fs::remove_dir_all(&self.directory).unwrap();
        outcome
    }

    /// The health page's first line and body.
    fn health(&self) -> (String, String) {
        let port = self.health.unwrap();
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

/// A thread that turns, notes what it is told, and lets go of what it is told to.
fn worker(
    id: WorkerId,
    events: Mailbox<Event>,
    tell: Sender<(WorkerId, Command)>,
    [stalled, clinging]: [Arc<AtomicBool>; 2],
) -> WorkerLink {
    let (mailbox, commands) = Mailbox::new(64, Arc::new(EventFd::new().unwrap()));
    let cell = Arc::new(WorkerCell::default());
    let heartbeat = Arc::clone(&cell);
    thread::spawn(move || {
        loop {
            if !stalled.load(Ordering::Relaxed) {
                heartbeat.last_turn.set(clock::now());
            }
            let command: Command = match commands.recv_timeout(Duration::from_millis(20)) {
                Ok(command) => command,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Command::Detach(endpoint) = command
                && !clinging.load(Ordering::Relaxed)
            {
                events.post(Event::Detached(id, endpoint)).unwrap();
            }
            let stop = matches!(command, Command::Stop);
            let _ = tell.send((id, command));
            if stop {
                break;
            }
        }
    });
    // No thread has this number: nobody is tied to a core.
    WorkerLink { id, thread_id: u32::MAX, mailbox, cell }
}

/// How many links of endpoints the calling thread's namespace has.
fn links() -> usize {
    let output = std::process::Command::new("ip").args(["-o", "link"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().matches(": gw").count()
}

/// What the flags mean, where `@` is the directory.
fn settings(flags: &[&str], directory: &str) -> Settings {
    let words = ["gwlbtun", "-i", "77"].into_iter().chain(flags.iter().copied());
    let words: Vec<OsString> = words.map(|word| word.replace('@', directory).into()).collect();
    let host = Host { cpus: vec![0, 0], ram_bytes: 0 };
    let settings = Settings::new(&crate::cli::parse(words).unwrap(), &host).unwrap();
    Settings { stranger_idle: Duration::from_secs(1), ..settings }
}

/// Two endpoints at a time, and no limit to how fast they may come.
fn two_endpoints() -> Arc<Admission> {
    Arc::new(Admission::new(AdmissionPlan {
        workers: 2,
        endpoints_max: 2,
        burst: 100,
        interval: Duration::from_millis(1),
        allowed: None,
    }))
}

/// A hook that notes its call, and how many links there are then.
const NOTE: &str = "note() { echo $1 $2 $4 $(ip -o link | grep -c ': gw') >> @/calls; }; note";

#[test]
fn an_endpoint_lives_idles_away_lives_again_and_ends_with_the_program() {
    let rig = Rig::start(&["-c", NOTE, "-r", NOTE, "-t", "1"], || {});
    rig.announce(0, 1);
    rig.announce(1, 1);
    let first = rig.expect_attach(1).endpoint;
    assert_eq!(
        rig.hook_calls(),
        ["CREATE gwi-1 00000000000000001 2"],
        "CREATE ends before anything is attached"
    );
    assert!(rig.admission.begin(clock::now()).is_ok(), "both announcements took one permit");
    rig.admission.release();

    expect_idle(&rig, first);
    assert_eq!(rig.hook_calls()[1..], ["DESTROY gwi-1 00000000000000001 2"]);

    rig.announce(1, 1);
    let second = rig.expect_attach(1);
    assert_eq!(second.endpoint.slot, first.slot);
    assert_ne!(second.endpoint.generation, first.generation);
    // Traffic that never ends, as far as this test is concerned.
    let later = clock::now().after(Duration::from_hours(1));
    second.cell.last_seen.set(later);
    rig.announce(0, 2);
    rig.expect_attach(2).cell.last_seen.set(later);
    assert!(rig.admission.begin(clock::now()).is_err(), "two endpoints hold both permits");

    rig.signal();
    let is_end = |command: &Command| matches!(command, Command::Closing(_) | Command::Stop);
    rig.expect("the end", 6, is_end);
    let log = rig.log.clone();
    let calls = rig.directory.join("calls");
    let calls = std::fs::read_to_string(calls).unwrap();
    let last: Vec<_> = calls.lines().rev().take(2).collect();
    assert_eq!(last[0], "DESTROY gwi-2 00000000000000002 4");
    assert_eq!(last[1], "DESTROY gwi-1 00000000000000001 4");
    rig.finish().unwrap();

    let text = log.text();
    let lines: Vec<_> = text.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    // A permit was refused above, which control may have noticed before the end.
    let lines: Vec<_> = lines.into_iter().filter(|line| !line.contains("refused")).collect();
    let one = "gwi-1 and gwo-1 for ENI ID 00000000000000001";
    let two = "gwi-2 and gwo-2 for ENI ID 00000000000000002";
    let expected = [
        concat!(
            "AWS Gateway Load Balancer Tunnel Handler v",
            env!("CARGO_PKG_VERSION"),
            " started."
        )
        .to_owned(),
        format!("New interface {one} created."),
        format!("Removing interface {one}."),
        format!("New interface {one} created."),
        format!("New interface {two} created."),
        "Shutting down.".to_owned(),
        format!("Removing interface {one}."),
        format!("Removing interface {two}."),
    ];
    let expected = expected.map(|text| format!("gwlbtun(core,important) : : {text}"));
    assert_eq!(lines[1..], expected, "behind the line that lists the levels");
}

#[test]
fn links_that_cannot_be_made_are_told_once_and_tried_again() {
    let rig = Rig::start(&["-c", NOTE], || {
        let made =
            std::process::Command::new("ip").args(["tuntap", "add", "gwx", "mode", "tun"]).status();
        assert!(made.unwrap().success());
        let renamed =
            std::process::Command::new("ip").args(["link", "set", "gwx", "name", "gwi-5"]).status();
        assert!(renamed.unwrap().success());
        thread::spawn(|| {
            // The test's own link must be gone when the rig counts, and not before two attempts.
            nix::unistd::sleep(6);
            let _ = std::process::Command::new("ip").args(["link", "del", "gwi-5"]).status();
        });
    });
    for _ in 0..2 {
        rig.announce(1, 5);
        let failed = DropReason::EndpointFailed;
        rig.expect("Forget", 1, |command| {
            matches!(command, Command::Forget(id, reason) if id.0 == 5 && *reason == failed)
        });
    }
    // The back-off is over when the workers are told, and so is the other endpoint's business.
    rig.announce(0, 6);
    rig.expect_attach(6);
    let complaints = rig.log_lines();
    let complaints: Vec<_> = complaints.iter().filter(|line| line.contains("failed")).collect();
    assert_eq!(
        complaints,
        ["Creating the interfaces for ENI ID 00000000000000005 failed: ioctl TUNSETIFF(gwi-5): \
          Device or resource busy."]
    );
    assert_eq!(rig.hook_calls(), ["CREATE gwi-6 00000000000000006 3"]);
    nix::unistd::sleep(4);
    rig.signal();
    rig.finish().unwrap();
}

#[test]
fn a_worker_that_fails_ends_the_program_in_order() {
    let rig = Rig::start(&["-r", NOTE], || {});
    rig.announce(0, 9);
    rig.expect_attach(9);
    let error = sys::Error::new("io_uring_enter", "ring", Errno::EBADF);
    rig.events.post(Event::Failed(WorkerId(1), error)).unwrap();
    let is_end = |command: &Command| matches!(command, Command::Closing(_) | Command::Stop);
    rig.expect("the end", 4, is_end);
    assert_eq!(rig.hook_calls(), ["DESTROY gwi-9 00000000000000009 2"]);
    let failure = rig.finish().unwrap_err();
    assert_eq!(failure.to_string(), "worker 1 has ended: io_uring_enter(ring): Bad file number");
}

#[test]
fn a_hook_that_fails_stops_nothing_and_a_second_signal_ends_one_that_hangs() {
    let rig = Rig::start(&["-c", "exit 3;", "-r", "sleep 60;", "-p1", "-j"], || {});
    rig.announce(0, 9);
    rig.expect_attach(9);
    let (status, body) = rig.health();
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(body.contains("\"hookFailures\":1"), "{body}");
    assert!(body.contains("\"eniStr\":\"00000000000000009\""), "{body}");
    rig.signal();
    rig.expect("Closing", 2, |command| matches!(command, Command::Closing(_)));
    rig.signal();
    rig.expect("Stop", 2, |command| matches!(command, Command::Stop));
    let lines = rig.log_lines();
    assert!(lines.contains(
        &"The CREATE hook for ENI ID 00000000000000009 ended with exit status 3.".to_owned()
    ));
    rig.finish().unwrap();
}

#[test]
fn the_health_page_tells_of_stalls() {
    let rig = Rig::start(&["-p1", "-j"], || {});
    assert_eq!(rig.health().0, "HTTP/1.1 200 OK");
    let until = |status: &str, reason: &str| {
        loop {
            let (line, body) = rig.health();
            if line.contains(status) && body.contains(reason) {
                break;
            }
            thread::park_timeout(Duration::from_millis(50));
        }
    };
    rig.stalled.store(true, Ordering::Relaxed);
    until("503", "worker 1 made no turn for");
    rig.stalled.store(false, Ordering::Relaxed);
    until("200", "\"reasons\":[]");
    rig.signal();
    rig.finish().unwrap();
}

/// Nobody has to ask for it, and what one worker told, others may tell later.
#[test]
fn r26_an_endpoint_that_lost_a_link_lives_again_at_once() {
    let rig = Rig::start(&["-c", NOTE, "-r", NOTE, "-p1", "-j"], || {});
    rig.announce(0, 9);
    let first = rig.expect_attach(9).endpoint;
    for worker in [WorkerId(0), WorkerId(1)] {
        let lost = Event::QueueLost(worker, first, Side::Gwo, Errno::EBADFD);
        rig.events.post(lost).unwrap();
    }
    rig.expect("Closing", 2, |command| matches!(command, Command::Closing(_)));
    rig.expect("Detach", 2, |command| matches!(command, Command::Detach(_)));
    let second = rig.expect_attach(9).endpoint;
    assert_eq!(second.slot, first.slot);
    assert_ne!(second.generation, first.generation);
    let calls = rig.hook_calls();
    let kinds: Vec<_> = calls.iter().filter_map(|call| call.split(' ').next()).collect();
    assert_eq!(kinds, ["CREATE", "DESTROY", "CREATE"]);
    let told = "ENI ID 00000000000000009: gwo-9 was deleted.";
    assert_eq!(rig.log.text().matches(told).count(), 1, "{}", rig.log.text());
    assert!(rig.admission.begin(clock::now()).is_ok(), "it has one permit, as every endpoint");
    rig.admission.release();
    rig.signal();
    rig.finish().unwrap();
}

#[test]
fn while_the_program_stops_the_health_page_says_so_at_once() {
    const WAIT: &str = "wait_for_go() { echo $1 >> @/calls; \
                        while [ ! -e @/go ]; do sleep 0.05; done; }; wait_for_go";
    let rig = Rig::start(&["-r", WAIT, "-p1", "-j"], || {});
    rig.announce(0, 9);
    rig.expect_attach(9);
    // The page of this request is younger than the end of the program.
    assert_eq!(rig.health().0, "HTTP/1.1 200 OK");
    rig.signal();
    rig.expect("Closing", 2, |command| matches!(command, Command::Closing(_)));
    let (status, body) = rig.health();
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains("\"reasons\":[\"the program is stopping\"]"), "{body}");
    assert!(body.contains("\"healthy\":false"), "{body}");
    std::fs::write(rig.directory.join("go"), "").unwrap();
    rig.finish().unwrap();
}

#[test]
fn with_compat_3_2_log_and_page_speak_of_vpc_endpoints() {
    let rig = Rig::start(&["--compat", "3.2", "-c", "exit 3;", "-p1", "-j"], || {});
    rig.announce(0, 9);
    rig.expect_attach(9);
    let body = rig.health().1;
    assert!(body.contains("\"gwlbEndpointId\":\"vpce-00000000000000009\""), "{body}");
    rig.signal();
    let log = rig.log.clone();
    rig.finish().unwrap();
    let text = log.text();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(" : : ")).collect();
    let told: Vec<_> =
        lines.iter().map(|(_, line)| *line).filter(|line| line.contains("vpce-")).collect();
    assert_eq!(
        told,
        [
            "New interface gwi-9 and gwo-9 for GWLB endpoint vpce-00000000000000009 created.",
            "The CREATE hook for GWLB endpoint vpce-00000000000000009 ended with exit status 3.",
            "Removing interface gwi-9 and gwo-9 for GWLB endpoint vpce-00000000000000009.",
        ]
    );
    assert!(!text.contains("ENI ID"), "{text}");
}

/// Whatever each worker was told about an endpoint that has gone idle.
fn expect_idle(rig: &Rig, endpoint: EndpointRef) {
    rig.expect(
        "idle: Closing and Detach, each worker at its own pace",
        4,
        |command| matches!(command, Command::Closing(it) | Command::Detach(it) if *it == endpoint),
    );
}

#[test]
fn an_endpoint_that_returns_needs_no_second_permit() {
    let rig = Rig::start(&["-t", "1"], || {});
    rig.announce(0, 1);
    let first = rig.expect_attach(1);
    rig.announce(0, 2);
    let later = clock::now().after(Duration::from_hours(1));
    rig.expect_attach(2).cell.last_seen.set(later);
    assert!(rig.admission.begin(clock::now()).is_err(), "the house is full");
    // Datagrams came for it while DESTROY ran, so a worker announces it when it lets go.
    rig.clinging.store(true, Ordering::Relaxed);
    expect_idle(&rig, first.endpoint);
    rig.events.post(Event::Detached(WorkerId(0), first.endpoint)).unwrap();
    rig.announce(0, 1);
    rig.events.post(Event::Detached(WorkerId(1), first.endpoint)).unwrap();
    let second = rig.expect_attach(1);
    assert_ne!(second.endpoint, first.endpoint);
    assert!(rig.admission.begin(clock::now()).is_err(), "the house is full again");
    rig.signal();
    rig.finish().unwrap();
}

#[test]
fn an_idle_stranger_makes_room_for_the_next_endpoint() {
    let rig = Rig::start(&["-c", NOTE, "-r", NOTE], || {});
    rig.announce(0, 1);
    let stranger = rig.expect_attach(1);
    rig.announce(0, 2);
    rig.expect_attach(2).cell.answered_flows.add(1);
    // It is refused as long as there is no room, and its packets go on to come.
    let next = || loop {
        match rig.told.recv_timeout(Duration::from_millis(50)) {
            Ok((_, Command::Forget(EndpointId(3), DropReason::EndpointLimit))) => {}
            Ok((_, command)) => return command,
            Err(_) => rig.announce(0, 3),
        }
    };
    let mut attached = 0;
    while attached < 2 {
        let command = next();
        if let Command::Attach(attachment) = &command {
            assert_eq!(attachment.id, EndpointId(3));
            attached += 1;
        } else {
            let goes = matches!(command, Command::Closing(it) | Command::Detach(it)
                if it == stranger.endpoint && attached == 0);
            assert!(goes, "{command:?}");
        }
    }
    let calls = rig.hook_calls();
    assert_eq!(calls[2], "DESTROY gwi-1 00000000000000001 4", "{calls:?}");
    assert_eq!(calls[3], "CREATE gwi-3 00000000000000003 4", "{calls:?}");
    let log = rig.log.clone();
    rig.signal();
    rig.finish().unwrap();
    let text = log.text();
    let told = "There is no room for another endpoint: 1 go that are idle and never had a flow";
    assert!(text.contains(told), "{text}");
}

#[test]
fn a_slot_is_not_used_again_while_a_worker_clings_to_it() {
    let rig = Rig::start(&["-t", "1"], || {});
    rig.clinging.store(true, Ordering::Relaxed);
    rig.announce(0, 1);
    let first = rig.expect_attach(1).endpoint;
    expect_idle(&rig, first);
    rig.events.post(Event::Detached(WorkerId(0), first)).unwrap();
    while !rig.log_lines().iter().any(|line| line.contains("1 workers did not let go")) {
        thread::park_timeout(Duration::from_millis(50));
    }
    rig.announce(0, 2);
    let other = rig.expect_attach(2);
    assert_ne!(other.endpoint.slot, first.slot, "worker 1 still has the first one there");
    // The end of the program does not wait for that worker either.
    rig.signal();
    rig.finish().unwrap();
}

/// A hook that notes its call and ends when there is a file `go`.
const WAIT: &str = "wait_for_go() { echo $1 $2 >> @/calls; \
                    while [ ! -e @/go ]; do sleep 0.05; done; }; wait_for_go";

fn is_closing(command: &Command, endpoint: EndpointRef) -> bool {
    matches!(command, Command::Closing(it) if *it == endpoint)
}

#[test]
fn at_the_end_each_endpoint_is_served_until_its_own_destroy_begins() {
    let rig = Rig::start(&["-r", WAIT], || {});
    let endpoints = [1, 2].map(|id| {
        rig.announce(0, id);
        rig.expect_attach(id).endpoint
    });
    rig.signal();
    rig.expect("the first is closing", 2, |command| is_closing(command, endpoints[0]));
    while rig.hook_calls() != ["DESTROY gwi-1"] {
        thread::park_timeout(Duration::from_millis(20));
    }
    assert!(rig.told.is_empty(), "the second is served while it waits for its turn");
    let removals = || rig.log_lines().iter().filter(|line| line.starts_with("Removing")).count();
    assert!(removals() < 2, "the log's thread takes its time");
    std::fs::write(rig.directory.join("go"), "").unwrap();
    rig.expect("the second is closing, and the end", 4, |command| {
        is_closing(command, endpoints[1]) || matches!(command, Command::Stop)
    });
    assert_eq!(rig.hook_calls(), ["DESTROY gwi-1", "DESTROY gwi-2"]);
    rig.finish().unwrap();
}

#[test]
fn no_create_begins_once_the_end_was_asked_for() {
    let rig = Rig::start(&["-c", WAIT, "-r", WAIT], || {});
    rig.announce(0, 1);
    while rig.hook_calls().is_empty() {
        thread::park_timeout(Duration::from_millis(20));
    }
    rig.announce(1, 2);
    while rig.log_lines().iter().filter(|line| line.starts_with("New interface")).count() < 2 {
        thread::park_timeout(Duration::from_millis(20));
    }
    rig.signal();
    while !rig.log_lines().contains(&"Shutting down.".to_owned()) {
        thread::park_timeout(Duration::from_millis(20));
    }
    std::fs::write(rig.directory.join("go"), "").unwrap();
    rig.expect("both are told", 4, |command| {
        matches!(command, Command::Forget(_, DropReason::Shutdown) | Command::Stop)
    });
    // What began is undone, what did not begin is not.
    assert_eq!(rig.hook_calls(), ["CREATE gwi-1", "DESTROY gwi-1"]);
    rig.finish().unwrap();
}
