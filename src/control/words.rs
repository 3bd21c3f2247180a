//! The words for an endpoint in the log, where the versions of the reference program differ.

use std::fmt;

use crate::settings::Compat;
use crate::types::EndpointId;

/// An endpoint as the log calls it: `ENI ID 0…`, or `GWLB endpoint vpce-0…` since 3.2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called(pub(super) Compat, pub(super) EndpointId);

impl fmt::Display for Called {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Compat::V3_0, id) => write!(f, "ENI ID {id}"),
            Self(Compat::V3_2, id) => write!(f, "GWLB endpoint vpce-{id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let id = EndpointId(0x02b8_ee1d_4db0_c51c);
        assert_eq!(Called(Compat::V3_0, id).to_string(), "ENI ID 002b8ee1d4db0c51c");
        let called = Called(Compat::V3_2, id).to_string();
        assert_eq!(called, "GWLB endpoint vpce-002b8ee1d4db0c51c");
    }
}
