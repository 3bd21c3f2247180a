//! What can be asked of a running program by its control socket: one line, as it is typed behind
//! the program's name.
//!
//! ```text
//! client ── status --json\n ──▶ program
//! client ◀── 0\n{"schema_version":1, … }\n ── program, which then closes
//! ```
//!
//! The first line of the answer is the client's exit status, see [`Answer`]; all else is for its
//! standard output, or for standard error where nothing was answered.

use std::fmt;
use std::str::FromStr;

/// Name of the control socket in the abstract namespace of unix(7), which each network namespace
/// has for itself.
pub const CONTROL_SOCKET: &str = "gwlbtun";

/// Longest request, bytes.
pub const REQUEST_BYTES_MAX: usize = 64;

/// Something that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What about.
    pub about: About,
    /// Whether as JSON, for programs.
    pub json: bool,
}

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// Whether it is well, on one page.
    Status,
    /// All about one thing.
    Topic(Topic),
}

/// One thing to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// The endpoints, by id.
    Endpoints,
    /// The workers, by number.
    Workers,
    /// Drops by reason.
    Drops,
    /// Hooks that run, and those that ran last.
    Hooks,
    /// What is in use of all that this kernel offers.
    Features,
    /// The settings.
    Config,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Endpoints, Self::Workers, Self::Drops, Self::Hooks, Self::Features, Self::Config];

    /// What it is called on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Workers => "workers",
            Self::Drops => "drops",
            Self::Hooks => "hooks",
            Self::Features => "features",
            Self::Config => "config",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text asks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRequestError {
    /// It is the name of no topic.
    #[error("write endpoints, workers, drops, hooks, features or config")]
    Topic,
    /// It is no request at all.
    #[error("write status or show TOPIC, and --json behind it")]
    Request,
}

impl FromStr for Topic {
    type Err = ParseRequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|topic| topic.name() == text);
        named.ok_or(ParseRequestError::Topic)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.about {
            About::Status => f.write_str("status")?,
            About::Topic(topic) => write!(f, "show {topic}")?,
        }
        f.write_str(if self.json { " --json" } else { "" })
    }
}

impl FromStr for Request {
    type Err = ParseRequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words: Vec<_> = text.split_ascii_whitespace().collect();
        let json = words.last() == Some(&"--json");
        if json {
            words.pop();
        }
        let about = match words[..] {
            ["status"] => About::Status,
            ["show", topic] => About::Topic(topic.parse()?),
            _ => return Err(ParseRequestError::Request),
        };
        Ok(Self { about, json })
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The exit status of whoever asked.
    pub exit_status: u8,
    /// Lines to print.
    pub text: String,
}

impl Answer {
    /// Exit status where the program runs and does not answer what was asked.
    pub const REFUSED: u8 = 4;

    /// Nothing is answered, for this reason.
    pub fn refusal(reason: impl fmt::Display) -> Self {
        Self { exit_status: Self::REFUSED, text: format!("{reason}\n") }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.exit_status, self.text)
    }
}

impl FromStr for Answer {
    type Err = ParseRequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (status, text) = text.split_once('\n').ok_or(ParseRequestError::Request)?;
        let exit_status = status.parse().map_err(|_| ParseRequestError::Request)?;
        Ok(Self { exit_status, text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_read_as_it_is_written() {
        let topics = Topic::ALL.map(About::Topic);
        for about in topics.into_iter().chain([About::Status]) {
            for json in [false, true] {
                let request = Request { about, json };
                assert_eq!(request.to_string().parse(), Ok(request));
                assert!(request.to_string().len() < REQUEST_BYTES_MAX);
            }
        }
        for (text, error) in [
            ("", ParseRequestError::Request),
            ("--json", ParseRequestError::Request),
            ("status all", ParseRequestError::Request),
            ("show", ParseRequestError::Request),
            ("show nothing", ParseRequestError::Topic),
            ("show config drops", ParseRequestError::Request),
        ] {
            assert_eq!(text.parse::<Request>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn so_is_every_answer() {
        let answer = Answer { exit_status: 2, text: "FAILED\n\nlines\n".to_owned() };
        assert_eq!(answer.to_string().parse(), Ok(answer));
        for text in ["", "0", "x\nlines", "256\n"] {
            assert!(text.parse::<Answer>().is_err(), "{text:?}");
        }
    }
}
