//! Statistics of network drivers, by name, and how many queues they use: what `ethtool -S` and
//! `ethtool -l` show (`include/uapi/linux/ethtool.h`).
//!
//! Each call takes the kernel's rtnl lock, and the driver may ask its device: of the running
//! program only the netdev thread calls this module.

#![expect(unsafe_code, reason = "private statistics of drivers are read by ioctl alone")]

use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::socket;

use super::Errno;
use super::Error;

/// `SIOCETHTOOL`.
const REQUEST: libc::c_int = 0x8946;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_SS_STATS: u32 = 1;

/// Bytes of a name.
const NAME_BYTES: usize = 32;

/// Statistics that a driver may have. The kernel writes as many as the driver has at that moment,
/// whatever we say: there is room for twice as many.
const COUNT_MAX: u32 = 8192;

nix::ioctl_readwrite_bad!(
    /// `SIOCETHTOOL`; what is asked for stands in the memory that the `ifreq` points to.
    siocethtool,
    REQUEST,
    libc::ifreq
);

/// Links that are devices of the host, and not made by a program.
pub fn devices() -> Vec<String> {
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let links = links.filter(|link| link.path().join("device").exists());
    links.filter_map(|link| link.file_name().into_string().ok()).collect()
}

/// The statistics of a link whose names are `wanted`; none if its driver has none of them. They are
/// not even asked for then.
///
/// # Errors
/// `ENODEV` if there is no such link, `EOPNOTSUPP` if its driver has no statistics.
pub fn statistics(link: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, u64)>, Error> {
    let fail = |call: &'static str| move |errno| Error::new(call, link, errno);
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, flags, None).map_err(fail("socket"))?;
    let ask = |words: &mut [u64], call| ask(socket.as_raw_fd(), link, words).map_err(fail(call));

    // struct ethtool_sset_info: command, reserved, mask of sets, then a count for each set.
    let mut info = [pair(ETHTOOL_GSSET_INFO, 0), 1 << ETH_SS_STATS, 0];
    ask(&mut info, "ioctl ETHTOOL_GSSET_INFO")?;
    let count = if info[1] == 0 { 0 } else { halves(info[2])[0] };
    if count == 0 || count > COUNT_MAX {
        return Ok(Vec::new());
    }
    let (count, room) = (count as usize, 2 * COUNT_MAX as usize);

    // struct ethtool_gstrings: command, set, length, and the names right behind that.
    let mut strings = vec![0_u64; 2 + room * NAME_BYTES / 8];
    strings[0] = pair(ETHTOOL_GSTRINGS, ETH_SS_STATS);
    ask(&mut strings, "ioctl ETHTOOL_GSTRINGS")?;
    let bytes: Vec<u8> = strings.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let names: Vec<_> = bytes[12..].chunks_exact(NAME_BYTES).take(count).map(name_in).collect();
    if !names.iter().any(|name| wanted(name)) {
        return Ok(Vec::new());
    }

    // struct ethtool_stats: command, count, values.
    let mut values = vec![0_u64; 1 + room];
    values[0] = pair(ETHTOOL_GSTATS, u32::try_from(count).expect("it was one"));
    ask(&mut values, "ioctl ETHTOOL_GSTATS")?;
    let named = names.into_iter().zip(values.into_iter().skip(1));
    Ok(named.filter(|(name, _)| wanted(name)).collect())
}

/// Receive queues of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveQueues {
    /// What `ethtool -L` calls them: `combined` where each sends too, or else `rx`.
    pub kind: &'static str,
    /// How many are in use.
    pub in_use: u32,
    /// How many there may be.
    pub max: u32,
}

/// The receive queues of a link; nothing if its driver uses none by now.
///
/// # Errors
/// `ENODEV` if there is no such link, `EOPNOTSUPP` if its driver does not tell.
pub fn receive_queues(link: &str) -> Result<Option<ReceiveQueues>, Error> {
    let fail = |call: &'static str| move |errno| Error::new(call, link, errno);
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, flags, None).map_err(fail("socket"))?;
    let mut words = [0; 5];
    words[0] = pair(ETHTOOL_GCHANNELS, 0);
    ask(socket.as_raw_fd(), link, &mut words).map_err(fail("ioctl ETHTOOL_GCHANNELS"))?;
    Ok(receive_queues_in(&words))
}

/// What `struct ethtool_channels` says: the command, four maxima and four counts, both in the order
/// of receive, send, other, combined.
fn receive_queues_in(words: &[u64; 5]) -> Option<ReceiveQueues> {
    let fields: Vec<u32> = words.iter().flat_map(|&word| halves(word)).collect();
    let queues = |kind, place: usize| {
        let (max, in_use) = (fields[place], fields[place + 4]);
        (in_use > 0).then_some(ReceiveQueues { kind, in_use, max })
    };
    // Drivers that have both kinds use one at a time, for the most part.
    queues("combined", 4).or_else(|| queues("rx", 1))
}

/// Two 32-bit fields of a structure.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// The same apart again.
fn halves(word: u64) -> [u32; 2] {
    let bytes = word.to_ne_bytes();
    let (halves, _) = bytes.as_chunks();
    [halves[0], halves[1]].map(u32::from_ne_bytes)
}

/// A name, which ends with its first zero.
fn name_in(field: &[u8]) -> String {
    let name = field.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// Asks the driver of `link` what `words` begins with.
fn ask(socket: libc::c_int, link: &str, words: &mut [u64]) -> Result<(), Errno> {
    // SAFETY: all fields of an interface request may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if link.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the request is valid, its name ends with a zero, and what it points to has room for
    // all that the command has the kernel write: a structure of fixed size, or twice the statistics
    // that the driver has just said that it has, and what is before them.
    unsafe { siocethtool(socket, &raw mut request) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::CloneFlags;
    use nix::sched::unshare;
    use std::process::Command;

    /// Runs in a network namespace that ends with its thread.
    fn in_private_namespace<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            body()
        };
        std::thread::spawn(run).join().unwrap()
    }

    /// A veth says of which index its peer is.
    #[test]
    fn a_driver_s_statistics_have_names() {
        let (found, peer) = in_private_namespace(|| {
            let words = ["link", "add", "one", "type", "veth", "peer", "name", "two"];
            assert!(Command::new("ip").args(words).status().unwrap().success());
            let peer = nix::net::if_::if_nametoindex("two").unwrap();
            (statistics("one", |name| name == "peer_ifindex").unwrap(), peer)
        });
        assert_eq!(found, [("peer_ifindex".to_owned(), u64::from(peer))]);
    }

    #[test]
    fn queues_are_combined_or_for_one_direction() {
        let words = |fields: [u32; 10]| {
            let mut words = [0; 5];
            for (word, two) in words.iter_mut().zip(fields.chunks(2)) {
                *word = pair(two[0], two[1]);
            }
            receive_queues_in(&words)
        };
        // The command, maxima, counts, and what is behind the structure.
        let ena = words([ETHTOOL_GCHANNELS, 0, 0, 0, 8, 0, 0, 0, 4, 77]);
        assert_eq!(ena, Some(ReceiveQueues { kind: "combined", in_use: 4, max: 8 }));
        let apart = words([ETHTOOL_GCHANNELS, 6, 5, 1, 0, 2, 3, 1, 0, 77]);
        assert_eq!(apart, Some(ReceiveQueues { kind: "rx", in_use: 2, max: 6 }));
        assert_eq!(words([ETHTOOL_GCHANNELS, 6, 5, 1, 8, 0, 3, 1, 0, 77]), None);
    }

    #[test]
    fn a_veth_says_how_many_queues_it_has() {
        in_private_namespace(|| {
            let words = "link add one numrxqueues 3 type veth peer name two";
            let ip = Command::new("ip").args(words.split(' ')).status();
            assert!(ip.unwrap().success());
            let three = ReceiveQueues { kind: "rx", in_use: 3, max: 3 };
            assert_eq!(receive_queues("one").unwrap(), Some(three));
            assert_eq!(receive_queues("lo").unwrap_err().errno, Errno::EOPNOTSUPP);
            assert_eq!(receive_queues("nobody").unwrap_err().errno, Errno::ENODEV);
        });
    }

    #[test]
    fn without_what_is_wanted_there_is_nothing() {
        in_private_namespace(|| {
            let words = ["link", "add", "one", "type", "veth", "peer", "name", "two"];
            assert!(Command::new("ip").args(words).status().unwrap().success());
            assert_eq!(statistics("one", |name| name.ends_with("_exceeded")).unwrap(), []);
            assert_eq!(statistics("lo", |_| true).unwrap_or_default(), []);
            let errno = |link| statistics(link, |_| true).unwrap_err().errno;
            assert_eq!(errno("nobody"), Errno::ENODEV);
            assert_eq!(errno("a-name-that-is-too-long"), Errno::ENODEV);
        });
    }
}
