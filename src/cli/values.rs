//! What may stand behind a flag: kinds of values, and how they are read.

use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use clap::ValueEnum;

/// How large a frame may be that is written to `gwi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MaxFrame {
    /// As large as a TUN takes it.
    #[value(name = "64k")]
    Largest,
    /// One packet, as the load balancer sent it.
    #[value(name = "mtu")]
    Mtu,
}

/// A number as the reference program reads it: the digits at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    /// What the digits say; nothing was typed where it is absent, and the default counts.
    pub value: Option<u32>,
    /// What was typed, where it was not just digits.
    pub odd: Option<String>,
}

impl Number {
    /// The number, or `default` if there is none.
    pub fn or(&self, default: u32) -> u32 {
        self.value.unwrap_or(default)
    }
}

/// Reads the digits at the start of `text`; without any, nothing was typed.
pub(super) fn number(text: &str, range: RangeInclusive<u32>) -> Result<Number, String> {
    let trimmed = text.trim_ascii_start();
    if is_negative(trimmed) {
        return Err("below 0".to_owned());
    }
    let unsigned = trimmed.strip_prefix('+').unwrap_or(trimmed);
    let digits = unsigned.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Ok(Number { value: None, odd: Some(text.to_owned()) });
    }
    let value = unsigned[..digits].parse().map_err(|_| "too large".to_owned())?;
    if !range.contains(&value) {
        return Err(format!("{value} is not in {}..={}", range.start(), range.end()));
    }
    Ok(Number { value: Some(value), odd: (digits < text.len()).then(|| text.to_owned()) })
}

fn is_negative(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The same for what the reference program takes a negative number for none of.
pub(super) fn number_or_none(text: &str, range: RangeInclusive<u32>) -> Result<Number, String> {
    if is_negative(text.trim_ascii_start()) {
        return Ok(Number { value: Some(0), odd: Some(text.to_owned()) });
    }
    number(text, range)
}

/// Where to listen: an address and a port, or a port of this host alone.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let port = |text: &str| text.parse().ok().filter(|&port: &u16| port > 0);
    if let Some(port) = port(text) {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().ok().filter(|address: &SocketAddr| address.port() > 0).ok_or_else(|| {
        "write a port like 9608, or an address too: 10.0.0.5:9608, [::1]:9608, and 0.0.0.0:9608 or \
         [::]:9608 for all"
            .to_owned()
    })
}

/// A time, or none.
pub(super) fn seconds_or_never(text: &str) -> Result<Number, String> {
    number_or_none(text, 0..=u32::MAX)
}

/// The same for a time that cannot be none. Whoever writes 0 or -1 wants flows to stay; the
/// reference program serves them, and the default does too.
pub(super) fn seconds_or_default(text: &str) -> Result<Number, String> {
    let number = seconds_or_never(text)?;
    if number.value == Some(0) {
        return Ok(Number { value: None, odd: Some(text.to_owned()) });
    }
    Ok(number)
}

/// Which version's words to speak where the versions of the reference program differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// What fleets run today.
    #[default]
    #[value(name = "3.0")]
    V3_0,
    /// `gwlbEndpointId` and `summary` in the JSON page, "GWLB endpoint" in the log.
    #[value(name = "3.2")]
    V3_2,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines as AWS's program writes them.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
    /// `key=value` pairs.
    Logfmt,
    /// To systemd-journald, by its own protocol.
    Journald,
}

/// Whose load balancer sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Amazon Web Services.
    #[default]
    Aws,
    /// Tencent Cloud.
    Tencent,
}

/// What decides which worker gets a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Steer {
    /// The load balancer's addresses and ports.
    Outer,
    /// The addresses and ports of the packet inside.
    Inner,
    /// The first, until it shows that workers get nothing.
    #[default]
    Auto,
}
