//! The forms in which an event is written.
//!
//! ```text
//! text      2026-11-21 19:54:17.303: gwlbtun(core,important) : : The CREATE hook for … ended …
//! json      {"time":"2026-11-21T18:54:17.303Z","level":"important","section":"core",
//!            "event":"hook_failed","thread":"gwlbtun","message":"…","endpoint":"02b8…",…}
//! logfmt    time=2026-11-21T18:54:17.303Z level=important section=core event=hook_failed …
//! journald  a datagram of fields for journald: MESSAGE, PRIORITY, GWLBTUN_EVENT, GWLBTUN_…
//! ```
//!
//! The text is the reference program's: an event has as many lines as its message, and fields are
//! left out. In the other forms an event is one line, or one entry of the journal.

use std::fmt;
use std::fmt::Write;

use super::Level;
use super::Line;

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The reference program's.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// `key=value` pairs, one event a line.
    Logfmt,
    /// The native protocol of systemd-journald, where an event is a datagram.
    Journald,
}

/// What a field of an event holds.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// Words, a name, an address.
    Text(&'a dyn fmt::Display),
    /// A count, or the number of something.
    Number(u64),
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{:?}", text.to_string()),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// What belongs to an event besides its message: names in `snake_case`, none of [`RESERVED`].
pub type Fields<'a> = [(&'static str, Value<'a>)];

/// Names of the fields that every event has.
pub const RESERVED: [&str; 6] = ["time", "level", "section", "event", "thread", "message"];

/// A field on its way to the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Text(String),
    Number(u64),
}

/// Fields, kept until they are written.
pub(super) fn keep(fields: &Fields<'_>) -> Vec<(&'static str, Kept)> {
    let kept = fields.iter().map(|&(name, value)| {
        debug_assert!(!RESERVED.contains(&name), "every event has a field {name}");
        let kept = match value {
            Value::Text(text) => Kept::Text(text.to_string()),
            Value::Number(number) => Kept::Number(number),
        };
        (name, kept)
    });
    kept.collect()
}

impl Format {
    /// One event as bytes that are written together.
    pub(super) fn bytes(self, line: &Line) -> Vec<u8> {
        match self {
            Self::Text => line.to_string().into_bytes(),
            Self::Json => json(line).into_bytes(),
            Self::Logfmt => logfmt(line).into_bytes(),
            Self::Journald => journal_entry(line),
        }
    }
}

/// Every field of an event, those that all have first.
fn fields(line: &Line) -> impl Iterator<Item = (&'static str, Kept)> {
    let values = [
        line.time.utc().to_string(),
        line.level.name().to_owned(),
        line.section.name().to_owned(),
        line.event.id().to_owned(),
        line.thread.clone(),
        line.text.clone(),
    ];
    let first = RESERVED.into_iter().zip(values.map(Kept::Text));
    first.chain(line.fields.iter().cloned())
}

fn json(line: &Line) -> String {
    let pairs = fields(line).map(|(name, value)| match value {
        Kept::Text(text) => format!("\"{name}\":{}", quoted(&text)),
        Kept::Number(number) => format!("\"{name}\":{number}"),
    });
    format!("{{{}}}\n", pairs.collect::<Vec<_>>().join(","))
}

fn logfmt(line: &Line) -> String {
    let pairs = fields(line).map(|(name, value)| match value {
        Kept::Text(text) if is_plain(&text) => format!("{name}={text}"),
        Kept::Text(text) => format!("{name}={}", quoted(&text)),
        Kept::Number(number) => format!("{name}={number}"),
    });
    format!("{}\n", pairs.collect::<Vec<_>>().join(" "))
}

/// Whether logfmt needs no quotes around it.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\'))
}

/// A JSON string without any control character: a terminal obeys those above ASCII too.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for character in serde_json::Value::from(text).to_string().chars() {
        if character.is_control() {
            write!(out, "\\u{:04x}", u32::from(character)).expect("strings take all");
        } else {
            out.push(character);
        }
    }
    out
}

/// A message for journald, as <https://systemd.io/JOURNAL_NATIVE_PROTOCOL> has it.
fn journal_entry(line: &Line) -> Vec<u8> {
    let mut entry = Vec::new();
    add_journal_field(&mut entry, "SYSLOG_IDENTIFIER", "gwlbtun");
    add_journal_field(&mut entry, "PRIORITY", priority(line.level));
    for (name, value) in fields(line) {
        let name = match name {
            "message" => "MESSAGE".to_owned(),
            other => format!("GWLBTUN_{}", other.to_ascii_uppercase()),
        };
        match value {
            Kept::Text(text) => add_journal_field(&mut entry, &name, &text),
            Kept::Number(number) => add_journal_field(&mut entry, &name, &number.to_string()),
        }
    }
    entry
}

/// `NAME=value`, or, with line breaks inside, the name, the length as 64 bits, and the value.
fn add_journal_field(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value: String = value.chars().map(printable).collect();
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// What journalctl shows as it is; it hides entries with any other control character.
fn printable(character: char) -> char {
    match character {
        '\n' | '\t' => character,
        other if other.is_control() => '?',
        other => other,
    }
}

/// The level as syslog numbers it (RFC 5424 §6.2.1): error, notice, informational, debug.
const fn priority(level: Level) -> &'static str {
    match level {
        Level::Critical => "3",
        Level::Important => "5",
        Level::Info => "6",
        Level::Debug | Level::DebugDetail => "7",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogEvent;
    use crate::sys::wall_clock;

    fn line() -> Line {
        let fields = [("endpoint", Value::Text(&"a=b")), ("exit_status", Value::Number(7))];
        Line {
            time: wall_clock::now(),
            thread: "gwlbtun U001".to_owned(),
            event: LogEvent::HookFailed,
            section: LogEvent::HookFailed.section(),
            level: Level::Critical,
            text: "say \"no\"\n\\ \x1b[31m \u{9b}31m\ttab ü".to_owned(),
            fields: keep(&fields),
        }
    }

    fn text(format: Format, line: &Line) -> String {
        String::from_utf8(format.bytes(line)).unwrap()
    }

    #[test]
    fn an_event_is_one_object_a_line() {
        let line = line();
        let text = text(Format::Json, &line);
        assert_eq!(text.matches(|c: char| c.is_control()).count(), 1, "{text:?}");
        assert!(text.starts_with("{\"time\":\"2") && text.ends_with(",\"exit_status\":7}\n"));
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let time = line.time.utc().to_string();
        let expected = serde_json::json!({
            "time": time, "level": "critical", "section": "core", "event": "hook_failed",
            "thread": "gwlbtun U001", "message": line.text, "endpoint": "a=b", "exit_status": 7,
        });
        assert_eq!(parsed, expected);
    }

    #[test]
    fn logfmt_quotes_what_would_not_be_read_back() {
        let line = line();
        let text = text(Format::Logfmt, &line);
        let (_, after_time) = text.split_once(' ').unwrap();
        assert_eq!(
            after_time,
            "level=critical section=core event=hook_failed thread=\"gwlbtun U001\" \
             message=\"say \\\"no\\\"\\n\\\\ \\u001b[31m \\u009b31m\\ttab ü\" endpoint=\"a=b\" \
             exit_status=7\n"
        );
        assert!(text.starts_with(&format!("time={} ", line.time.utc())));
        assert!(!is_plain("") && !is_plain("a b") && !is_plain("ü") && is_plain("10.0.0.1:8"));
    }

    #[test]
    fn the_journal_gets_every_field_and_no_escape() {
        let mut line = line();
        let message = "say \"no\"\n\\ ?[31m ?31m\ttab ü";
        let time = line.time.utc();
        let head = format!(
            "SYSLOG_IDENTIFIER=gwlbtun\nPRIORITY=3\nGWLBTUN_TIME={time}\n\
             GWLBTUN_LEVEL=critical\nGWLBTUN_SECTION=core\nGWLBTUN_EVENT=hook_failed\n\
             GWLBTUN_THREAD=gwlbtun U001\n"
        );
        let tail = "GWLBTUN_ENDPOINT=a=b\nGWLBTUN_EXIT_STATUS=7\n";
        let mut expected = format!("{head}MESSAGE\n").into_bytes();
        expected.extend((message.len() as u64).to_le_bytes());
        expected.extend(format!("{message}\n{tail}").bytes());
        assert_eq!(Format::Journald.bytes(&line), expected);
        line.text = "one line".to_owned();
        let expected = format!("{head}MESSAGE=one line\n{tail}");
        assert_eq!(text(Format::Journald, &line), expected);
    }
}
