//! The report of `polybolt check --json`. Keys are written with escapes, as Rust writes bytes.

use polybolt::{CheckReport, Finding, KeyAt, List, Loss, Lost, Place, SalvageReport, SalvagedKeyspace, Severity};
use serde::Serialize;
use std::path::Path;

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    data_dir: String,
    /// Nothing is damaged, and everything could be read.
    sound: bool,
    damage: u64,
    unreadable: u64,
    notes: u64,
    /// At most 1000.
    findings: Vec<Found>,
    keyspaces: u64,
    trees: u64,
    pages: u64,
    extents: u64,
    rows: u64,
    keys: u64,
    leases: u64,
    bytes: u64,
    free_bytes: u64,
    journal: Journal,
    #[serde(skip_serializing_if = "Option::is_none")]
    salvaged: Option<Salvaged>,
}

#[derive(Debug, Serialize)]
struct Found {
    severity: &'static str,
    file: String,
    /// The 4 KiB unit at which a page begins.
    unit: Option<u32>,
    offset: Option<u64>,
    what: String,
    expected: String,
    found: String,
}

#[derive(Debug, Serialize)]
struct Journal {
    segments: u64,
    bytes: u64,
    groups: u64,
    whole_groups: u64,
    replay_groups: u64,
    replay_records: u64,
    last_position: u64,
    missing_groups: u64,
    drops_last_group: bool,
}

#[derive(Debug, Serialize)]
struct Salvaged {
    data_dir: String,
    keyspaces: Vec<Keyspace>,
    left: Vec<Left>,
}

#[derive(Debug, Serialize)]
struct Left {
    keyspace: String,
    why: String,
}

#[derive(Debug, Serialize)]
struct Keyspace {
    name: String,
    revision: i64,
    rows: u64,
    entries: u64,
    losses: Listed<LossOf>,
    recovered: Listed<KeyOf>,
    doubtful: Listed<KeyOf>,
    stale: Listed<KeyOf>,
}

/// A count, and at most 1000 of them.
#[derive(Debug, Serialize)]
struct Listed<T> {
    count: u64,
    first: Vec<T>,
}

#[derive(Debug, Serialize)]
struct KeyOf {
    key: String,
    revision: i64,
}

#[derive(Debug, Serialize)]
struct LossOf {
    file: String,
    unit: Option<u32>,
    #[serde(flatten)]
    what: What,
}

/// `to` is not lost itself; none is to the end.
#[derive(Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum What {
    Revisions { from: (u64, u32), to: Option<(u64, u32)> },
    Row { key: String, revision: i64 },
    Entries { from: String, to: Option<String> },
    Records { count: u64 },
}

impl Report {
    pub(crate) fn new(data_dir: &Path, report: &CheckReport, salvaged: Option<(&Path, &SalvageReport)>) -> Self {
        let findings = &report.findings;
        let journal = &report.journal;
        Report {
            data_dir: data_dir.display().to_string(),
            sound: findings.is_clean(),
            damage: findings.damage,
            unreadable: findings.unreadable,
            notes: findings.notes,
            findings: findings.list.iter().map(Found::new).collect(),
            keyspaces: report.keyspaces,
            trees: report.trees,
            pages: report.pages,
            extents: report.extents,
            rows: report.rows,
            keys: report.keys,
            leases: report.leases,
            bytes: report.bytes,
            free_bytes: report.free,
            journal: Journal {
                segments: journal.segments,
                bytes: journal.bytes,
                groups: journal.groups,
                whole_groups: journal.whole,
                replay_groups: journal.replay.groups,
                replay_records: journal.replay.records,
                last_position: journal.replay.last.0,
                missing_groups: journal.gaps.iter().map(|gap| gap.groups).sum(),
                drops_last_group: journal.replay.dropped.is_some(),
            },
            salvaged: salvaged.map(|(to, report)| Salvaged {
                data_dir: to.display().to_string(),
                keyspaces: report.keyspaces.iter().map(Keyspace::new).collect(),
                left: report
                    .left
                    .iter()
                    .map(|(keyspace, why)| Left { keyspace: keyspace.clone(), why: why.clone() })
                    .collect(),
            }),
        }
    }
}

fn unit(place: Place) -> Option<u32> {
    match place {
        Place::Unit(unit) => Some(unit),
        Place::File | Place::Offset(_) => None,
    }
}

impl Found {
    fn new(finding: &Finding) -> Self {
        Found {
            severity: match finding.severity {
                Severity::Damage => "damage",
                Severity::Unreadable => "unreadable",
                Severity::Note => "note",
            },
            file: finding.file.display().to_string(),
            unit: unit(finding.place),
            offset: finding.offset(),
            what: finding.what.clone(),
            expected: finding.expected.clone(),
            found: finding.found.clone(),
        }
    }
}

impl Keyspace {
    fn new(of: &SalvagedKeyspace) -> Self {
        let keys = |list: &List<KeyAt>| Listed {
            count: list.count,
            first: list.first.iter().map(|at| KeyOf { key: escaped(&at.key), revision: at.revision }).collect(),
        };
        Keyspace {
            name: of.name.clone(),
            revision: of.revision,
            rows: of.rows,
            entries: of.entries,
            losses: Listed { count: of.losses.count, first: of.losses.first.iter().map(LossOf::new).collect() },
            recovered: keys(&of.recovered),
            doubtful: keys(&of.doubtful),
            stale: keys(&of.stale),
        }
    }
}

impl LossOf {
    fn new(loss: &Loss) -> Self {
        let what = match &loss.what {
            Lost::Revisions { from, to } => What::Revisions { from: *from, to: *to },
            Lost::Row { key, revision } => What::Row { key: escaped(key), revision: *revision },
            Lost::Entries { from, to } => What::Entries { from: escaped(from), to: to.as_deref().map(escaped) },
            Lost::Records { count } => What::Records { count: *count },
        };
        LossOf { file: loss.file.display().to_string(), unit: unit(loss.place), what }
    }
}

fn escaped(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}
