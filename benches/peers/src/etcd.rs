//! etcd's own core, which is a program of its own: its path is given, or it is left out. It makes keys and values of the
//! same shape by itself, so its answers are not compared by hash; it checks their sizes and counts.

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

/// Workloads of the program, and how a line of what it says is found and read.
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
}

const fn reading(row: u32, what: &'static str, workload: &'static str, field: &'static str, unit: Unit) -> Reading {
    Reading { row, what, workload, line: None, field, unit, factor: 1.0 }
}

const READINGS: [Reading; 11] = [
    Reading { factor: 1e3, line: Some(("g", "1")), ..reading(2, "point get", "get", "p50_us", Unit::Ns) },
    Reading { factor: 1e3, line: Some(("what", "ns3000")), ..reading(5, "range of", "list", "median_ms", Unit::Us) },
    Reading { line: Some(("what", "all600k")), ..reading(6, "range of all", "list", "median_ms", Unit::Ms) },
    Reading {
        factor: 1e3,
        line: Some(("what", "limit500of600k")),
        ..reading(7, "limit 500 with exact count", "list", "median_ms", Unit::Us)
    },
    Reading {
        factor: 1e3,
        line: Some(("what", "count600k")),
        ..reading(8, "count of all pods", "list", "median_ms", Unit::Us)
    },
    Reading {
        factor: 1e3,
        line: Some(("what", "paginate500@oldrev")),
        ..reading(9, "a page of 500 at an older revision, exact count", "list", "median_ms", Unit::Us)
    },
    reading(10, "load, random order, Batch", "load", "ops_s_committed", Unit::PerSecond),
    reading(11, "overwrites, Batch, 1 caller", "overwrite", "ops_s_committed", Unit::PerSecond),
    reading(12, "durable put, 1 caller", "durable", "p50_us", Unit::Us),
    Reading {
        line: Some(("server_path", "false")),
        ..reading(14, "compare-and-swap txns, Batch, 1 caller", "txn", "ops_s", Unit::PerSecond)
    },
    reading(17, "events of history", "watchcatchup", "events_s", Unit::PerSecond),
];

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

    /// Its reopening, at the very end: the program drops the machine's page cache before the first, which is left out.
    pub fn reopened(&self) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for line in self.run("reopen", "store", None, &[])?.iter().filter(|line| is(line, "cold", "false")) {
            let open = line["sec"].as_f64().unwrap_or_default() * 1e3;
            let get = line["first_get_us"].as_f64().unwrap_or_default() / 1e3;
            figures.push(Figure::new(16, "reopen after a clean close, until a get", Unit::Ms, open + get));
            let held = line["rss_anon_mb"].as_f64().unwrap_or_default() * f64::from(1 << 20);
            figures.push(Figure::new(0, "anonymous memory after reads", Unit::Bytes, held));
        }
        Ok(figures)
    }

    /// What it has of the wanted rows; `first` fills the store that is read.
    pub fn round(&self, rows: &[u32], first: bool, seconds: f64) -> Result<Vec<Figure>> {
        let n = |n: usize| ["-n".to_owned(), n.to_string()];
        let wants = |row| rows.contains(&row);
        let mut lines = Vec::new();
        let store = if first { "store" } else { "again" };
        if first || wants(10) || wants(11) {
            lines.extend(self.run("load", store, None, &[])?);
            lines.extend(self.run("overwrite", store, None, &n(self.keys / 2))?);
            if !first {
                std::fs::remove_file(self.dir.join(store))?;
            }
        }
        let mut figures = Vec::new();
        if wants(2) {
            lines.extend(self.run("get", "store", None, &n(200_000))?);
        }
        if (5..=9).any(wants) {
            let cap = format!("{}s", (seconds * 2.0).max(1.0));
            lines.extend(self.run("list", "store", None, &["-cap".to_owned(), cap])?);
        }
        if wants(17) {
            // Rounds of it re-read everything that is left, so the time is bounded and the rate counts.
            let arguments = [&n(self.keys / 2)[..], &["-cap".to_owned(), format!("{}s", (seconds * 10.0).max(5.0))]];
            lines.extend(self.run("watchcatchup", "store", None, &arguments.concat())?);
        }
        if wants(12) {
            let time = ["-dur".to_owned(), format!("{}s", seconds.max(1.0))];
            lines.extend(self.run("durable", "written", Some("store"), &time)?);
        }
        if wants(14) {
            lines.extend(self.run("txn", "written", Some("store"), &n(self.keys / 5))?);
        }
        for reading in READINGS.iter().filter(|reading| wants(reading.row)) {
            let of = |line: &&Value| {
                is(line, "workload", reading.workload)
                    && reading.line.is_none_or(|(field, expected)| is(line, field, expected))
            };
            if let Some(value) = lines.iter().find(of).and_then(|line| line[reading.field].as_f64()) {
                figures.push(Figure::new(reading.row, reading.what, reading.unit, value * reading.factor));
            }
        }
        Ok(figures)
    }
}
