//! Room for flows as the reference program takes it since 3.2: `[vpce-<id>:]n,n,n,n,n,n`.

/// What is wrong with a reservation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// `1,2,3`
    #[error("it has {0} numbers, not six")]
    Count(usize),
    /// `1,2,x,4,5,6`
    #[error("\"{0}\" is no number of flows")]
    NotANumber(String),
    /// `vpce-xyz:1,2,3,4,5,6`
    #[error("\"{0}\" is no endpoint id like vpce-02b8ee1d4db0c51c4")]
    NotAnEndpoint(String),
}

/// The flows that `text` asks room for: the sum of IPv4 TCP, UDP and other and the same for IPv6.
///
/// # Errors
/// [`ReserveError`] says which part makes no sense.
pub(super) fn parse(text: &str) -> Result<u32, ReserveError> {
    let numbers = match text.split_once(':') {
        None => text,
        Some((endpoint, numbers)) => {
            let digits = endpoint.strip_prefix("vpce-").unwrap_or_default();
            let is_id = (1..=17).contains(&digits.len())
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            if !is_id {
                return Err(ReserveError::NotAnEndpoint(endpoint.to_owned()));
            }
            numbers
        }
    };
    let mut sum = 0_u32;
    let mut count = 0;
    for word in numbers.split(',') {
        let flows: u32 =
            word.trim().parse().map_err(|_| ReserveError::NotANumber(word.to_owned()))?;
        sum = sum.saturating_add(flows);
        count += 1;
    }
    if count != 6 {
        return Err(ReserveError::Count(count));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_numbers_with_or_without_an_endpoint() {
        assert_eq!(parse("16384,16384,1024,1024,1024,1024"), Ok(36_864));
        assert_eq!(parse("vpce-02b8ee1d4db0c51c4:1, 2,3,4,5,6"), Ok(21));
        assert_eq!(parse("4000000000,4000000000,0,0,0,0"), Ok(u32::MAX));
    }

    #[test]
    fn what_makes_no_sense() {
        assert_eq!(parse("1,2,3"), Err(ReserveError::Count(3)));
        assert_eq!(parse("1,2,3,4,5,-6"), Err(ReserveError::NotANumber("-6".to_owned())));
        for endpoint in ["vpce-", "eni-02b8", "vpce-02b8ee1d4db0c51c4f", "vpce-x"] {
            let told = parse(&format!("{endpoint}:1,2,3,4,5,6"));
            assert_eq!(told, Err(ReserveError::NotAnEndpoint(endpoint.to_owned())));
        }
    }
}
