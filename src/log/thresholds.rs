//! Which lines are written: a level for each section, from `--logging`.

use super::Level;
use super::Section;

/// Sections of later versions of the reference program that have no lines here.
const SECTIONS_WITHOUT_LINES: [&str; 2] = ["os", "ebpf"];

/// The least important level that is written, for each section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds([Level; Section::ALL.len()]);

impl Default for Thresholds {
    /// The reference program's default. Its help says "important", its log shows "info".
    fn default() -> Self {
        Self::all(Level::Info)
    }
}

impl Thresholds {
    /// The same level for every section.
    pub const fn all(level: Level) -> Self {
        Self([level; Section::ALL.len()])
    }

    /// The level of a section.
    pub const fn of(&self, section: Section) -> Level {
        self.0[section as usize]
    }

    /// Reads `section=level,...` on top of the default; case does not matter, and a later word
    /// overrides an earlier one. Words that make no sense are left out, as the reference program
    /// does, and come back as one sentence each.
    pub fn parse(list: &str) -> (Self, Vec<String>) {
        let mut thresholds = Self::default();
        let mut complaints = Vec::new();
        for word in list.split(',').filter(|word| !word.is_empty()) {
            if let Err(problem) = thresholds.apply(word) {
                complaints.push(format!("--logging: \"{word}\" is ignored: {problem}"));
            }
        }
        (thresholds, complaints)
    }

    fn apply(&mut self, word: &str) -> Result<(), String> {
        let Some((section, level)) = word.split_once('=') else {
            return Err("write section=level".to_owned());
        };
        let level = Level::ALL
            .into_iter()
            .find(|candidate| candidate.name().eq_ignore_ascii_case(level))
            .ok_or_else(|| format!("levels are {}", Level::ALL.map(Level::name).join(", ")))?;
        if section.eq_ignore_ascii_case("all") {
            *self = Self::all(level);
            return Ok(());
        }
        if SECTIONS_WITHOUT_LINES.iter().any(|name| section.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        let section = Section::ALL
            .into_iter()
            .find(|candidate| candidate.name().eq_ignore_ascii_case(section))
            .ok_or_else(|| {
                format!("sections are {}, all", Section::ALL.map(Section::name).join(", "))
            })?;
        self.0[section as usize] = level;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_as_the_reference_takes_them() {
        let (thresholds, complaints) = Thresholds::parse("all=critical,UDP=DebugDetail,udp=debug");
        assert_eq!(complaints, [""; 0]);
        assert_eq!(thresholds.of(Section::Udp), Level::Debug, "the later one counts");
        assert_eq!(thresholds.of(Section::Core), Level::Critical);
        assert_eq!(thresholds.of(Section::HealthCheck), Level::Critical);
        assert_eq!(Thresholds::parse("os=debug,ebpf=info").0, Thresholds::default());
        assert_eq!(Thresholds::parse("os=debug,ebpf=info,,").1, [""; 0]);
        assert_eq!(Thresholds::parse(""), (Thresholds::default(), Vec::new()));
    }

    #[test]
    fn what_makes_no_sense_is_told_and_left_out() {
        let (thresholds, complaints) = Thresholds::parse("core=loud,disk=info,debug,geneve=debug");
        assert_eq!(thresholds.of(Section::Geneve), Level::Debug);
        assert_eq!(thresholds.of(Section::Core), Level::Info);
        assert_eq!(
            complaints,
            [
                "--logging: \"core=loud\" is ignored: levels are critical, important, info, \
                 debug, debugdetail",
                "--logging: \"disk=info\" is ignored: sections are core, udp, geneve, tunnel, \
                 healthcheck, all",
                "--logging: \"debug\" is ignored: write section=level",
            ]
        );
    }
}
