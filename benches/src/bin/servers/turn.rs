//! One turn of one server: the load of a row, its answers checked, and what both sides of it used.

use crate::rows::{Row, Shape};
use indicatif::ProgressBar;
use polybolt_benches::now;
use polybolt_benches::server::{Server, Side};
use polybolt_frontend::bench::{Report, prepare};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// What a turn measured. Each request counts, those of the warm-up too, but for rates and latencies.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Turn {
    pub(crate) requests: u64,
    pub(crate) per_second: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Microseconds of processor time for a request.
    pub(crate) server_cpu: f64,
    pub(crate) generator_cpu: f64,
    /// Of the processors' time in this turn, whoever else used some.
    pub(crate) server_share: f64,
    pub(crate) generator_share: f64,
    /// For a request.
    pub(crate) written_bytes: f64,
    pub(crate) syncs: f64,
    /// At the end.
    pub(crate) resident_bytes: f64,
}

/// Processor time of this process, all threads, in seconds.
fn own_cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "below 2^53 ns")]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds
}

/// Puts the keys of a row where they are not there.
pub(crate) async fn fill(row: &Row, shape: &Shape, server: &Server, bar: &ProgressBar) -> Result<(), String> {
    let options = row.options(shape, server.port, false, 0);
    let ready = prepare(&options, bar, &CancellationToken::new()).await;
    ready.map(drop).map_err(|error| format!("{}: {error}", server.side.name()))
}

/// A turn.
///
/// # Errors
/// If any request failed, or was answered wrongly.
#[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
pub(crate) async fn turn(
    row: &Row,
    shape: &Shape,
    server: &Server,
    seed: u64,
    bar: &ProgressBar,
) -> Result<Turn, String> {
    let options = row.options(shape, server.port, server.side == Side::Idle, seed);
    let stop = CancellationToken::new();
    let failed = |what: String| format!("{} of {}: {what}", row.name, server.side.name());
    let ready = prepare(&options, bar, &stop).await.map_err(|error| failed(error.to_string()))?;
    let (begun, before, own) = (now(), server.used(), own_cpu());
    let report = ready.run(bar, &stop).await;
    let (seconds, own, after) = (begun.elapsed().as_secs_f64(), own_cpu() - own, server.used());
    check(&report).map_err(failed)?;
    let all = (report.requests + report.warmup_requests) as f64;
    let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
    let server_cpu = after.cpu - before.cpu;
    Ok(Turn {
        requests: report.requests,
        per_second: report.per_second,
        p50: report.latency.p50,
        p99: report.latency.p99,
        server_cpu: server_cpu / all * 1e6,
        generator_cpu: own / all * 1e6,
        server_share: server_cpu / seconds / cores,
        generator_share: own / seconds / cores,
        written_bytes: (after.written - before.written) / all,
        syncs: (after.syncs - before.syncs) / all,
        resident_bytes: server.resident(),
    })
}

fn check(report: &Report) -> Result<(), String> {
    if let Some((code, failures)) = report.errors.iter().next() {
        return Err(format!("{} times {code}, at first: {}", failures.count, failures.first));
    }
    if report.failed > 0 || report.requests == 0 {
        return Err(format!("{} requests were answered, {} failed", report.requests, report.failed));
    }
    match &report.watch {
        Some(watch) if watch.missing + watch.disorder > 0 => {
            Err(format!("watchers miss {} events, and {} came out of order", watch.missing, watch.disorder))
        }
        _ => Ok(()),
    }
}
