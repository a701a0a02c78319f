//! The plots of docs/benchmarks.md, drawn from the JSON of runs; what growth costs, from runs of several sizes.

use crate::figure::{Unit, median};
use crate::peer::Result;
use crate::report::{Line, Report, in_order, short};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::{Path, PathBuf};

/// What is to be drawn.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// JSON of runs; all of benches/results that are of peers if none.
    pub results: Vec<PathBuf>,
    /// Where the plots go.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Lines whose throughput is drawn, by their beginning.
const BARS: [(u32, &str, &str); 13] = [
    (2, "point get", "get"),
    (5, "range of one", "namespace"),
    (6, "range of all", "all pods"),
    (7, "limit 500", "limit 500"),
    (8, "count", "count"),
    (9, "a page", "older page"),
    (10, "load", "load"),
    (11, "overwrites, Batch, 1 ", "overwrite"),
    (11, "overwrites, Batch, 64", "... by 64"),
    (12, "durable put", "durable"),
    (13, "durable puts", "... by 64"),
    (14, "compare", "txn"),
    (17, "events", "history"),
];
/// Lines whose growth with the number of keys counts.
const GROWTH: [(u32, &str); 4] = [
    (2, "point get"),
    (5, "range of one namespace's pods"),
    (8, "count of all pods"),
    (10, "load, random order, Batch"),
];
/// The raw row that growth is compared with.
const RAW: (u32, &str) = (2, "... a dependent read in as much memory");

const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 90, 181),
    RGBColor(220, 50, 32),
    RGBColor(140, 86, 75),
    RGBColor(93, 58, 155),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(120, 120, 120),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws all.
pub fn run(arguments: &Arguments) -> Result<()> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = arguments.out.clone().unwrap_or_else(|| home.join("../../docs/plots"));
    std::fs::create_dir_all(&out)?;
    let mut results = arguments.results.clone();
    if results.is_empty() {
        let entries = std::fs::read_dir(home.join("../results"))?.collect::<Result<Vec<_>, _>>()?;
        let of_peers = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("peers-"))
                && path.extension().is_some_and(|ending| ending == "json")
        };
        results = entries.into_iter().map(|entry| entry.path()).filter(of_peers).collect();
    }
    results.sort();
    let mut reports = Vec::new();
    for path in results {
        match Report::read(&path) {
            Ok(report) => reports.push(report),
            Err(error) => println!("{} is left out: {error}", path.display()),
        }
    }
    for report in &reports {
        let name = format!("{}-{}-{}", report.keys, report.data, report.on);
        bars(report, &out.join(format!("throughput-{name}.svg")))?;
        for line in report.lines.iter().filter(|line| line.curves.len() > 1) {
            let words = line.what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>();
            let words: Vec<&str> = words.split('-').filter(|word| !word.is_empty()).collect();
            curve(report, line, &out.join(format!("latency-{}-{}-{name}.svg", line.row, words.join("-"))))?;
        }
    }
    reports.sort_by_key(|report| report.keys);
    growth(&reports, &out)?;
    println!("drawn into {}", out.display());
    Ok(())
}

fn title(report: &Report, what: &str) -> String {
    format!("{what}; {} keys, values {}, on {}", report.keys, report.data, report.on)
}

fn colour(peers: &[String], peer: &str) -> RGBColor {
    COLOURS[peers.iter().position(|other| other == peer).unwrap_or(0) % COLOURS.len()]
}

/// Operations a second of a line for a peer.
fn rate(line: &Line, peer: &str) -> Option<f64> {
    let value = median(line.values.get(peer)?);
    match line.unit {
        Unit::Ns => Some(1e9 / value),
        Unit::Us => Some(1e6 / value),
        Unit::Ms => Some(1e3 / value),
        Unit::PerSecond => Some(value),
        _ => None,
    }
}

fn bars(report: &Report, path: &Path) -> Result<()> {
    let lines: Vec<(&Line, &str)> = BARS
        .iter()
        .filter_map(|(row, begins, name)| {
            let line = report.lines.iter().find(|line| line.row == *row && line.what.starts_with(begins))?;
            Some((line, *name))
        })
        .collect();
    let mut peers = in_order(lines.iter().map(|(line, _)| *line));
    peers.retain(|peer| peer != "machine");
    let rates = |line: &Line| peers.iter().filter_map(|peer| rate(line, peer)).collect::<Vec<f64>>();
    let all: Vec<f64> = lines.iter().flat_map(|(line, _)| rates(line)).collect();
    let (low, high) = all.iter().fold((f64::MAX, 1.0), |(low, high), rate| (rate.min(low), rate.max(high)));
    if all.is_empty() {
        return Ok(());
    }
    let area = SVGBackend::new(path, (1200, 460)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title(report, "Operations a second, more is better"), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..lines.len() as f64 + 1.0, (low / 2.0..high * 2.0).log_scale())?;
    let name = |at: &f64| lines.get(*at as usize).map_or(String::new(), |(line, name)| format!("{} {name}", line.row));
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(lines.len() + 2)
        .x_label_formatter(&name)
        .y_label_formatter(&|rate| short(*rate))
        .x_label_offset(40)
        .draw()?;
    let width = 0.8 / peers.len() as f64;
    for (place, peer) in peers.iter().enumerate() {
        let colour = colour(&peers, peer);
        let bar = |(at, (line, _)): (usize, &(&Line, &str))| {
            let from = at as f64 + 0.1 + place as f64 * width;
            Some(Rectangle::new([(from, low / 2.0), (from + width * 0.9, rate(line, peer)?)], colour.filled()))
        };
        let series = chart.draw_series(lines.iter().enumerate().filter_map(bar))?;
        series.label(peer).legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
    Ok(area.present()?)
}

/// Shares of all come as far apart as they are rare: 0.9, 0.99 and 0.999 are at 1, 2 and 3.
fn rarity(share: f64) -> f64 {
    -(1.0 - share.min(0.999_99)).log10()
}

fn curve(report: &Report, line: &Line, path: &Path) -> Result<()> {
    let peers = in_order(std::iter::once(line));
    let series = |peer: &String| {
        let points = line.curves.get(peer).into_iter().flatten().filter(|(_, value)| *value > 0.0);
        points.map(|(share, value)| (rarity(*share), *value)).collect::<Vec<_>>()
    };
    let curves: Vec<_> = peers.iter().map(|peer| (peer, series(peer))).filter(|(_, points)| points.len() > 1).collect();
    let what = match (line.row, line.what.as_str()) {
        (11, "... p99") => "overwrites, Batch, 64 callers",
        (13, "... p99") => "durable puts, 64 callers",
        (_, what) => what.trim_start_matches("... ").trim_end_matches(", p99"),
    };
    let share = |x: f64| format!("{:.*} %", (x.round() as usize).saturating_sub(2), 100.0 - 10f64.powf(2.0 - x));
    lines(path, &title(report, &format!("Latency of row {}, {what}", line.row)), &curves, &share, "us", false)
}

fn growth(reports: &[Report], out: &Path) -> Result<()> {
    for data in ["flat", "objects"] {
        for on in ["disk", "tmpfs"] {
            let sizes: Vec<&Report> = reports.iter().filter(|report| report.data == data && report.on == on).collect();
            if sizes.len() > 1 {
                growth_of(&sizes, &out.join(format!("growth-{data}-{on}")))?;
            }
        }
    }
    Ok(())
}

/// What an operation takes at each size, over what it takes at the smallest; of a range each key.
fn grown(sizes: &[&Report], (row, what): (u32, &str), peer: &str) -> Vec<(f64, f64)> {
    let time = |report: &&Report| {
        let line = report.lines.iter().find(|line| !line.cost && line.row == row && line.what == what)?;
        // A namespace grows with the number of keys.
        let each = if row == 5 { report.keys as f64 } else { 1.0 };
        Some((report.keys as f64, rate(line, peer)?.recip() / each))
    };
    let times: Vec<(f64, f64)> = sizes.iter().filter_map(time).collect();
    let first = times.first().map_or(1.0, |(_, time)| *time);
    times.into_iter().map(|(keys, time)| (keys.log10(), time / first)).collect()
}

fn growth_of(sizes: &[&Report], path: &Path) -> Result<()> {
    let raw = grown(sizes, RAW, "machine");
    println!("growth of what an operation takes, from {} keys:", sizes[0].keys);
    for (row, what) in GROWTH {
        let find = |report: &&&Report| report.lines.iter().any(|line| line.row == row && line.what == what);
        let with: Vec<&Report> = sizes.iter().filter(find).copied().collect();
        let peers = in_order(
            with.iter().flat_map(|report| &report.lines).filter(|line| (line.row, &*line.what) == (row, what)),
        );
        let mut curves: Vec<(&String, Vec<(f64, f64)>)> = peers
            .iter()
            .map(|peer| (peer, grown(sizes, (row, what), peer)))
            .filter(|(_, points)| points.len() > 1)
            .collect();
        let last = |points: &[(f64, f64)]| points.last().map_or(1.0, |(_, times)| *times);
        for (peer, points) in &curves {
            print!("  row {row} {what}: {peer} {} x", short(last(points)));
            println!(" to {} keys", 10f64.powf(points.last().map_or(0.0, |(keys, _)| *keys)).round());
        }
        let of = |name: &str| curves.iter().find(|(peer, _)| *peer == name).map(|(_, points)| last(points));
        if let Some(ours) = of("polybolt") {
            let verdict =
                |limit: Option<f64>| limit.map_or("not measured", |limit| if ours <= limit { "met" } else { "MISSED" });
            let limit = (raw.len() > 1).then(|| 1.15 * last(&raw));
            println!(
                "  row 19: {} of at most {}: {}; no worse than LMDB: {}",
                short(ours),
                limit.map_or("-".to_owned(), short),
                verdict(limit),
                verdict(of("lmdb"))
            );
        }
        let limit = "a dependent read".to_owned();
        if raw.len() > 1 {
            curves.push((&limit, raw.clone()));
        }
        let title = format!("{what}: time over that of {} keys", sizes[0].keys);
        let svg = PathBuf::from(format!("{}-{row}.svg", path.display()));
        lines(&svg, &title, &curves, &|x| short(10f64.powf(x)), "times", true)?;
    }
    Ok(())
}

type Curves<'a> = [(&'a String, Vec<(f64, f64)>)];

fn lines(
    path: &Path,
    title: &str,
    curves: &Curves<'_>,
    label: &dyn Fn(f64) -> String,
    unit: &str,
    dots: bool,
) -> Result<()> {
    let points = || curves.iter().flat_map(|(_, points)| points);
    if points().count() < 2 {
        return Ok(());
    }
    let range = |of: fn(&(f64, f64)) -> f64| {
        points().map(of).fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
    };
    let ((left, right), (low, high)) = (range(|point| point.0), range(|point| point.1));
    let area: Area<'_> = SVGBackend::new(path, (900, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(72)
        .build_cartesian_2d(left..right, (low / 1.3..high * 1.3).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(6)
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| short(*y))
        .y_desc(unit)
        .draw()?;
    let peers: Vec<String> = curves.iter().map(|(peer, _)| (*peer).clone()).collect();
    for (peer, points) in curves {
        let colour = colour(&peers, peer);
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        line.label(peer.as_str()).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
        if dots {
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(area.present()?)
}
