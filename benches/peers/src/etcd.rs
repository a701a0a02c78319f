//! etcd's own core, which is a program of its own: its path is given, or it is left out. It makes keys and values of the
//! same shape by itself, so its answers are not compared by hash; it checks their sizes and counts. It is reopened after a
//! clean close, until a get.

use crate::figure::{Figure, Unit};
use crate::peer::Result;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program, and where its store is.
pub struct Etcd {
    program: PathBuf,
    dir: PathBuf,
    keys: usize,
}

/// A figure in what the program says: where its line is, and how it is read.
struct Reading {
    row: u32,
    what: &'static str,
    workload: &'static str,
    /// A field and what it has to be, where a workload says several lines.
    line: Option<(&'static str, &'static str)>,
    field: &'static str,
    unit: Unit,
    /// From the program's unit to this one.
    factor: f64,
    /// What the fields of its latencies begin with, if there are any.
    curve: Option<&'static str>,
}

const fn reading(row: u32, what: &'static str, workload: &'static str, field: &'static str, unit: Unit) -> Reading {
    Reading { row, what, workload, line: None, field, unit, factor: 1.0, curve: None }
}

const fn list(row: u32, what: &'static str, line: &'static str, unit: Unit, factor: f64) -> Reading {
    Reading { line: Some(("what", line)), factor, ..reading(row, what, "list", "median_ms", unit) }
}

/// Memory of the program is what its load says; it says none of other workloads.
const READINGS: [Reading; 24] = [
    Reading { factor: 1e3, line: Some(("g", "1")), ..reading(2, "point get", "get", "p50_us", Unit::Ns) },
    Reading { line: Some(("g", "1")), ..reading(3, "point gets, 1 thread", "get", "ops_s", Unit::PerSecond) },
    Reading { line: Some(("g", "2")), ..reading(3, "point gets, 2 threads", "get", "ops_s", Unit::PerSecond) },
    Reading { line: Some(("g", "1")), ..reading(4, "gets alone", "get", "ops_s", Unit::PerSecond) },
    reading(4, "... beside a writer at full speed", "mixed", "get_ops_s", Unit::PerSecond),
    Reading { line: Some(("with_list", "false")), ..reading(4, "puts alone", "rangewrite", "ops_s", Unit::PerSecond) },
    reading(4, "... beside gets at full speed", "mixed", "put_ops_s", Unit::PerSecond),
    list(5, "range of one namespace's pods", "ns3000", Unit::Us, 1e3),
    list(6, "range of all pods, streamed", "all600k", Unit::Ms, 1.0),
    list(7, "limit 500 with exact count", "limit500of600k", Unit::Us, 1e3),
    list(8, "count of all pods", "count600k", Unit::Us, 1e3),
    list(9, "a page of 500 at an older revision, exact count", "paginate500@oldrev", Unit::Us, 1e3),
    reading(10, "load, random order, Batch", "load", "ops_s_committed", Unit::PerSecond),
    Reading { factor: MIB, ..reading(10, "anonymous memory, at most", "load", "peak_anon_mb", Unit::Bytes) },
    Reading {
        line: Some(("g", "1")),
        ..reading(11, "overwrites, Batch, 1 caller", "overwrite", "ops_s_committed", Unit::PerSecond)
    },
    Reading {
        line: Some(("g", "64")),
        ..reading(11, "overwrites, Batch, 64 callers", "overwrite", "ops_s_committed", Unit::PerSecond)
    },
    Reading { line: Some(("g", "64")), curve: Some(""), ..reading(11, "... p99", "overwrite", "p99_us", Unit::Us) },
    Reading { curve: Some(""), ..reading(12, "durable put, 1 caller", "durable", "p50_us", Unit::Us) },
    Reading {
        line: Some(("server_path", "false")),
        ..reading(14, "compare-and-swap txns, Batch, 1 caller", "txn", "ops_s", Unit::PerSecond)
    },
    Reading { line: Some(("with_list", "false")), ..reading(15, "puts alone", "rangewrite", "ops_s", Unit::PerSecond) },
    Reading {
        line: Some(("with_list", "true")),
        ..reading(15, "puts beside an endless full range", "rangewrite", "ops_s", Unit::PerSecond)
    },
    reading(17, "events of history", "watchcatchup", "events_s", Unit::PerSecond),
    Reading {
        factor: MIB,
        line: Some(("cold", "false")),
        ..reading(16, "anonymous memory", "reopen", "rss_anon_mb", Unit::Bytes)
    },
    Reading {
        factor: MIB,
        line: Some(("cold", "false")),
        ..reading(16, "files once everything is closed", "reopen", "file_mb", Unit::Bytes)
    },
];

/// Figures that are one over another of the same run of the program.
const RATIOS: [(u32, &str, &str, &str); 3] = [
    (3, "... over 1", "point gets, 2 threads", "point gets, 1 thread"),
    (4, "puts beside gets, of alone", "... beside gets at full speed", "puts alone"),
    (15, "... of alone", "puts beside an endless full range", "puts alone"),
];

const MIB: f64 = (1 << 20) as f64;

fn is(line: &Value, field: &str, expected: &str) -> bool {
    match &line[field] {
        Value::String(text) => text == expected,
        other => serde_json::from_str::<Value>(expected).is_ok_and(|expected| *other == expected),
    }
}

impl Etcd {
    /// The program.
    pub fn new(program: PathBuf, dir: &Path, keys: usize) -> Result<Self> {
        let dir = dir.join("etcd");
        std::fs::create_dir_all(&dir)?;
        Ok(Etcd { program, dir, keys })
    }

    /// Runs workloads in one process; its lines. What it may write goes to a copy if `copy` is named.
    fn run(&self, workloads: &str, database: &str, copy_of: Option<&str>, arguments: &[String]) -> Result<Vec<Value>> {
        let mut command = Command::new(&self.program);
        command.arg("-w").arg(workloads).arg("-db").arg(self.dir.join(database));
        if let Some(source) = copy_of {
            command.arg("-src").arg(self.dir.join(source));
        }
        command.arg("-keys").arg(self.keys.to_string()).args(arguments);
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("{workloads}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let lines = String::from_utf8(output.stdout)?;
        Ok(lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Its reopening, at the very end: the program drops the machine's page cache before the first.
    pub fn reopened(&self) -> Result<Vec<Figure>> {
        let lines = self.run("reopen", "store", None, &[])?;
        let mut figures = taken(&lines, &[16]);
        for line in &lines {
            let open = line["sec"].as_f64().unwrap_or_default() * 1e3;
            let get = line["first_get_us"].as_f64().unwrap_or_default() / 1e3;
            let what = if is(line, "cold", "true") { "... cold" } else { REOPEN };
            figures.push(Figure::new(16, what, Unit::Ms, open + get));
        }
        Ok(figures)
    }

    /// Fills a store; the first one is read later.
    pub fn fill(&self, rows: &[u32], first: bool) -> Result<Vec<Figure>> {
        let store = if first { "store" } else { "again" };
        let mut lines = self.run("load", store, None, &[])?;
        lines.extend(self.run("overwrite", store, None, &number("-n", self.keys / 2))?);
        if !first {
            std::fs::remove_file(self.dir.join(store))?;
        }
        Ok(taken(&lines, rows))
    }

    /// Its rows that read, all in one process.
    pub fn read(&self, rows: &[u32], seconds: f64) -> Result<Vec<Figure>> {
        let mut workloads = Vec::new();
        if rows.iter().any(|row| (2..=4).contains(row)) {
            workloads.push("get");
        }
        if rows.iter().any(|row| (5..=9).contains(row)) {
            workloads.push("list");
        }
        if rows.contains(&17) {
            workloads.push("watchcatchup");
        }
        if workloads.is_empty() {
            return Ok(Vec::new());
        }
        // Rounds of it re-read everything that is left, so the time is bounded and the rate counts.
        let cap = ["-cap".to_owned(), format!("{}s", (seconds * 5.0).max(2.0))];
        let arguments = [&number("-n", self.keys / 2)[..], &cap].concat();
        Ok(taken(&self.run(&workloads.join(","), "store", None, &arguments)?, rows))
    }

    /// Its rows that write into a copy, those beside others too.
    pub fn beside(&self, rows: &[u32], seconds: f64) -> Result<Vec<Figure>> {
        let mut lines = Vec::new();
        if rows.contains(&11) {
            let arguments = [number("-n", self.keys / 2), number("-g", 64)].concat();
            lines.extend(self.run("overwrite", "written", Some("store"), &arguments)?);
        }
        let of_row = [(14, "txn"), (12, "durable"), (4, "mixed"), (15, "rangewrite")];
        let mut workloads: Vec<&str> =
            of_row.iter().filter(|(row, _)| rows.contains(row)).map(|(_, workload)| *workload).collect();
        if rows.contains(&4) && !rows.contains(&15) {
            workloads.push("rangewrite");
        }
        if !workloads.is_empty() {
            let time = ["-dur".to_owned(), format!("{}s", (seconds * 2.0).max(1.0))];
            let arguments = [&number("-n", self.keys / 5)[..], &time].concat();
            lines.extend(self.run(&workloads.join(","), "written", Some("store"), &arguments)?);
        }
        if !lines.is_empty() {
            std::fs::remove_file(self.dir.join("written"))?;
        }
        Ok(taken(&lines, rows))
    }
}

const REOPEN: &str = "reopen after SIGKILL, until a get and a durable put";

fn number(flag: &str, number: usize) -> Vec<String> {
    vec![flag.to_owned(), number.to_string()]
}

/// The figures of some rows in what the program said.
fn taken(lines: &[Value], rows: &[u32]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for reading in READINGS.iter().filter(|reading| rows.contains(&reading.row)) {
        let of = |line: &&Value| {
            is(line, "workload", reading.workload)
                && reading.line.is_none_or(|(field, expected)| is(line, field, expected))
        };
        let Some(line) = lines.iter().find(of) else { continue };
        let Some(value) = line[reading.field].as_f64() else { continue };
        let mut figure = Figure::new(reading.row, reading.what, reading.unit, value * reading.factor);
        figure.cost = reading.unit == Unit::Bytes;
        if let Some(prefix) = reading.curve {
            let points = [(0.5, "p50"), (0.99, "p99"), (0.999, "p999"), (1.0, "max")];
            let point = |(share, name)| Some((share, line[format!("{prefix}{name}_us")].as_f64()?));
            figure.curve = points.into_iter().filter_map(point).collect();
        }
        figures.push(figure);
    }
    for (row, what, of, over) in RATIOS {
        let value = |what| figures.iter().find(|figure: &&Figure| (figure.row, &*figure.what) == (row, what));
        if let (Some(part), Some(whole)) = (value(of), value(over)) {
            let ratio = part.value / whole.value;
            figures.push(Figure::new(row, what, Unit::Times, ratio));
        }
    }
    figures
}
