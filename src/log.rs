//! The log: lines in the reference program's form, written by a thread of their own.
//!
//! ```text
//! 2026-11-21 19:54:17.303: gwlbtun U001(core,important) : : text
//! ```
//!
//! A caller never waits: a line goes into a queue of 4,096 lines, and when the sink is so slow
//! that the queue is full the line is counted and lost. What outsiders can provoke goes through
//! [`Log::event`], which lets 10 lines a second of one event pass and then tells how many it held
//! back; an attacker cannot fill a disk. Text from outside is cut into lines and cleaned of
//! control characters before it is written.

mod limiter;
mod thresholds;

pub use thresholds::Thresholds;

use std::fmt;
use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;
use crossbeam_channel::RecvTimeoutError;
use crossbeam_channel::Sender;

use crate::sys::clock;
use crate::sys::wall_clock;
use crate::sys::wall_clock::WallTime;
use limiter::HeldBack;
use limiter::Limiter;
use limiter::Verdict;

/// Lines that wait for the sink before the next one is lost.
const QUEUE_LINES: usize = 4096;

/// How long the end of the program waits for a sink that takes nothing.
const FINISH_WAIT: Duration = Duration::from_secs(1);

/// Name of the log's thread, as the reference program calls it.
const THREAD_NAME: &str = "gwlbtun Logger";

/// What a line is about; the reference program's sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Start, stop and settings.
    Core,
    /// The UDP side.
    Udp,
    /// Endpoints and GENEVE.
    Geneve,
    /// TUN links.
    Tunnel,
    /// The health port.
    HealthCheck,
}

impl Section {
    /// Every section, in the order in which the first line of the log lists them.
    pub const ALL: [Self; 5] =
        [Self::Core, Self::Udp, Self::Geneve, Self::Tunnel, Self::HealthCheck];

    /// Name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Udp => "udp",
            Self::Geneve => "geneve",
            Self::Tunnel => "tunnel",
            Self::HealthCheck => "healthcheck",
        }
    }
}

/// How much a line matters; the reference program's levels, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work.
    Critical,
    /// An operator wants to know.
    Important,
    /// Ordinary events. The default threshold.
    Info,
    /// For the search of a fault.
    Debug,
    /// The same, at length.
    DebugDetail,
}

impl Level {
    /// Every level, most important first.
    pub const ALL: [Self; 5] =
        [Self::Critical, Self::Important, Self::Info, Self::Debug, Self::DebugDetail];

    /// Name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Important => "important",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::DebugDetail => "debugdetail",
        }
    }
}

/// A handle on the log, cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    queue: Sender<Entry>,
    shared: Arc<Shared>,
}

/// There is no room for a line.
#[derive(Debug)]
struct QueueFull;

#[derive(Debug)]
struct Shared {
    thresholds: Thresholds,
    lost: AtomicU64,
    limiter: Mutex<Limiter>,
}

#[derive(Debug)]
enum Entry {
    Line(Line),
    Finish,
}

/// One message on its way to the sink.
#[derive(Debug)]
struct Line {
    time: WallTime,
    thread: String,
    section: Section,
    level: Level,
    text: String,
}

impl Log {
    /// Starts the log's thread: lines that `thresholds` let pass go to `sink`, flushed one by one.
    ///
    /// # Errors
    /// When the host is out of threads.
    pub fn start(
        thresholds: Thresholds,
        sink: impl Write + Send + 'static,
    ) -> io::Result<(Self, LogThread)> {
        let (queue, entries) = crossbeam_channel::bounded(QUEUE_LINES);
        let (done, finished) = crossbeam_channel::bounded::<()>(0);
        let shared =
            Arc::new(Shared { thresholds, lost: AtomicU64::new(0), limiter: Mutex::default() });
        let log = Self { queue, shared };
        let writer = Writer { sink, entries, shared: Arc::clone(&log.shared) };
        thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
            let _done = done;
            writer.run();
        })?;
        let thread = LogThread { queue: log.queue.clone(), finished };
        Ok((log, thread))
    }

    /// Logs a line whose rate something else bounds: the life of an endpoint, a hook's output,
    /// start and stop.
    pub fn line(&self, section: Section, level: Level, text: fmt::Arguments<'_>) {
        if self.shows(section, level) {
            self.enqueue(section, level, text.to_string());
        }
    }

    /// Logs a line that no threshold keeps out.
    pub fn always(&self, section: Section, level: Level, text: fmt::Arguments<'_>) {
        self.enqueue(section, level, text.to_string());
    }

    /// Whether lines of `section` and `level` are written at all.
    pub fn shows(&self, section: Section, level: Level) -> bool {
        level <= self.shared.thresholds.of(section)
    }

    /// Logs an event that may happen at any rate. `event` names it: 10 lines a second pass for
    /// each name, and the number of those held back follows.
    pub fn event(
        &self,
        section: Section,
        level: Level,
        event: &'static str,
        text: fmt::Arguments<'_>,
    ) {
        if !self.shows(section, level) {
            return;
        }
        let verdict = self.shared.limiter().judge(event, clock::now());
        match verdict {
            Verdict::Pass => {}
            Verdict::PassAfter(held_back) => self.tell_held_back(section, level, &held_back),
            Verdict::HoldBack => return,
        }
        self.enqueue(section, level, text.to_string());
    }

    /// Adds to the number of lines of `event` that were held back, where somebody before the log
    /// has left some out.
    pub fn held_back(&self, event: &'static str, lines: u64) {
        if lines > 0 {
            self.shared.limiter().held_back(event, lines, clock::now());
        }
    }

    /// Writes how many lines of an event were held back; later, if there is no room now.
    fn tell_held_back(&self, section: Section, level: Level, held_back: &HeldBack) {
        if self.offer(section, level, held_back.to_string()).is_err() {
            self.held_back(held_back.event, held_back.lines);
        }
    }

    fn enqueue(&self, section: Section, level: Level, text: String) {
        if self.offer(section, level, text).is_err() {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts a line into the queue, if there is room.
    fn offer(&self, section: Section, level: Level, text: String) -> Result<(), QueueFull> {
        let current = thread::current();
        // The reference program's main thread goes by the name of the program.
        let name = current.name().filter(|&name| name != "main");
        let line = Line {
            time: wall_clock::now(),
            thread: name.unwrap_or("gwlbtun").to_owned(),
            section,
            level,
            text,
        };
        self.queue.try_send(Entry::Line(line)).map_err(|_| QueueFull)
    }
}

impl Shared {
    /// The limiter; a panic elsewhere cannot leave it in a state that matters.
    fn limiter(&self) -> std::sync::MutexGuard<'_, Limiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log's thread, for whoever ends the program.
#[derive(Debug)]
pub struct LogThread {
    queue: Sender<Entry>,
    finished: Receiver<()>,
}

impl LogThread {
    /// Waits until every line logged so far is written, a second at most.
    pub fn finish(self) {
        if self.queue.send_timeout(Entry::Finish, FINISH_WAIT).is_ok() {
            // Nothing is ever sent: the channel closes when the thread ends.
            let _ = self.finished.recv_timeout(FINISH_WAIT);
        }
    }
}

/// The thread's side.
struct Writer<S> {
    sink: S,
    entries: Receiver<Entry>,
    shared: Arc<Shared>,
}

impl<S: Write> Writer<S> {
    fn run(mut self) {
        self.announce_configuration();
        loop {
            match self.entries.recv_timeout(Duration::from_secs(1)) {
                Ok(Entry::Line(line)) => self.write(&line),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Entry::Finish) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.tell_what_is_missing(false);
        }
        self.tell_what_is_missing(true);
    }

    /// The reference program's first line, which lists the threshold of every section.
    fn announce_configuration(&mut self) {
        if self.shared.thresholds.of(Section::Core) < Level::Important {
            return;
        }
        let mut text = String::from("Logging thread started. Configuration:");
        for section in Section::ALL {
            text.push_str(section.name());
            text.push('=');
            text.push_str(self.shared.thresholds.of(section).name());
            text.push_str("  ");
        }
        self.tell(text);
    }

    /// Writes what was lost or held back, events only when their second is over (or at the end).
    fn tell_what_is_missing(&mut self, at_the_end: bool) {
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.tell(format!("{lost} log lines lost: the log's reader is too slow"));
        }
        let due = self.shared.limiter().overdue(clock::now(), at_the_end);
        for held_back in due {
            self.tell(held_back.to_string());
        }
    }

    fn tell(&mut self, text: String) {
        self.write(&Line {
            time: wall_clock::now(),
            thread: THREAD_NAME.to_owned(),
            section: Section::Core,
            level: Level::Important,
            text,
        });
    }

    /// Writes one message as as many lines as it has. A sink that fails is the service
    /// manager's to notice: there is nowhere left to say it.
    fn write(&mut self, line: &Line) {
        let _ = self.sink.write_all(line.to_string().as_bytes());
        let _ = self.sink.flush();
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (section, level) = (self.section.name(), self.level.name());
        for text in self.text.lines() {
            write!(f, "{}: {}({section},{level}) : : ", self.time, self.thread)?;
            for character in text.chars() {
                let printable = !character.is_control() || character == '\t';
                fmt::Write::write_char(f, if printable { character } else { '?' })?;
            }
            f.write_str("\n")?;
        }
        Ok(())
    }
}

/// A sink whose content a test can read.
#[cfg(test)]
pub(crate) mod page {
    use super::*;

    /// What was written, whoever holds a clone.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        /// All of it.
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::page::Page;
    use super::*;

    /// The lines less their time.
    fn lines(page: &Page) -> Vec<String> {
        let text = page.text();
        text.lines().map(|line| line["2026-11-21 19:54:17.303: ".len()..].to_owned()).collect()
    }

    #[test]
    fn a_line_has_the_form_of_the_reference() {
        let line = Line {
            time: wall_clock::now(),
            thread: "gwlbtun U001".to_owned(),
            section: Section::HealthCheck,
            level: Level::DebugDetail,
            text: "one\ntwo \x1b[31m%n%s\ttab\r".to_owned(),
        };
        let time = line.time.to_string();
        assert_eq!(time.len(), "2026-11-21 19:54:17.303".len());
        let head = format!("{time}: gwlbtun U001(healthcheck,debugdetail) : : ");
        assert_eq!(line.to_string(), format!("{head}one\n{head}two ?[31m%n%s\ttab?\n"));
    }

    #[test]
    fn what_is_below_the_threshold_stays_out() {
        let page = Page::default();
        let (log, thread) = Log::start(Thresholds::default(), page.clone()).unwrap();
        log.line(Section::Core, Level::Debug, format_args!("hidden"));
        log.always(Section::Core, Level::Debug, format_args!("a hook's words"));
        log.event(Section::Udp, Level::DebugDetail, "x", format_args!("hidden"));
        log.line(Section::Tunnel, Level::Info, format_args!("shown"));
        thread.finish();
        let lines = lines(&page);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].ends_with(
            "(core,important) : : Logging thread started. Configuration:core=info  udp=info  \
             geneve=info  tunnel=info  healthcheck=info  "
        ));
        assert!(lines[1].ends_with("(core,debug) : : a hook's words"));
        assert!(lines[2].ends_with("(tunnel,info) : : shown"));
    }

    #[test]
    fn a_flood_of_one_event_is_told_as_a_number() {
        let page = Page::default();
        let (log, thread) = Log::start(Thresholds::default(), page.clone()).unwrap();
        for n in 0..3000 {
            log.event(Section::Udp, Level::Info, "flood", format_args!("flood {n}"));
        }
        log.event(Section::Udp, Level::Info, "other", format_args!("other"));
        thread.finish();
        let text = lines(&page).join("\n");
        let passed = text.matches(": : flood ").count();
        assert!(passed < 100, "{passed} lines");
        assert!(text.contains(": : other"));
        let held_back: usize = text
            .lines()
            .filter_map(|line| line.split_once("suppressed ")?.1.split(' ').next())
            .map(|number| number.parse::<usize>().unwrap())
            .sum();
        assert_eq!(passed + held_back, 3000, "{text}");
    }

    #[test]
    fn a_sink_that_takes_nothing_blocks_nobody() {
        let (reader, writer) = io::pipe().unwrap();
        let (log, thread) = Log::start(Thresholds::default(), writer).unwrap();
        let long = "x".repeat(1000);
        for _ in 0..2 * QUEUE_LINES {
            log.line(Section::Core, Level::Info, format_args!("{long}"));
        }
        let lost = log.shared.lost.load(Ordering::Relaxed);
        assert!(lost > 0);
        thread.finish();
        drop(reader);
    }

    #[test]
    fn a_number_of_lines_is_told_later_if_there_is_no_room() {
        // Nobody takes anything from this queue, which holds nothing.
        let (queue, _entries) = crossbeam_channel::bounded(0);
        let shared = Shared {
            thresholds: Thresholds::default(),
            lost: AtomicU64::new(0),
            limiter: Mutex::default(),
        };
        let log = Log { queue, shared: Arc::new(shared) };
        log.held_back("flood", 5);
        let due = || log.shared.limiter().overdue(clock::now(), true);
        log.tell_held_back(Section::Core, Level::Info, &due()[0]);
        assert_eq!(due()[0].to_string(), "suppressed 5 more lines of flood");
        assert_eq!(log.shared.lost.load(Ordering::Relaxed), 0);
    }
}
