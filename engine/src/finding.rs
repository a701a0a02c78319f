//! What a check found wrong: where, what was expected, and what is there.

use crate::error::{Damage, Error, Place};
use std::fmt;
use std::path::{Path, PathBuf};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Bytes are not what was written, or something is gone.
    Damage,
    /// The disk would not give the bytes.
    Unreadable,
    /// Worth knowing, and no damage: what a crash may leave and the next open clears away.
    Note,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong.
    pub what: String,
    /// What was expected; empty if that says nothing.
    pub expected: String,
    /// What was found; empty if that says nothing.
    pub found: String,
}

impl Finding {
    /// A finding without particulars.
    pub fn new(severity: Severity, file: &Path, place: Place, what: impl Into<String>) -> Self {
        let (expected, found) = (String::new(), String::new());
        Finding { severity, file: file.to_owned(), place, what: what.into(), expected, found }
    }

    /// A finding of damage.
    pub fn damage(file: &Path, place: Place, damage: &Damage) -> Self {
        let (what, expected, found) = match damage {
            Damage::Checksum { stored, computed } => ("checksum", format!("{stored:08x}"), format!("{computed:08x}")),
            Damage::Mismatch { field, expected, found } => (*field, expected.to_string(), found.to_string()),
            Damage::Truncated { needed, found } => ("bytes", needed.to_string(), found.to_string()),
            Damage::Malformed { what } => (*what, String::new(), String::new()),
        };
        Finding { expected, found, ..Finding::new(Severity::Damage, file, place, what) }
    }

    /// What an error says, about `file` unless it names one.
    pub fn of(error: &Error, file: &Path) -> Self {
        match error {
            Error::Corrupt { file, place, damage } => Finding::damage(file, *place, damage),
            Error::Io { path, .. } if error.is_not_found() => {
                Finding::new(Severity::Damage, path, Place::File, "it is not there")
            }
            Error::Io { path, offset, source, op } => {
                let place = offset.map_or(Place::File, Place::Offset);
                let what = format!("cannot {op} it");
                Finding { found: source.to_string(), ..Finding::new(Severity::Unreadable, path, place, what) }
            }
            Error::Unsupported { file, found, supported } => {
                let (expected, found) = (supported.clone(), found.clone());
                Finding { expected, found, ..Finding::new(Severity::Damage, file, Place::File, "format") }
            }
            other => Finding::new(Severity::Damage, file, Place::File, other.to_string()),
        }
    }

    /// The byte offset in the file, if it is of a place in it.
    pub fn offset(&self) -> Option<u64> {
        match self.place {
            Place::File => None,
            Place::Offset(at) => Some(at),
            Place::Unit(unit) => Some(u64::from(unit) * crate::ids::UNIT_BYTES as u64),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { file, place, what, expected, found, .. } = self;
        write!(f, "{}{}: {what}", file.display(), place.to_string().trim_end_matches(','))?;
        match (expected.is_empty(), found.is_empty()) {
            (true, true) => Ok(()),
            (true, false) => write!(f, ": {found}"),
            (false, _) => write!(f, ": expected {expected}, found {found}"),
        }
    }
}

/// What the scrub has read since the store was opened, and what of it is damaged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Times that everything was read.
    pub rounds: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Pages read, without overflow extents.
    pub pages: u64,
    /// Bytes read of the round under way; 0 between rounds.
    pub round_bytes: u64,
    /// About as many as it has; 0 between rounds.
    pub round_of: u64,
    /// Places that were damaged when they were last read; at most 1000.
    pub damage: Vec<Finding>,
}

/// All that was found, and as much of it as may be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// In the order in which they were found.
    pub list: Vec<Finding>,
    /// The most that `list` keeps.
    pub max: usize,
    /// How many are damage.
    pub damage: u64,
    /// How many are of bytes that the disk would not give.
    pub unreadable: u64,
    /// How many are notes.
    pub notes: u64,
}

impl Findings {
    /// Room for `max` findings.
    pub fn new(max: usize) -> Self {
        Findings { max, ..Findings::default() }
    }

    /// Adds a finding.
    pub fn push(&mut self, finding: Finding) {
        match finding.severity {
            Severity::Damage => self.damage += 1,
            Severity::Unreadable => self.unreadable += 1,
            Severity::Note => self.notes += 1,
        }
        if self.list.len() < self.max {
            self.list.push(finding);
        }
    }

    /// True if nothing but notes was found.
    pub fn is_clean(&self) -> bool {
        self.damage + self.unreadable == 0
    }

    /// How many were found and not kept.
    pub fn left_out(&self) -> u64 {
        self.damage + self.unreadable + self.notes - self.list.len() as u64
    }
}
