//! Who may send: networks of IPv4 addresses, as operators write them and as a lookup wants them.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A network, `10.0.0.0/16`. Bits behind the prefix do not count; an address alone is a `/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

/// Why a text is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no IPv4 network")]
pub struct ParseNetworkError(String);

impl FromStr for Network {
    type Err = ParseNetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseNetworkError(text.to_owned());
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(refuse());
        }
        let address = address.parse().map_err(|_| refuse())?;
        let prefix = prefix.parse().ok().filter(|&prefix| prefix <= 32).ok_or_else(refuse)?;
        Ok(Self { address, prefix })
    }
}

impl Network {
    fn range(self) -> (u32, u32) {
        let free = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        let first = self.address.to_bits() & !free;
        (first, first | free)
    }
}

/// Addresses that may send: networks without order, overlap or gaps that are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceList(Vec<(u32, u32)>);

impl FromIterator<Network> for SourceList {
    fn from_iter<T: IntoIterator<Item = Network>>(networks: T) -> Self {
        let mut ranges: Vec<_> = networks.into_iter().map(Network::range).collect();
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }
}

impl SourceList {
    /// Whether `address` may send.
    pub fn allows(&self, address: Ipv4Addr) -> bool {
        let address = address.to_bits();
        let later = self.0.partition_point(|&(first, _)| first <= address);
        later.checked_sub(1).is_some_and(|place| address <= self.0[place].1)
    }

    /// The allowed addresses in ascending ranges, which neither overlap nor touch.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = RangeInclusive<u32>> + '_ {
        self.0.iter().map(|&(first, last)| first..=last)
    }
}

impl fmt::Display for SourceList {
    /// `10.0.0.0-10.0.255.255, 10.2.0.7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, &(first, last)) in self.0.iter().enumerate() {
            let separator = if place > 0 { ", " } else { "" };
            write!(f, "{separator}{}", Ipv4Addr::from_bits(first))?;
            if last > first {
                write!(f, "-{}", Ipv4Addr::from_bits(last))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> SourceList {
        text.split(',').map(|network| network.parse::<Network>().unwrap()).collect()
    }

    #[test]
    fn networks_are_joined_and_looked_up() {
        let sources = list("10.1.0.0/16,10.0.0.0/16,192.0.2.7,10.0.9.0/24,192.0.2.9/32");
        assert_eq!(sources.to_string(), "10.0.0.0-10.1.255.255, 192.0.2.7, 192.0.2.9");
        for (address, allowed) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("192.0.2.9", true),
            ("255.255.255.255", false),
        ] {
            assert_eq!(sources.allows(address.parse().unwrap()), allowed, "{address}");
        }
    }

    #[test]
    fn the_ends_of_the_address_space() {
        let all = list("128.0.0.0/1,0.0.0.0/1");
        assert_eq!(all, list("1.2.3.4/0"));
        assert!(all.allows(Ipv4Addr::UNSPECIFIED) && all.allows(Ipv4Addr::BROADCAST));
        let ends = list("255.255.255.255,0.0.0.0");
        assert_eq!(ends.ranges().len(), 2);
        assert!(ends.allows(Ipv4Addr::BROADCAST) && !ends.allows(Ipv4Addr::LOCALHOST));
        let nobody: SourceList = [].into_iter().collect();
        assert!(!nobody.allows(Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn what_is_no_network() {
        for bad in ["", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/+8", "::/0", "a"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
        assert_eq!("10.9.8.7/8".parse::<Network>().unwrap().range(), (0x0a00_0000, 0x0aff_ffff));
    }
}
