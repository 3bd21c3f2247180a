//! Who may send, and which endpoints there may be, as the operator lists them.

use crate::types::EndpointId;
use crate::types::Network;
use crate::types::ParseNetworkError;
use crate::types::SourceList;

/// Most networks: each is two instructions of a program that looks at every datagram.
const NETWORKS_MAX: usize = 256;

/// Hexadecimal digits of an endpoint's id, as the console shows it.
const ID_DIGITS: usize = 17;

/// What is wrong with a list of networks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourcesError {
    /// `10.0.0.0/33`
    #[error(transparent)]
    NotANetwork(#[from] ParseNetworkError),
    /// More than 256.
    #[error("{0} networks, and there is room for {NETWORKS_MAX}")]
    TooMany(usize),
}

/// The networks of all `lists`; nothing if there is no list. A list that is empty, as a variable
/// that is not set, is wrong: it must not open what it was to close.
pub(super) fn sources(lists: &[String]) -> Result<Option<SourceList>, SourcesError> {
    let words = lists.iter().flat_map(|list| list.split(','));
    let networks: Vec<Network> = words.map(|word| word.trim().parse()).collect::<Result<_, _>>()?;
    let sources: SourceList = networks.into_iter().collect();
    let count = sources.ranges().len();
    if count > NETWORKS_MAX {
        return Err(SourcesError::TooMany(count));
    }
    Ok((count > 0).then_some(sources))
}

/// The ids of all `lists` in ascending order; nothing if there is no list.
///
/// # Errors
/// The word that is no id: one that lost a digit would shut a customer out.
pub(super) fn endpoints(lists: &[String]) -> Result<Option<Vec<EndpointId>>, String> {
    let words = lists.iter().flat_map(|list| list.split(','));
    let mut ids = words.map(endpoint).collect::<Result<Vec<_>, _>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok((!ids.is_empty()).then_some(ids))
}

fn endpoint(word: &str) -> Result<EndpointId, String> {
    let word = word.trim();
    let id = word.parse().map_err(|_| word.to_owned())?;
    if word.trim_start_matches("vpce-").len() != ID_DIGITS {
        return Err(word.to_owned());
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(lists: &[&str]) -> Vec<String> {
        lists.iter().map(|&list| list.to_owned()).collect()
    }

    #[test]
    fn networks_of_all_lists() {
        assert_eq!(sources(&[]), Ok(None));
        let both = sources(&lists(&["10.0.1.0/24, 10.0.3.0/24", "10.0.2.0/24"])).unwrap().unwrap();
        assert_eq!(both.to_string(), "10.0.1.0-10.0.3.255");
        for wrong in ["", "10.0.1.0/24,", "10.0.1.0/24;10.0.2.0/24", "::1"] {
            assert!(sources(&lists(&[wrong])).is_err(), "{wrong}");
        }
        let list = |count: u16| {
            let networks: Vec<_> = (0..count)
                .map(|number| format!("10.{}.{}.0/25", number >> 8, number & 0xff))
                .collect();
            sources(&[networks.join(",")])
        };
        assert!(list(256).is_ok());
        assert_eq!(list(257), Err(SourcesError::TooMany(257)));
    }

    #[test]
    fn ids_of_all_lists() {
        assert_eq!(endpoints(&[]), Ok(None));
        let all = endpoints(&lists(&[
            "vpce-02b8ee1d4db0c51c4,00123456789ABCDEF",
            "02b8ee1d4db0c51c4 , vpce-0f000000000000000",
        ]));
        let ids = [0x0123_4567_89ab_cdef, 0x2b8e_e1d4_db0c_51c4, 0xf000_0000_0000_0000];
        assert_eq!(all, Ok(Some(ids.map(EndpointId).to_vec())));
        for wrong in ["", "vpce-", "vpce-2b8ee1d4db0c51c4", "eni-02b8ee1d4db0c51c4", "0,"] {
            assert!(endpoints(&lists(&[wrong])).is_err(), "{wrong}");
        }
    }
}
