//! Whether the health page's counters add up: every packet that came in went out or is in one drop
//! counter.
//!
//! The target must have no IPv6 on new links, or its kernel's own packets are read and counted
//! beside ours: see [`silence_kernel`].

use serde_json::Value;

use super::clock::wait_until;
use super::engine::Engine;
use super::lab::Lab;
use super::process::run;

/// What a test knows of what it sent and got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Datagrams that were sent.
    pub(crate) datagrams: u64,
    /// Inner packets that came back, and their bytes.
    pub(crate) returned: (u64, u64),
}

/// Packets and bytes.
type Sums = (u64, u64);

/// The sums of a page.
#[derive(Clone, Copy, Debug)]
struct Books {
    datagrams: u64,
    to_gwi: Sums,
    from_tun: Sums,
    drops: u64,
    encap_drops: u64,
}

/// Keeps the target's kernel from sending packets of its own on links that are yet to come.
pub(crate) fn silence_kernel(lab: &Lab) {
    let setting = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    run(&lab.topology.target(), "sh", &["-c", &format!("echo 1 > {setting}")]);
}

/// Waits until the page agrees with what is known: it may be older than the last packet.
pub(crate) fn expect_balance(engine: &Engine, known: Known) {
    let is_balanced = |books: Books| {
        let decap_drops = books.drops - books.encap_drops;
        books.datagrams == known.datagrams
            && books.to_gwi.0 + decap_drops == books.datagrams
            && books.from_tun == books.to_gwi
            && books.from_tun.0 == known.returned.0 + books.encap_drops
            && (books.encap_drops > 0 || books.from_tun == known.returned)
    };
    let expectation = || format!("the books balance: {:?}, {known:?}", books(&engine.status()));
    let what = expectation();
    wait_until(&what, || is_balanced(books(&engine.status())));
}

/// Frames that were written to all gwi links, as the kernel counts them.
pub(crate) fn frames_written(lab: &Lab, engine: &Engine) -> u64 {
    frames(lab, engine, "gwi-", "rx_packets")
}

/// Frames that left by all gwo links, as the kernel counts them.
pub(crate) fn frames_read(lab: &Lab, engine: &Engine) -> u64 {
    frames(lab, engine, "gwo-", "tx_packets")
}

fn frames(lab: &Lab, engine: &Engine, side: &str, counter: &str) -> u64 {
    let links = engine.links();
    let links = links.iter().filter(|link| link.starts_with(side));
    let frames = links.map(|link| {
        let counter = format!("/sys/class/net/{link}/statistics/{counter}");
        let text = run(&lab.topology.target(), "cat", &[&counter]);
        text.trim().parse::<u64>().unwrap_or_else(|error| panic!("{error} in {text:?}"))
    });
    frames.sum()
}

/// Packets that were written to all gwi links, as the health page counts them, once nothing is on
/// its way.
pub(crate) fn packets_written(engine: &Engine) -> u64 {
    let mut last = None;
    wait_until("the page says the same twice", || {
        let now = books(&engine.status()).to_gwi.0;
        last.replace(now) == Some(now)
    });
    last.unwrap_or_default()
}

fn books(page: &Value) -> Books {
    let threads = array(&page["udp"]["UDPPacketReceiver"]["threads"]);
    let mut books = Books {
        datagrams: threads.iter().map(|thread| number(&thread["pktsIn"])).sum(),
        to_gwi: (0, 0),
        from_tun: (0, 0),
        drops: total(&page["drops"]),
        encap_drops: 0,
    };
    for endpoint in array(&page["enis"]) {
        let gwi = &endpoint["tunnelIn"];
        books.to_gwi.0 += number(&gwi["pktsOut"]);
        books.to_gwi.1 += number(&gwi["bytesOut"]);
        for queue in [gwi, &endpoint["tunnelOut"]].iter().flat_map(|link| array(&link["threads"])) {
            books.from_tun.0 += number(&queue["pktsIn"]);
            books.from_tun.1 += number(&queue["bytesIn"]);
        }
        books.encap_drops += total(&endpoint["encapDrops"]);
    }
    books
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no array"))
}

fn total(drops: &Value) -> u64 {
    drops.as_object().unwrap_or_else(|| panic!("{drops}")).values().map(number).sum()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}
