//! What came out: a table for people, JSON for everything else.

use crate::figure::{Figure, Unit, median};
use crate::peer::{Kind, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Crates whose versions are recorded.
const CRATES: [&str; 6] = ["polybolt", "heed", "lmdb-master-sys", "redb", "fjall", "libsqlite3-sys"];

/// All figures of one kind.
#[derive(Debug, Serialize)]
struct Line {
    row: u32,
    what: String,
    unit: Unit,
    /// By peer, one value a round.
    values: BTreeMap<String, Vec<f64>>,
}

/// The report of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: String,
    kernel: String,
    versions: BTreeMap<String, String>,
    /// Seconds since the Unix epoch.
    begun: u64,
    keys: usize,
    rounds: usize,
    hashes: BTreeMap<String, String>,
    lines: Vec<Line>,
}

fn versions() -> BTreeMap<String, String> {
    let lock = include_str!("../Cargo.lock");
    let version = |name: &&str| {
        let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"\n")))?;
        let version = entry.lines().find_map(|line| line.strip_prefix("version = "))?;
        Some(((*name).to_owned(), version.trim_matches('"').to_owned()))
    };
    CRATES.iter().filter_map(version).collect()
}

impl Report {
    /// Of a run that begins.
    pub fn new(keys: usize, rounds: usize) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a report says when it was made")]
        let begun =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let (machine, versions) = (crate::measure::machine(), versions());
        Report { machine, kernel, versions, begun, keys, rounds, hashes: BTreeMap::new(), lines: Vec::new() }
    }

    /// Takes figures of a round in.
    pub fn add(&mut self, peer: &str, figures: Vec<Figure>) {
        for Figure { row, what, unit, value } in figures {
            // Peers say how many keys there were; a program of its own does not.
            let same = |line: &&mut Line| {
                line.row == row && line.unit == unit && (line.what.starts_with(&what) || what.starts_with(&line.what))
            };
            let line = match self.lines.iter_mut().find(same) {
                Some(line) => line,
                None => {
                    self.lines.push(Line { row, what, unit, values: BTreeMap::new() });
                    self.lines.last_mut().expect("it was pushed")
                }
            };
            line.values.entry(peer.to_owned()).or_default().push(value);
        }
    }

    /// A content hash; all of a run have to be the same.
    pub fn hash(&mut self, peer: Kind, hash: String) -> Result<()> {
        if let Some((other, different)) = self.hashes.iter().find(|(_, other)| **other != hash) {
            return Err(format!("{} answers {hash}, {other} {different}", peer.name()).into());
        }
        self.hashes.insert(peer.name().to_owned(), hash);
        Ok(())
    }

    /// Prints it. Medians, in brackets the lowest and the highest round, then how much better polybolt is.
    pub fn print(&mut self) {
        self.lines.sort_by_key(|line| line.row);
        println!("{}; kernel {}; {} keys, {} rounds", self.machine, self.kernel, self.keys, self.rounds);
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        println!("{}", versions.join(", "));
        if let Some(hash) = self.hashes.values().next() {
            println!(
                "the same answers by content hash {hash}: {}",
                self.hashes.keys().cloned().collect::<Vec<_>>().join(", ")
            );
        }
        let mut peers: Vec<&String> = self.lines.iter().flat_map(|line| line.values.keys()).collect();
        peers.sort_by_key(|peer| (*peer != "polybolt", *peer));
        peers.dedup();
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["row", "what"].into_iter().chain(peers.iter().map(|peer| peer.as_str())));
        for line in &self.lines {
            let ours = line.values.get("polybolt").map(|values| median(values));
            let cell = |peer: &&String| match line.values.get(*peer) {
                None => "-".to_owned(),
                Some(values) => {
                    let mut cell = amounts(values, line.unit);
                    if let (Some(ours), true, true) = (ours, *peer != "polybolt", line.unit != Unit::Times) {
                        let ratio = median(values) / ours;
                        let better = if line.unit.less_is_better() { ratio } else { ratio.recip() };
                        cell.push_str(&format!("\n{} x", short(better)));
                    }
                    cell
                }
            };
            let row = if line.row == 0 { String::new() } else { line.row.to_string() };
            let what = format!("{}, {}", line.what, line.unit.name());
            table.add_row([row, what].into_iter().chain(peers.iter().map(cell)));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
    }

    /// Keeps it.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        Ok(std::fs::write(path, serde_json::to_vec_pretty(self)?)?)
    }
}

fn amounts(values: &[f64], unit: Unit) -> String {
    let show = |value: f64| if unit == Unit::Bytes { crate::measure::mib(value as u64) } else { short(value) };
    let (low, high) =
        values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
    let median = show(median(values));
    if values.len() > 1 { format!("{median} ({}..{})", show(low), show(high)) } else { median }
}

/// Three digits or so.
fn short(value: f64) -> String {
    match value {
        value if value >= 1000.0 => {
            let digits = format!("{value:.0}");
            let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
            groups.collect::<Vec<_>>().join(",")
        }
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
