//! Lists of cores as the affinity options take them: `0,2,4-7`.

use std::collections::BTreeSet;

/// Highest core number that a list may name: the largest `NR_CPUS` of a Linux kernel
/// (arch/x86/Kconfig, `NR_CPUS_RANGE_END`) less one. It bounds the work for a range.
const CORE_MAX: usize = 8191;

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// nothing in it
    #[error("it names no core")]
    Empty,
    /// `3abc`, `-1`, `,1`
    #[error("\"{0}\" is neither a core nor a range of cores")]
    NotACore(String),
    /// `9000`
    #[error("core {0} is above {CORE_MAX}")]
    TooHigh(usize),
    /// `7-4`
    #[error("the range {0}-{1} ends before it starts")]
    Backwards(usize, usize),
}

/// The cores that `text` names, ascending, each once. A comma at the end and blanks around a
/// number are let pass, because the reference program does.
///
/// # Errors
/// [`CpuListError`] says which part of the list is wrong.
pub fn parse(text: &str) -> Result<BTreeSet<usize>, CpuListError> {
    let text = text.trim();
    let text = text.strip_suffix(',').unwrap_or(text);
    if text.is_empty() {
        return Err(CpuListError::Empty);
    }
    let mut cores = BTreeSet::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => {
                cores.insert(core(part, part)?);
            }
            Some((first, last)) => {
                let (first, last) = (core(first, part)?, core(last, part)?);
                if last < first {
                    return Err(CpuListError::Backwards(first, last));
                }
                cores.extend(first..=last);
            }
        }
    }
    Ok(cores)
}

/// One number of `part`.
fn core(digits: &str, part: &str) -> Result<usize, CpuListError> {
    let digits = digits.trim();
    let refuse = || CpuListError::NotACore(part.to_owned());
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refuse());
    }
    let core = digits.parse().map_err(|_| refuse())?;
    if core > CORE_MAX {
        return Err(CpuListError::TooHigh(core));
    }
    Ok(core)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_ranges_in_any_order(
            ranges in prop::collection::vec((0..=CORE_MAX, 0..9_usize), 1..9),
        ) {
            let ranges = ranges.iter().map(|&(first, more)| (first, (first + more).min(CORE_MAX)));
            let text: Vec<_> = ranges.clone().map(|(first, last)| {
                if first == last { first.to_string() } else { format!("{first}-{last}") }
            }).collect();
            let cores: BTreeSet<_> = ranges.flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(parse(&text.join(",")), Ok(cores));
        }

        #[test]
        fn any_text_is_a_list_or_an_error(text in "[0-9,+ x-]{0,20}") {
            if let Ok(cores) = parse(&text) {
                prop_assert!(!cores.is_empty() && cores.iter().all(|&core| core <= CORE_MAX));
            }
        }
    }

    #[test]
    fn lists_that_the_reference_takes() {
        for (text, cores) in [
            ("0", &[0][..]),
            ("0,2,4-7", &[0, 2, 4, 5, 6, 7]),
            ("1,", &[1]),
            ("3-3", &[3]),
            ("0, 2", &[0, 2]),
            ("4-5,0,5", &[0, 4, 5]),
            ("8191", &[8191]),
        ] {
            let parsed: Vec<_> = parse(text).unwrap().into_iter().collect();
            assert_eq!(parsed, cores, "{text}");
        }
    }

    #[test]
    fn lists_that_make_no_sense() {
        use CpuListError::Backwards;
        use CpuListError::Empty;
        use CpuListError::NotACore;
        use CpuListError::TooHigh;
        let not = |text: &str| NotACore(text.to_owned());
        for (text, error) in [
            ("", Empty),
            (",", Empty),
            (",1", not("")),
            ("0,,1", not("")),
            ("-1", not("-1")),
            ("1-", not("1-")),
            ("abc", not("abc")),
            ("3abc", not("3abc")),
            ("+1", not("+1")),
            ("1-2-3", not("1-2-3")),
            ("99999999999999999999", not("99999999999999999999")),
            ("1-0", Backwards(1, 0)),
            ("0-4000000000", TooHigh(4_000_000_000)),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }
}
