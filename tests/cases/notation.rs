//! Reads the notation of `tests/cases/README.txt`.

use std::collections::HashMap;
use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::fuzz::rig::ENDPOINT;
use crate::sim::layout;

/// A datagram and what must become of it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) datagram: Vec<u8>,
    pub(crate) outcome: Outcome,
}

/// What must become of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Dropped for this reason.
    Dropped(String),
    /// Delivered; nothing is said about answers.
    Delivered,
    /// Delivered as a packet of this flow, which returns.
    Flow { protocol: u8, ports: (u16, u16) },
}

/// The cases of a file.
///
/// # Panics
/// If it has a mistake; the message says in which case.
pub(crate) fn read(file: &str, text: &str) -> Vec<Case> {
    lines(text).iter().enumerate().map(|(number, text)| case(file, number, text)).collect()
}

/// The cases of a file as they are written, each in one line.
pub(super) fn lines(text: &str) -> Vec<String> {
    let mut written: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim_end();
        match written.last_mut() {
            _ if line.is_empty() => {}
            Some(last) if line.starts_with(' ') => last.push_str(line),
            _ => written.push(line.to_owned()),
        }
    }
    written
}

/// The datagram that these parts make, with this cookie unless they say another.
pub(super) fn datagram(parts: &str, cookie: u32, name: &str) -> Vec<u8> {
    let words = |part: &str| part.split_whitespace().map(str::to_owned).collect();
    let parts: Vec<Vec<String>> = parts.split(';').map(words).collect();
    Datagram::of(&parts, cookie, name)
}

fn case(file: &str, number: usize, text: &str) -> Case {
    let split = text.split_once(": ").and_then(|(name, rest)| Some((name, rest.split_once("=>")?)));
    let (name, (parts, outcome)) =
        split.unwrap_or_else(|| panic!("{file}: write name: parts => outcome, not {text:?}"));
    let cookie = u32::try_from(number).expect("few cases") | 0xc0de_0000;
    let named = format!("{file}: {name}");
    let outcome = self::outcome(outcome.trim(), &named);
    Case { datagram: datagram(parts, cookie, &named), name: named, outcome }
}

fn outcome(text: &str, name: &str) -> Outcome {
    let words: Vec<&str> = text.split_whitespace().collect();
    let port = |place: usize| words.get(place).map_or(0, |word| number(word, name));
    match words[..] {
        ["delivered"] => Outcome::Delivered,
        ["flow", protocol, ..] => {
            Outcome::Flow { protocol: protocol_number(protocol, name), ports: (port(2), port(3)) }
        }
        [reason] => Outcome::Dropped(reason.to_owned()),
        _ => panic!("{name}: {text:?} is no outcome"),
    }
}

fn protocol_number(word: &str, name: &str) -> u8 {
    match word {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "icmpv6" => 58,
        word => number(word, name),
    }
}

fn number<T: FromStr<Err: Debug>>(word: &str, name: &str) -> T {
    word.parse().unwrap_or_else(|error| panic!("{name}: {word:?}: {error:?}"))
}

fn hex(word: &str, name: &str) -> Vec<u8> {
    assert!(word.len().is_multiple_of(2), "{name}: {word:?} has half a byte");
    let byte = |place| u8::from_str_radix(&word[place..place + 2], 16);
    let bytes: Result<Vec<u8>, _> = (0..word.len()).step_by(2).map(byte).collect();
    bytes.unwrap_or_else(|error| panic!("{name}: {word:?}: {error}"))
}

/// The words of one part behind its name.
struct Words<'a> {
    plain: Vec<&'a str>,
    keyed: HashMap<&'a str, &'a str>,
    name: &'a str,
}

impl<'a> Words<'a> {
    fn of(words: &'a [String], name: &'a str) -> Self {
        let keyed = words.iter().filter_map(|word| word.split_once('=')).collect();
        let plain = words.iter().filter(|word| !word.contains('=')).map(String::as_str).collect();
        Self { plain, keyed, name }
    }

    fn value<T: FromStr<Err: Debug>>(&mut self, key: &str, default: T) -> T {
        self.keyed.remove(key).map_or(default, |word| number(word, self.name))
    }

    /// So many bytes in hexadecimal, zeros before them left out.
    fn bytes<const N: usize>(&mut self, key: &str, default: [u8; N]) -> [u8; N] {
        self.keyed.remove(key).map_or(default, |word| {
            let whole = format!("{word:0>width$}", width = 2 * N);
            hex(&whole, self.name).try_into().expect("as many bytes as there are")
        })
    }

    fn data(&mut self, key: &str) -> Option<Vec<u8>> {
        self.keyed.remove(key).map(|word| hex(word, self.name))
    }

    fn plain<T: FromStr<Err: Debug>>(&self, place: usize) -> T {
        let word = self.plain.get(place);
        number(word.unwrap_or_else(|| panic!("{}: a word is missing", self.name)), self.name)
    }
}

/// A datagram on its way to be whole.
#[derive(Default)]
struct Datagram {
    bytes: Vec<u8>,
    /// Where the packet begins, if it has.
    packet_at: Option<usize>,
    /// Where the packet ends; nothing as long as it goes on.
    packet_end: Option<usize>,
    /// Where a header begins whose fields wait for what follows, and what they are.
    open: Vec<(usize, Open)>,
}

/// What of a header is not written yet.
enum Open {
    Nothing,
    GeneveType,
    GeneveWords,
    V4Total,
    V4Checksum,
    V6Length,
    UdpLength,
    Checksum(u8),
    /// The number of what follows, at this place behind the header's start.
    Next(usize),
}

impl Datagram {
    fn of(parts: &[Vec<String>], cookie: u32, name: &str) -> Vec<u8> {
        let mut whole = Self::default();
        for part in parts {
            let (kind, words) = part.split_first().unwrap_or_else(|| panic!("{name}: a part"));
            let mut words = Words::of(words, name);
            whole.part(kind, &mut words, cookie);
            let unknown: Vec<_> = words.keyed.keys().collect();
            assert!(unknown.is_empty(), "{name}: {kind} knows no {unknown:?}");
        }
        whole.close();
        whole.bytes
    }

    fn part(&mut self, kind: &str, words: &mut Words<'_>, cookie: u32) {
        match kind {
            "usual" => {
                self.geneve(words);
                for option in ["endpoint", "attachment", "cookie"] {
                    self.option(option, words, cookie);
                }
            }
            "geneve" => self.geneve(words),
            "endpoint" | "attachment" | "cookie" | "option" => self.option(kind, words, cookie),
            "cut" => self.shorten(words.plain(0)),
            "less" => self.shorten(self.bytes.len() - words.plain::<usize>(0)),
            "behind" => {
                self.end_header();
                self.packet_end = Some(self.bytes.len());
                self.bytes.extend(pattern(words.plain(0)));
            }
            _ => self.inner(kind, words),
        }
    }

    /// Everything is written before what is cut off goes.
    fn shorten(&mut self, bytes: usize) {
        self.close();
        self.bytes.truncate(bytes);
    }

    fn geneve(&mut self, words: &mut Words<'_>) {
        let claimed = words.keyed.contains_key("words");
        let first = words.value("version", 0_u8) << 6 | words.value("words", 0);
        if !claimed {
            self.open.push((0, Open::GeneveWords));
        }
        if !words.keyed.contains_key("type") {
            self.open.push((0, Open::GeneveType));
        }
        self.bytes.extend([first, words.bytes("flags", [0])[0]]);
        self.bytes.extend(words.bytes("type", [0x08, 0x00]));
        self.bytes.extend(words.bytes("vni", [0; 3]));
        self.bytes.extend(words.bytes("reserved", [0; 1]));
    }

    fn option(&mut self, kind: &str, words: &mut Words<'_>, cookie: u32) {
        let (class, number, data) = match kind {
            "endpoint" => ([0x01, 0x08], 1, ENDPOINT.0.to_be_bytes().to_vec()),
            "attachment" => ([0x01, 0x08], 2, vec![0; 8]),
            "cookie" => ([0x01, 0x08], 3, cookie.to_be_bytes().to_vec()),
            _ => ([0x0a, 0xaa], 0x11, pattern(4 * words.value("words", 0_usize))),
        };
        let data = words.data("data").unwrap_or(data);
        let length = u8::try_from(data.len() / 4).expect("at most 31 words");
        self.bytes.extend(words.bytes("class", class));
        self.bytes.extend(words.bytes("type", [number]));
        let high = words.bytes("high", [0])[0];
        self.bytes.push(words.value("length", length) | high);
        self.bytes.extend(data);
    }

    fn inner(&mut self, kind: &str, words: &mut Words<'_>) {
        self.end_header();
        let at = self.bytes.len();
        if let Some(number) = number_of(kind) {
            self.next_is(number);
        }
        if matches!(kind, "ipv4" | "ipv6") && self.packet_at.is_none() {
            let is_type = |(_, open): &mut (usize, Open)| matches!(open, Open::GeneveType);
            self.packet_at = Some(at);
            if kind == "ipv6" && self.open.extract_if(.., is_type).next().is_some() {
                self.bytes[2..4].copy_from_slice(&[0x86, 0xdd]);
            }
        }
        match kind {
            "ipv4" => self.ipv4(at, words),
            "ipv6" => self.ipv6(at, words),
            "hop" | "routing" | "dest" | "fragment" | "auth" => self.extension(at, kind, words),
            "udp" | "tcp" => self.transport(at, kind, words),
            "icmp" | "icmpv6" => {
                self.bytes.extend([words.plain(0), words.plain(1), 0, 0, 0, 1, 0, 1]);
                self.open.push((at, Open::Checksum(number_of(kind).expect("it has one"))));
            }
            "bytes" => self.bytes.extend(pattern(words.plain(0))),
            "hex" => self.bytes.extend(hex(&words.plain.concat(), words.name)),
            _ => panic!("{}: {kind:?} is no part", words.name),
        }
    }

    /// The GENEVE header ends where something else begins.
    fn end_header(&mut self) {
        let is_geneve = |(_, open): &mut (usize, Open)| matches!(open, Open::GeneveWords);
        if self.open.extract_if(.., is_geneve).next().is_some() {
            self.bytes[0] |= u8::try_from((self.bytes.len() - 8) / 4).expect("63 words");
        }
    }

    /// Headers that ask what follows are told.
    fn next_is(&mut self, number: u8) {
        for (at, open) in &mut self.open {
            if let Open::Next(place) = *open {
                self.bytes[*at + place] = number;
                *open = Open::Nothing;
            }
        }
    }

    fn ipv4(&mut self, at: usize, words: &mut Words<'_>) {
        let options = words.data("options").unwrap_or_default();
        let ihl = words.value("ihl", 5 + u8::try_from(options.len() / 4).expect("few"));
        self.bytes.push(0x40 | ihl);
        self.bytes.extend(words.bytes("tos", [0]));
        self.later(words, at, "total", Open::V4Total);
        self.bytes.extend(words.value("total", 0_u16).to_be_bytes());
        self.bytes.extend(words.value("id", 1_u16).to_be_bytes());
        self.bytes.extend(words.bytes("frag", [0, 0]));
        self.bytes.push(words.value("ttl", 64));
        self.later(words, at, "proto", Open::Next(9));
        self.bytes.push(words.value("proto", 253));
        self.later(words, at, "checksum", Open::V4Checksum);
        self.bytes.extend(words.bytes("checksum", [0, 0]));
        self.bytes.extend(words.value("src", Ipv4Addr::new(10, 1, 0, 1)).octets());
        self.bytes.extend(words.value("dst", Ipv4Addr::new(10, 1, 0, 2)).octets());
        self.bytes.extend(options);
    }

    fn ipv6(&mut self, at: usize, words: &mut Words<'_>) {
        let class = u32::from(words.bytes("class", [0])[0]);
        let [a, b, c] = words.bytes("label", [0; 3]);
        let first = 6 << 28 | class << 20 | u32::from_be_bytes([0, a, b, c]);
        self.bytes.extend(first.to_be_bytes());
        self.later(words, at, "len", Open::V6Length);
        self.bytes.extend(words.value("len", 0_u16).to_be_bytes());
        self.later(words, at, "next", Open::Next(6));
        self.bytes.push(words.value("next", 59));
        self.bytes.push(words.value("hop", 64));
        let host = |last| Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last);
        self.bytes.extend(words.value("src", host(1)).octets());
        self.bytes.extend(words.value("dst", host(2)).octets());
    }

    fn extension(&mut self, at: usize, kind: &str, words: &mut Words<'_>) {
        self.later(words, at, "next", Open::Next(0));
        self.bytes.push(words.value("next", 59));
        match kind {
            "fragment" => {
                self.bytes.push(0);
                let field = words.value("offset", 0_u16) << 3 | words.value("more", 0);
                self.bytes.extend((field | words.value("reserved", 0) << 1).to_be_bytes());
                self.bytes.extend(words.value("id", 1_u32).to_be_bytes());
            }
            "auth" => {
                self.bytes.push(words.value("length", 4));
                self.bytes.extend([0; 22]);
            }
            _ => {
                let units = words.value("units", 0_usize);
                let claimed = u8::try_from(units).expect("one byte");
                self.bytes.push(words.value("length", claimed));
                // Padding (RFC 8200 §4.2), or a routing header of a type that nobody knows.
                self.bytes.extend([1, 4, 0, 0, 0, 0]);
                self.bytes.extend(vec![0; 8 * units]);
            }
        }
    }

    fn transport(&mut self, at: usize, kind: &str, words: &mut Words<'_>) {
        self.bytes.extend(words.plain::<u16>(0).to_be_bytes());
        self.bytes.extend(words.plain::<u16>(1).to_be_bytes());
        if kind == "udp" {
            self.later(words, at, "length", Open::UdpLength);
            self.bytes.extend(words.value("length", 0_u16).to_be_bytes());
        } else {
            let options = words.data("options").unwrap_or_default();
            let offset = 5 + u8::try_from(options.len() / 4).expect("few");
            self.bytes.extend([0, 0, 0, 7, 0, 0, 0, 9]);
            self.bytes.push(words.value("offset", offset) << 4);
            self.bytes.extend(words.bytes("flags", [0x10]));
            self.bytes.extend([0xff, 0xff]);
            let number = number_of(kind).expect("it has one");
            self.later(words, at, "checksum", Open::Checksum(number));
            self.bytes.extend(words.bytes("checksum", [0, 0]));
            self.bytes.extend([0, 0]);
            self.bytes.extend(options);
            return;
        }
        self.later(words, at, "checksum", Open::Checksum(17));
        self.bytes.extend(words.bytes("checksum", [0, 0]));
    }

    /// A field that the case does not say is written when all is there.
    fn later(&mut self, words: &Words<'_>, at: usize, key: &str, open: Open) {
        if !words.keyed.contains_key(key) {
            self.open.push((at, open));
        }
    }

    /// Writes what was left open.
    fn close(&mut self) {
        self.end_header();
        let end = self.packet_end.unwrap_or(self.bytes.len());
        for (at, open) in std::mem::take(&mut self.open) {
            let claimed = u16::try_from(end.saturating_sub(at)).unwrap_or_default();
            match open {
                Open::V4Total => self.put(at + 2, claimed),
                Open::V6Length => self.put(at + 4, claimed - 40),
                Open::UdpLength => self.put(at + 4, claimed),
                Open::V4Checksum => {
                    let header = at + 4 * usize::from(self.bytes[at] & 15);
                    let header = header.min(self.bytes.len());
                    let sum = !layout::fold(layout::sum(&self.bytes[at..header], 0));
                    self.put(at + 10, sum);
                }
                Open::Checksum(number) => {
                    let ip = self.packet_at.unwrap_or_default();
                    self.checksum(ip, at, end, number);
                }
                Open::Nothing | Open::GeneveType | Open::GeneveWords | Open::Next(_) => {}
            }
        }
    }

    fn put(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// The checksum of a transport header, over the addresses of the packet that begins at `ip`.
    fn checksum(&mut self, ip: usize, at: usize, end: usize, number: u8) {
        let addresses = match self.bytes[ip] >> 4 {
            4 => ip + 12..ip + 20,
            _ => ip + 8..ip + 40,
        };
        let mut start = u64::from(number) + u64::try_from(end - at).expect("small");
        start = layout::sum(&self.bytes[addresses], start);
        // RFC 792: the checksum of ICMP covers no addresses.
        let start = if number == 1 { 0 } else { start };
        let sum = match !layout::fold(layout::sum(&self.bytes[at..end], start)) {
            0 if number == 17 => u16::MAX,
            sum => sum,
        };
        let place = match number {
            6 => 16,
            17 => 6,
            _ => 2,
        };
        self.put(at + place, sum);
    }
}

/// The number under which a header announces this part.
fn number_of(kind: &str) -> Option<u8> {
    Some(match kind {
        "hop" => 0,
        "icmp" => 1,
        "ipv4" => 4,
        "tcp" => 6,
        "udp" => 17,
        "ipv6" => 41,
        "routing" => 43,
        "fragment" => 44,
        "auth" => 51,
        "icmpv6" => 58,
        "dest" => 60,
        _ => return None,
    })
}

/// Bytes of which each differs from its neighbours.
fn pattern(count: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().map(|byte| byte.wrapping_mul(37)).take(count).collect()
}
