//! The samples as JSON, as curves and as a table, and the verdict.

use crate::Load;
use crate::clients::Counts;
use crate::server::Sample;
use plotters::prelude::*;
use polybolt_benches::mib;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Memory may be above the bound by so much.
const SLACK: f64 = 1.1;
/// Files may be larger than before by a tenth and so much: pages that the newest two commits hold.
const FILES_SLACK: u64 = 16 << 20;

type Curve<'a> = (&'a str, RGBColor, Box<dyn Fn(&Sample) -> f64>);

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

fn draw(path: &Path, title: &str, samples: &[Sample], curves: Vec<Curve<'_>>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let root = SVGBackend::new(path, (1100, 420)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let end = samples.last().map_or(1.0, |sample| sample.at / 60.0);
    let all = curves.iter().flat_map(|(_, _, of)| samples.iter().map(of));
    let top = all.fold(1.0, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..top)
        .map_err(|error| failed(&error))?;
    chart.configure_mesh().x_desc("minutes").y_desc("MiB").draw().map_err(|error| failed(&error))?;
    for (name, colour, of) in curves {
        let points = samples.iter().map(|sample| (sample.at / 60.0, of(sample)));
        let line = chart.draw_series(LineSeries::new(points, &colour)).map_err(|error| failed(&error))?;
        line.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    chart.configure_series_labels().background_style(WHITE).draw().map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}

fn of(name: &'static str) -> Box<dyn Fn(&Sample) -> f64> {
    Box::new(move |sample| mebibytes(sample.gauge(name)))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn curves(dir: &Path, samples: &[Sample]) -> Result<(), String> {
    let memory: Vec<Curve<'_>> = vec![
        ("bound", RED, Box::new(|sample| mebibytes(sample.bound as f64))),
        ("allocated (RssAnon)", BLUE, Box::new(|sample| mebibytes(sample.anonymous as f64))),
        ("resident, with mapped files", BLACK, Box::new(|sample| mebibytes(sample.resident as f64))),
    ];
    draw(&dir.join("memory.svg"), "Memory of the server", samples, memory)?;
    let queues: Vec<Curve<'_>> = vec![
        ("write buffers", BLUE, of("polybolt_buffered_bytes")),
        ("writes that wait", RED, of("polybolt_writes_waiting_bytes")),
        ("for watchers", GREEN, of("polybolt_watch_send_bytes")),
        ("for snapshots", CYAN, of("polybolt_snapshot_send_bytes")),
        ("for ranges", MAGENTA, of("polybolt_range_unread_bytes")),
        ("index", BLACK, of("polybolt_index_bytes")),
    ];
    draw(&dir.join("queues.svg"), "What is held", samples, queues)?;
    let files: Vec<Curve<'_>> = vec![
        ("files", BLACK, Box::new(|sample| mebibytes(sample.files as f64))),
        ("in use", BLUE, of("etcd_mvcc_db_total_size_in_use_in_bytes")),
    ];
    draw(&dir.join("files.svg"), "Files", samples, files)
}

/// A line a minute.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn table(samples: &[Sample]) {
    println!(
        "{:>7} {:>8} {:>10} {:>10} {:>10} {:>9} {:>9} {:>6} {:>9} {:>8}",
        "minute", "phase", "allocated", "bound", "buffers", "waiting", "index", "pins", "held", "files"
    );
    let step = (samples.len() / 40).max(1);
    let last = samples.len().saturating_sub(1);
    for (_, sample) in samples.iter().enumerate().filter(|(at, _)| at % step == 0 || *at == last) {
        let mib = |bytes: f64| format!("{:.1}", mebibytes(bytes));
        println!(
            "{:>7.1} {:>8} {:>10} {:>10} {:>10} {:>9} {:>9} {:>6} {:>9} {:>8}",
            sample.at / 60.0,
            sample.phase,
            mib(sample.anonymous as f64),
            mib(sample.bound as f64),
            mib(sample.gauge("polybolt_buffered_bytes")),
            mib(sample.gauge("polybolt_writes_waiting_bytes")),
            mib(sample.gauge("polybolt_index_bytes")),
            sample.gauge("etcd_mvcc_db_open_read_transactions"),
            sample.gauge("polybolt_pin_held_revisions"),
            mib(sample.files as f64),
        );
    }
    println!("(MiB; held: revisions that pins hold compaction back by)");
}

/// What has to be nothing again once the clients are gone.
const BACK_AT_ZERO: [&str; 11] = [
    "etcd_mvcc_db_open_read_transactions",
    "polybolt_pin_held_revisions",
    "polybolt_writes_waiting",
    "polybolt_writes_waiting_bytes",
    "polybolt_buffered_bytes",
    "polybolt_watch_send_bytes",
    "polybolt_snapshot_streams",
    "polybolt_range_streams",
    "polybolt_range_unread_bytes",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_pending_events_total",
];

/// What is not back at its size before the soak.
pub(crate) fn left_over(before: &Sample, now: &Sample) -> Vec<String> {
    let mut left: Vec<String> = BACK_AT_ZERO
        .iter()
        .filter(|name| now.gauge(name) > 0.0)
        .map(|name| format!("{name} is {}", now.gauge(name)))
        .collect();
    if now.files > before.files + before.files / 10 + FILES_SLACK {
        left.push(format!("the files have {}, before {}", mib(now.files), mib(before.files)));
    }
    left
}

/// The verdict in words; true if all is well.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn verdict(samples: &[Sample], counts: &Counts, load: &Load, left: &[String]) -> bool {
    let soak = || samples.iter().filter(|sample| sample.phase == "soak");
    let share = |sample: &Sample| sample.anonymous as f64 / sample.bound as f64;
    let Some(peak) = soak().max_by(|a, b| share(a).total_cmp(&share(b))) else {
        println!("FAILED: nothing was sampled");
        return false;
    };
    let most = |name: &str| soak().map(|sample| sample.gauge(name)).fold(0.0, f64::max);
    let last = |name: &str| samples.last().map_or(0.0, |sample| sample.gauge(name));
    let load_count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    println!("bound: polybolt_memory_bound_bytes, at each second, and {SLACK} times that is allowed");
    println!(
        "  48 MiB, 4 times --buffer-bytes ({}), --unread-bytes-max ({}), the index,",
        mib(load.buffer_bytes),
        mib(load.unread_bytes)
    );
    println!(
        "  3 MiB a watch stream, 1 MiB a watcher, 3 MiB a snapshot or stream of a range, 1 MiB a connection, 16 KiB a call"
    );
    println!(
        "memory: {} of {} allocated at the most, {:.0} % of the bound, after {:.1} min; median {}",
        mib(peak.anonymous),
        mib(peak.bound),
        share(peak) * 100.0,
        peak.at / 60.0,
        mib(median(soak().map(|sample| sample.anonymous).collect()))
    );
    println!(
        "writes: {} acknowledged, {} told to come back, {} failed; at most {} waited, with {}; buffers at most {}",
        load_count(&counts.written),
        load_count(&counts.refused),
        load_count(&counts.failed),
        most("polybolt_writes_waiting"),
        mib(most("polybolt_writes_waiting_bytes") as u64),
        mib(most("polybolt_buffered_bytes") as u64)
    );
    println!(
        "watch: {} events read in order, {} out of order, {} times cut off by compaction; {} watchers lagged at the most",
        load_count(&counts.events),
        load_count(&counts.disorder),
        load_count(&counts.cut_off),
        most("etcd_debugging_mvcc_slow_watcher_total")
    );
    println!(
        "stalled: {} streams, {} turned away; {} pins at the most, the oldest {:.0} s, {} revisions held, {} let go",
        load_count(&counts.stalled),
        load_count(&counts.turned_away),
        most("etcd_mvcc_db_open_read_transactions"),
        most("polybolt_pin_oldest_seconds"),
        most("polybolt_pin_held_revisions"),
        last("polybolt_pins_let_go_total")
    );
    println!("metrics: answered in {:.2} s at the most", soak().map(|sample| sample.answered_in).fold(0.0, f64::max));
    println!("files: {} at the most", mib(soak().map(|sample| sample.files).max().unwrap_or(0)));
    let within = share(peak) <= SLACK;
    let ordered = load_count(&counts.disorder) == 0;
    let pressed = most("polybolt_writes_waiting") > 0.0;
    for (fine, what) in [
        (within, "memory stays under the bound"),
        (left.is_empty(), "within a minute all is back at its size before"),
        (ordered, "the watcher that reads got every event once, in order"),
        (pressed, "the disk was slower than the writers"),
    ] {
        println!("{} {what}", if fine { "ok    " } else { "FAILED" });
    }
    left.iter().for_each(|left| println!("       {left}"));
    within && left.is_empty() && ordered && pressed
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
