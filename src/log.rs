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
//!
//! Programs that read the log ask for another [`Format`]: there each line is a [`LogEvent`] with an
//! id and fields. Lines that are lost, because the reader is too slow or because writing fails, are
//! counted, and told as soon as something can be written again; [`Log::lines_lost`] has the sum.

mod events;
mod format;
mod journal;
mod limiter;
mod thresholds;

pub use events::LogEvent;
pub use format::Fields;
pub use format::Format;
pub use format::RESERVED;
pub use format::Value;
pub use journal::Journal;
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
    format: Format,
    /// Lines for which the queue had no room and that nobody was told of.
    lost: AtomicU64,
    /// All that were lost since the start, for that or another reason.
    lost_in_all: AtomicU64,
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
    event: LogEvent,
    section: Section,
    level: Level,
    text: String,
    /// Empty where the format has no place for them.
    fields: Vec<(&'static str, format::Kept)>,
}

impl Log {
    /// Starts the log's thread: lines that `thresholds` let pass go to `sink` in `format`, each
    /// event with one write.
    ///
    /// # Errors
    /// When the host is out of threads.
    pub fn start(
        thresholds: Thresholds,
        format: Format,
        sink: impl Write + Send + 'static,
    ) -> io::Result<(Self, LogThread)> {
        let (queue, entries) = crossbeam_channel::bounded(QUEUE_LINES);
        let (done, finished) = crossbeam_channel::bounded::<()>(0);
        let shared = Arc::new(Shared {
            thresholds,
            format,
            lost: AtomicU64::new(0),
            lost_in_all: AtomicU64::new(0),
            limiter: Mutex::default(),
        });
        let log = Self { queue, shared };
        let shared = Arc::clone(&log.shared);
        let writer = Writer { sink, entries, shared, unwritten: 0, problem: String::new() };
        thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || {
            let _done = done;
            writer.run();
        })?;
        let thread = LogThread { queue: log.queue.clone(), finished };
        Ok((log, thread))
    }

    /// Logs a line whose rate something else bounds: the life of an endpoint, start and stop.
    pub fn line(&self, event: LogEvent, fields: &Fields<'_>, text: fmt::Arguments<'_>) {
        if self.shows(event.section(), event.level()) {
            self.enqueue(event, event.level(), fields, text.to_string());
        }
    }

    /// The same for a line that no threshold keeps out.
    pub fn always(&self, event: LogEvent, fields: &Fields<'_>, text: fmt::Arguments<'_>) {
        self.enqueue(event, event.level(), fields, text.to_string());
    }

    /// Lines that were lost since the start: the log's reader was too slow, or writing failed.
    pub fn lines_lost(&self) -> u64 {
        self.shared.lost_in_all.load(Ordering::Relaxed)
    }

    /// Whether lines of `section` and `level` are written at all.
    pub fn shows(&self, section: Section, level: Level) -> bool {
        level <= self.shared.thresholds.of(section)
    }

    /// Logs an event that may happen at any rate: 10 lines a second pass of each, and the number
    /// of those held back follows.
    pub fn event(&self, event: LogEvent, fields: &Fields<'_>, text: fmt::Arguments<'_>) {
        self.event_at(event.level(), event, fields, text);
    }

    /// The same where an event's lines matter more, or less, than usual.
    pub fn event_at(
        &self,
        level: Level,
        event: LogEvent,
        fields: &Fields<'_>,
        text: fmt::Arguments<'_>,
    ) {
        if !self.shows(event.section(), level) {
            return;
        }
        let verdict = self.shared.limiter().judge(event, clock::now());
        match verdict {
            Verdict::Pass => {}
            Verdict::PassAfter(held_back) => self.tell_held_back(level, &held_back),
            Verdict::HoldBack => return,
        }
        self.enqueue(event, level, fields, text.to_string());
    }

    /// Adds to the number of lines of `event` that were held back, where somebody before the log
    /// has left some out.
    pub fn held_back(&self, event: LogEvent, lines: u64) {
        if lines > 0 {
            self.shared.limiter().held_back(event, lines, clock::now());
        }
    }

    /// Writes how many lines of an event were held back, as a line of the event's own section;
    /// later, if there is no room now.
    fn tell_held_back(&self, level: Level, held_back: &HeldBack) {
        let mut line = held_back.line();
        line.section = held_back.event.section();
        line.level = level;
        if self.offer(line).is_err() {
            self.held_back(held_back.event, held_back.lines);
        }
    }

    fn enqueue(&self, event: LogEvent, level: Level, fields: &Fields<'_>, text: String) {
        let has_fields = self.shared.format != Format::Text;
        let line = Line { level, ..Line::new(event, if has_fields { fields } else { &[] }, text) };
        if self.offer(line).is_err() {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            self.shared.lost_in_all.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Puts a line into the queue, if there is room.
    fn offer(&self, line: Line) -> Result<(), QueueFull> {
        self.queue.try_send(Entry::Line(line)).map_err(|_| QueueFull)
    }
}

impl Line {
    /// A line of this moment and of the thread that calls.
    fn new(event: LogEvent, fields: &Fields<'_>, text: String) -> Self {
        let current = thread::current();
        // The reference program's main thread goes by the name of the program.
        let name = current.name().filter(|&name| name != "main");
        Self {
            time: wall_clock::now(),
            thread: name.unwrap_or("gwlbtun").to_owned(),
            event,
            section: event.section(),
            level: event.level(),
            text,
            fields: format::keep(fields),
        }
    }
}

impl HeldBack {
    fn line(&self) -> Line {
        let fields = [("of", Value::Text(&self.event.id())), ("lines", Value::Number(self.lines))];
        Line::new(LogEvent::LogLinesSuppressed, &fields, self.to_string())
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
    /// Lines that could not be written and that nobody was told of.
    unwritten: u64,
    /// Why the last of them could not.
    problem: String,
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
        let levels = Section::ALL.map(|section| self.shared.thresholds.of(section).name());
        let sections = Section::ALL.iter().zip(&levels);
        let fields: Vec<_> =
            sections.map(|(section, level)| (section.name(), Value::Text(level))).collect();
        self.write(&Line::new(LogEvent::LogStarted, &fields, text));
    }

    /// Writes what was lost or held back, events only when their second is over (or at the end).
    fn tell_what_is_missing(&mut self, at_the_end: bool) {
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.tell_lost(lost, "the log's reader is too slow");
        }
        if self.unwritten > 0 {
            let unwritten = std::mem::take(&mut self.unwritten);
            let problem = std::mem::take(&mut self.problem);
            self.tell_lost(unwritten, &problem);
        }
        let due = self.shared.limiter().overdue(clock::now(), at_the_end);
        for held_back in due {
            self.write(&held_back.line());
        }
    }

    /// Writes that lines are missing; if that fails, they still are.
    fn tell_lost(&mut self, lines: u64, reason: &str) {
        let fields = [("lines", Value::Number(lines)), ("reason", Value::Text(&reason))];
        let text = format!("{lines} log lines lost: {reason}");
        if self.put(&Line::new(LogEvent::LogLinesLost, &fields, text)).is_err() {
            self.unwritten += lines;
            reason.clone_into(&mut self.problem);
        }
    }

    /// Writes an event, or counts it.
    fn write(&mut self, line: &Line) {
        if let Err(error) = self.put(line) {
            self.unwritten += 1;
            self.shared.lost_in_all.fetch_add(1, Ordering::Relaxed);
            self.problem = format!("writing failed: {error}");
        }
    }

    fn put(&mut self, line: &Line) -> io::Result<()> {
        self.sink.write_all(&self.shared.format.bytes(line))?;
        self.sink.flush()
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
            event: LogEvent::HealthClient,
            section: Section::HealthCheck,
            level: Level::DebugDetail,
            text: "one\ntwo \x1b[31m%n%s\ttab\r".to_owned(),
            fields: Vec::new(),
        };
        let time = line.time.to_string();
        assert_eq!(time.len(), "2026-11-21 19:54:17.303".len());
        let head = format!("{time}: gwlbtun U001(healthcheck,debugdetail) : : ");
        assert_eq!(line.to_string(), format!("{head}one\n{head}two ?[31m%n%s\ttab?\n"));
    }

    #[test]
    fn what_is_below_the_threshold_stays_out() {
        let page = Page::default();
        let (log, thread) = Log::start(Thresholds::default(), Format::Text, page.clone()).unwrap();
        log.line(LogEvent::HealthClient, &[], format_args!("hidden"));
        log.always(LogEvent::PacketFromHost, &[], format_args!("shown all the same"));
        log.event_at(Level::Debug, LogEvent::Downgraded, &[], format_args!("hidden"));
        log.line(LogEvent::IoUring, &[], format_args!("shown"));
        thread.finish();
        let lines = lines(&page);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].ends_with(
            "(core,important) : : Logging thread started. Configuration:core=info  udp=info  \
             geneve=info  tunnel=info  healthcheck=info  "
        ));
        assert!(lines[1].ends_with("(tunnel,debug) : : shown all the same"));
        assert!(lines[2].ends_with("(core,info) : : shown"));
    }

    #[test]
    fn a_flood_of_one_event_is_told_as_a_number() {
        let page = Page::default();
        let (log, thread) = Log::start(Thresholds::default(), Format::Text, page.clone()).unwrap();
        for n in 0..3000 {
            log.event(LogEvent::Downgraded, &[], format_args!("flood {n}"));
        }
        log.event(LogEvent::QueueLost, &[], format_args!("other"));
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
        let (log, thread) = Log::start(Thresholds::default(), Format::Text, writer).unwrap();
        let long = "x".repeat(1000);
        for _ in 0..2 * QUEUE_LINES {
            log.line(LogEvent::Warning, &[], format_args!("{long}"));
        }
        let lost = log.shared.lost.load(Ordering::Relaxed);
        assert!(lost > 0);
        assert_eq!(log.lines_lost(), lost);
        thread.finish();
        drop(reader);
    }

    /// A disk that is full for a while.
    struct Full {
        fails: u32,
        page: Page,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.fails == 0 {
                return self.page.write(bytes);
            }
            self.fails -= 1;
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_told_when_they_can() {
        let page = Page::default();
        // The first line, "1", an attempt to tell of both, "2", and an attempt to tell of three.
        let sink = Full { fails: 5, page: page.clone() };
        let (log, thread) = Log::start(Thresholds::default(), Format::Json, sink).unwrap();
        for number in 1..=4 {
            log.line(LogEvent::Warning, &[], format_args!("{number}"));
        }
        thread.finish();
        let events: Vec<serde_json::Value> =
            page.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<_> = events.iter().map(|event| (&event["event"], &event["lines"])).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!((told[0].0, told[1].0), (&"warning".into(), &"log_lines_lost".into()));
        assert_eq!(told[1].1, 3);
        assert_eq!(
            (log.lines_lost(), &events[1]["reason"]),
            (3, &"writing failed: no storage space".into())
        );
        assert_eq!(events[2]["message"], "4");
    }

    #[test]
    fn a_number_of_lines_is_told_later_if_there_is_no_room() {
        // Nobody takes anything from this queue, which holds nothing.
        let (queue, _entries) = crossbeam_channel::bounded(0);
        let shared = Shared {
            thresholds: Thresholds::default(),
            format: Format::Text,
            lost: AtomicU64::new(0),
            lost_in_all: AtomicU64::new(0),
            limiter: Mutex::default(),
        };
        let log = Log { queue, shared: Arc::new(shared) };
        log.held_back(LogEvent::Downgraded, 5);
        let due = || log.shared.limiter().overdue(clock::now(), true);
        log.tell_held_back(Level::Info, &due()[0]);
        assert_eq!(due()[0].to_string(), "suppressed 5 more lines of downgraded");
        assert_eq!(log.shared.lost.load(Ordering::Relaxed), 0);
    }
}
