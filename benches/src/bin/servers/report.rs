//! What came out: tables for people, JSON for everything else.

use crate::rows::{Bar, GENERATOR_SHARE, READ_CPU, READ_TIMES, ROWS, Row, Shape};
use crate::turn::Turn;
use comfy_table::{CellAlignment, Table, presets};
use polybolt_benches::server::Side;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A run of the comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) kernel: String,
    /// Seconds since the Unix epoch.
    pub(crate) begun: u64,
    pub(crate) versions: BTreeMap<&'static str, String>,
    /// Those that do not say where.
    pub(crate) flags: BTreeMap<&'static str, Vec<String>>,
    pub(crate) shape: Shape,
    pub(crate) seconds: f64,
    pub(crate) rounds: u64,
    pub(crate) places: Vec<Place>,
}

/// All turns of servers whose data is in one place.
#[derive(Debug, Serialize)]
pub(crate) struct Place {
    pub(crate) name: &'static str,
    /// Its kind of file system.
    pub(crate) file_system: String,
    pub(crate) rows: Vec<Measured>,
}

/// The turns of a row.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) row: &'static str,
    pub(crate) turns: BTreeMap<Side, Vec<Turn>>,
}

/// How polybolt stands to etcd, and whether that is enough. Above 1 polybolt is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) requests: f64,
    pub(crate) p99: f64,
    pub(crate) server_cpu: f64,
    /// Of the processors, in polybolt's turns.
    pub(crate) generator_share: f64,
    pub(crate) enough: bool,
    pub(crate) lower_p99: bool,
}

/// The middle one of some numbers.
pub(crate) fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

impl Measured {
    fn median(&self, side: Side, of: impl Fn(&Turn) -> f64) -> Option<f64> {
        self.turns.get(&side).filter(|turns| !turns.is_empty()).map(|turns| median(turns.iter().map(of)))
    }

    /// None if either was not measured.
    pub(crate) fn verdict(&self, bar: Bar) -> Option<Verdict> {
        let ratio = |of: fn(&Turn) -> f64| Some(self.median(Side::Etcd, of)? / self.median(Side::Polybolt, of)?);
        let requests = 1.0 / ratio(|turn| turn.per_second)?;
        let (p99, server_cpu) = (ratio(|turn| turn.p99)?, ratio(|turn| turn.server_cpu)?);
        let generator_share = self.median(Side::Polybolt, |turn| turn.generator_share)?;
        let enough = match bar {
            Bar::Times(times) => requests >= times,
            Bar::Read => requests >= READ_TIMES || (generator_share > GENERATOR_SHARE && server_cpu >= READ_CPU),
            Bar::Latency => true,
        };
        Some(Verdict { requests, p99, server_cpu, generator_share, enough, lower_p99: p99 > 1.0 })
    }
}

/// Three digits or so.
pub(crate) fn short(value: f64) -> String {
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

/// The median, and the lowest and the highest round.
fn spread(turns: &[Turn], of: fn(&Turn) -> f64) -> String {
    let low = turns.iter().map(of).fold(f64::MAX, f64::min);
    let high = turns.iter().map(of).fold(f64::MIN, f64::max);
    let middle = short(median(turns.iter().map(of)));
    if turns.len() > 1 { format!("{middle} ({}..{})", short(low), short(high)) } else { middle }
}

const HEADER: [&str; 11] = [
    "row",
    "server",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "server CPU us/request",
    "generator's",
    "of all CPU: server",
    "generator",
    "syncs/request",
    "MiB resident",
];

impl Report {
    pub(crate) fn print(&self) {
        println!("\n{}; kernel {}; {} rounds of {} s a turn", self.machine, self.kernel, self.rounds, self.seconds);
        for (side, version) in &self.versions {
            let flags = self.flags.get(side).map(|flags| flags.join(" ")).unwrap_or_default();
            println!("{side} {version} {flags}");
        }
        for row in &ROWS {
            println!("{}: {}", row.name, row.what);
        }
        println!(
            "idle: answers of the same size without a store, what the generator can do; in mixed it has no watchers"
        );
        for place in &self.places {
            println!(
                "\n{} ({}): medians, and in brackets the lowest and the highest round",
                place.name, place.file_system
            );
            println!("{}", place.table());
            for (row, measured) in place.rows() {
                if let Some(verdict) = measured.verdict(row.bar) {
                    println!("{}", verdict.words(row));
                }
            }
        }
    }

    /// True if polybolt is as much better as it has to be.
    pub(crate) fn is_enough(&self) -> bool {
        let verdicts = self.places.iter().flat_map(|place| place.rows().map(|(row, row_is)| row_is.verdict(row.bar)));
        verdicts.flatten().all(|verdict| verdict.enough && verdict.lower_p99)
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("--json {}: {error}", path.display()))
    }
}

impl Place {
    fn rows(&self) -> impl Iterator<Item = (&'static Row, &Measured)> {
        self.rows.iter().filter_map(|row| Some((ROWS.iter().find(|of| of.name == row.row)?, row)))
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(HEADER);
        for measured in &self.rows {
            for (side, turns) in &measured.turns {
                let percent = |of: fn(&Turn) -> f64| format!("{:.0} %", median(turns.iter().map(of)) * 100.0);
                table.add_row([
                    measured.row.to_owned(),
                    side.name().to_owned(),
                    spread(turns, |turn| turn.per_second),
                    spread(turns, |turn| turn.p50 / 1000.0),
                    spread(turns, |turn| turn.p99 / 1000.0),
                    spread(turns, |turn| turn.server_cpu),
                    spread(turns, |turn| turn.generator_cpu),
                    percent(|turn| turn.server_share),
                    percent(|turn| turn.generator_share),
                    short(median(turns.iter().map(|turn| turn.syncs))),
                    format!("{:.0}", median(turns.iter().map(|turn| turn.resident_bytes)) / f64::from(1 << 20)),
                ]);
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl Verdict {
    fn words(&self, row: &Row) -> String {
        let bar = match row.bar {
            Bar::Times(times) => format!(">= {times}x"),
            Bar::Read => format!(
                ">= {READ_TIMES}x, or {READ_CPU}x less CPU where the generator takes over {:.0} % (it takes {:.0} %)",
                GENERATOR_SHARE * 100.0,
                self.generator_share * 100.0
            ),
            Bar::Latency => "none".to_owned(),
        };
        let fine = |fine: bool| if fine { "ok" } else { "MISSED" };
        format!(
            "{:>6}: {}x the requests of etcd, {}x less CPU for each; bar {bar}: {}; p99 {}x lower: {}",
            row.name,
            short(self.requests),
            short(self.server_cpu),
            fine(self.enough),
            short(self.p99),
            fine(self.lower_p99)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(per_second: f64, p99: f64, server_cpu: f64, generator_share: f64) -> Turn {
        Turn {
            requests: 1,
            per_second,
            p50: 1.0,
            p99,
            server_cpu,
            generator_cpu: 1.0,
            server_share: 0.4,
            generator_share,
            written_bytes: 0.0,
            syncs: 0.0,
            resident_bytes: 0.0,
        }
    }

    fn measured(polybolt: Turn, etcd: Turn) -> Measured {
        let turns = BTreeMap::from([(Side::Polybolt, vec![polybolt]), (Side::Etcd, vec![etcd])]);
        Measured { row: "get", turns }
    }

    #[test]
    fn a_bar_is_of_requests_or_of_the_processor_where_the_generator_takes_it() {
        let etcd = || turn(1000.0, 9.0, 50.0, 0.3);
        let verdict = |ours, bar| measured(ours, etcd()).verdict(bar).unwrap();
        let twice = verdict(turn(2000.0, 4.5, 50.0, 0.3), Bar::Read);
        assert!(twice.enough && twice.lower_p99 && (twice.p99 - 2.0).abs() < 1e-9);
        assert!(!verdict(turn(1900.0, 4.5, 20.0, 0.4), Bar::Read).enough);
        assert!(verdict(turn(1900.0, 4.5, 20.0, 0.41), Bar::Read).enough);
        assert!(!verdict(turn(1900.0, 4.5, 20.1, 0.41), Bar::Read).enough);
        assert!(!verdict(turn(2900.0, 4.5, 1.0, 0.9), Bar::Times(3.0)).enough);
        let slow = verdict(turn(3000.0, 9.1, 1.0, 0.9), Bar::Times(3.0));
        assert!(slow.enough && !slow.lower_p99);
    }

    #[test]
    fn without_etcd_there_is_no_verdict() {
        let turns = BTreeMap::from([(Side::Polybolt, vec![turn(1.0, 1.0, 1.0, 0.1)])]);
        assert_eq!(Measured { row: "put", turns }.verdict(Bar::Latency), None);
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0].into_iter()) - 2.5).abs() < 1e-9);
    }
}
