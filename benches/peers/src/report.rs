//! What came out: a table for people, JSON for everything else.

use crate::arguments::Arguments;
use crate::bars::{self, Medians, Verdict};
use crate::figure::{Figure, Unit, median};
use crate::peer::{Kind, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Crates whose versions are recorded.
const CRATES: [&str; 7] = ["polybolt", "heed", "lmdb-master-sys", "redb", "fjall", "libsqlite3-sys", "librocksdb-sys"];

/// All figures of one kind.
#[derive(Debug, Serialize, Deserialize)]
pub struct Line {
    /// Of which row; 0 is none.
    pub row: u32,
    /// What it is.
    pub what: String,
    /// In what.
    pub unit: Unit,
    /// True if it is what the row held, wrote or synced.
    pub cost: bool,
    /// By peer, one value a round.
    pub values: BTreeMap<String, Vec<f64>>,
    /// By peer, the curve of the last round.
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
}

/// The report of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    machine: String,
    kernel: String,
    /// Where stores were: "disk" or "tmpfs".
    pub on: String,
    /// What values were: "flat" or "objects".
    pub data: String,
    versions: BTreeMap<String, String>,
    /// Seconds since the Unix epoch.
    begun: u64,
    /// How many keys were loaded.
    pub keys: usize,
    rounds: usize,
    /// Rounds of rows that write.
    writes: usize,
    rows: Vec<u32>,
    hashes: BTreeMap<String, String>,
    /// The bars, at the end.
    pub bars: Vec<Verdict>,
    /// All that was measured.
    pub lines: Vec<Line>,
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

/// The peers by name, polybolt first and the machine last.
pub fn in_order<'a>(lines: impl Iterator<Item = &'a Line>) -> Vec<String> {
    let mut peers: Vec<String> = lines.flat_map(|line| line.values.keys().cloned()).collect();
    peers.sort_by_key(|peer| (peer != "polybolt", peer == "machine", peer.clone()));
    peers.dedup();
    peers
}

impl Medians for Report {
    fn median(&self, row: u32, what: &str, peer: &str) -> Option<(f64, Unit)> {
        let line = self.lines.iter().find(|line| !line.cost && line.row == row && line.what == what)?;
        Some((median(line.values.get(peer)?), line.unit))
    }

    fn peers(&self, row: u32, what: &str) -> Vec<String> {
        in_order(self.lines.iter().filter(|line| line.row == row && line.what == what))
    }
}

impl Report {
    /// Of a run that begins.
    pub fn new(arguments: &Arguments, rows: &[u32], memory: bool) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a report says when it was made")]
        let begun =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        Report {
            machine: crate::measure::machine(),
            kernel,
            on: if memory { "tmpfs" } else { "disk" }.to_owned(),
            data: if arguments.objects() { "objects" } else { "flat" }.to_owned(),
            versions: versions(),
            begun,
            keys: arguments.keys,
            rounds: arguments.rounds,
            writes: arguments.writes,
            rows: rows.to_vec(),
            hashes: BTreeMap::new(),
            bars: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Of a file.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Takes figures of a round in.
    pub fn add(&mut self, peer: &str, figures: Vec<Figure>) {
        for Figure { row, what, unit, value, cost, curve } in figures {
            let same = |line: &&mut Line| (line.row, line.unit, line.cost) == (row, unit, cost) && line.what == what;
            let line = match self.lines.iter_mut().find(same) {
                Some(line) => line,
                None => {
                    let (values, curves) = (BTreeMap::new(), BTreeMap::new());
                    self.lines.push(Line { row, what, unit, cost, values, curves });
                    self.lines.last_mut().expect("it was pushed")
                }
            };
            line.values.entry(peer.to_owned()).or_default().push(rounded(value));
            if !curve.is_empty() {
                let curve = curve.into_iter().map(|(share, value)| (share, rounded(value))).collect();
                line.curves.insert(peer.to_owned(), curve);
            }
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

    /// Prints it. Medians, in brackets the lowest and the highest round, then how much better polybolt is; what rows
    /// cost; the bars.
    pub fn print(&mut self) {
        self.lines.sort_by_key(|line| line.row);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.bars = bars::verdicts(self, &self.rows, cores, self.on == "tmpfs", self.data == "objects");
        println!("{}; kernel {}; {}", self.machine, self.kernel, self.on);
        println!(
            "{} keys, values {}, {} rounds of rows that read, {} of those that write",
            self.keys, self.data, self.rounds, self.writes
        );
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        println!("{}", versions.join(", "));
        if let Some(hash) = self.hashes.values().next() {
            let peers: Vec<String> = self.hashes.keys().cloned().collect();
            println!("the same answers by content hash {hash}: {}", peers.join(", "));
        }
        println!("{}", self.table());
        println!(
            "Anonymous memory at the end of a row, mapped files, bytes written, syncs; what comes before it included:"
        );
        println!("{}", self.costs());
        println!("{}", self.verdicts());
    }

    fn table(&self) -> Table {
        let lines = || self.lines.iter().filter(|line| !line.cost);
        let peers = in_order(lines());
        let mut table = headed(["row", "what"].into_iter().chain(peers.iter().map(String::as_str)));
        for line in lines() {
            let ours = line.values.get("polybolt").map(|values| median(values));
            let ours = ours.filter(|ours| *ours > 0.0 && !matches!(line.unit, Unit::Times | Unit::Count));
            let cell = |peer: &String| match line.values.get(peer) {
                None => "-".to_owned(),
                Some(values) => {
                    let mut cell = amounts(values, line.unit);
                    if let (Some(ours), true) = (ours, peer != "polybolt") {
                        let ratio = median(values) / ours;
                        let better = if line.unit.less_is_better() { ratio } else { ratio.recip() };
                        cell.push_str(&format!("\n{} x", short(better)));
                    }
                    cell
                }
            };
            let row = if line.row == 0 { String::new() } else { line.row.to_string() };
            let what = match line.unit.name() {
                "" => line.what.clone(),
                unit => format!("{}, {unit}", line.what),
            };
            table.add_row([row, what].into_iter().chain(peers.iter().map(cell)));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// A line a row, whatever it cost in a cell.
    fn costs(&self) -> Table {
        let lines = || self.lines.iter().filter(|line| line.cost);
        let peers = in_order(lines());
        let mut table = headed(std::iter::once("row").chain(peers.iter().map(String::as_str)));
        for row in &self.rows {
            let cell = |peer: &String| {
                let of = |line: &Line| Some((line.unit, median(line.values.get(peer)?)));
                let parts = lines().filter(|line| line.row == *row).filter_map(of);
                let mebibytes = |value: f64| short(value / f64::from(1 << 20));
                parts.fold(String::new(), |cell, (unit, value)| match (cell.is_empty(), unit) {
                    (true, Unit::Bytes) => mebibytes(value),
                    (_, Unit::Bytes) => format!("{cell} / {}", mebibytes(value)),
                    _ => format!("{cell} MiB / {value:.0}"),
                })
            };
            let cells: Vec<String> = peers.iter().map(cell).collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                table.add_row(std::iter::once(row.to_string()).chain(cells));
            }
        }
        table
    }

    fn verdicts(&self) -> Table {
        let mut table = headed(["row", "bar", "has to be", "is", ""].into_iter());
        for bar in &self.bars {
            let has = format!("{} {}", if bar.at_least { ">=" } else { "<=" }, short(bar.bar));
            let verdict = match (bar.met(), bar.share()) {
                (Some(true), _) => "met".to_owned(),
                (Some(false), Some(share)) => format!("MISSED: {} of it", short(share)),
                _ => "not measured".to_owned(),
            };
            let is = bar.is.map_or("-".to_owned(), short);
            table.add_row([bar.row.to_string(), bar.what.clone(), has, is, verdict]);
        }
        table
    }

    /// Keeps it: what is many has a line each.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut head = serde_json::to_value(self)?;
        let mut tail = String::new();
        for many in ["bars", "lines"] {
            let parts = head.as_object_mut().and_then(|head| head.remove(many)).unwrap_or_default();
            let parts: Vec<String> = parts.as_array().into_iter().flatten().map(|part| format!("    {part}")).collect();
            tail.push_str(&format!(",\n  \"{many}\": [\n{}\n  ]", parts.join(",\n")));
        }
        let head = serde_json::to_string_pretty(&head)?;
        Ok(std::fs::write(path, format!("{}{tail}\n}}\n", head.trim_end_matches("\n}")))?)
    }
}

/// Five digits say enough.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(4 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

fn headed<'a>(header: impl Iterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table
}

fn amounts(values: &[f64], unit: Unit) -> String {
    let show = |value: f64| if unit == Unit::Bytes { crate::measure::mib(value as u64) } else { short(value) };
    let (low, high) =
        values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
    let median = show(median(values));
    if values.len() > 1 { format!("{median} ({}..{})", show(low), show(high)) } else { median }
}

/// Three digits or so.
pub fn short(value: f64) -> String {
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
