//! What came of the requests: latencies, counts, errors; and the report of it.

use super::error::message;
use super::options::Options;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;
use tonic::{Code, Status};

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A put.
    Put,
    /// A range of one key.
    Get,
    /// A range of a prefix.
    List,
    /// A compare-and-swap.
    Update,
    /// A put if the key is not there.
    Create,
    /// A delete if the key is unchanged.
    Delete,
}

/// Why a request gave nothing to count.
#[derive(Debug)]
pub(super) enum Failure {
    Refused(Status),
    /// The server said yes, but not what is so.
    Wrong(String),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure::Refused(status)
    }
}

impl Failure {
    fn code(&self) -> String {
        match self {
            Failure::Refused(status) => code(status.code()).to_owned(),
            Failure::Wrong(_) => "WRONG_ANSWER".to_owned(),
        }
    }

    fn message(&self) -> String {
        match self {
            Failure::Refused(status) => message(status),
            Failure::Wrong(what) => what.clone(),
        }
    }
}

/// The name of a code in gRPC's documents.
fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A histogram of nanoseconds, right to a thousandth.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a part of the clients has counted.
#[derive(Debug, Default)]
struct Part {
    latencies: BTreeMap<Operation, Histogram<u64>>,
    errors: BTreeMap<String, Failures>,
    /// The last answer that counts, in nanoseconds of the run.
    last: u64,
}

/// Requests that failed alike.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// What the first was told.
    pub first: String,
}

/// Clients that share a part wait for each other, for the time of one record.
const PARTS: u64 = 8;

/// What all clients count together.
#[derive(Debug)]
pub(super) struct Tally {
    parts: Vec<Mutex<Part>>,
    /// Requests answered and failed that count, for the progress.
    pub(super) answered: AtomicU64,
    pub(super) failed: AtomicU64,
    /// Answers of the warm-up.
    pub(super) warmed: AtomicU64,
    /// Updates that found the key changed.
    pub(super) conflicts: AtomicU64,
    /// Values put with a stamp, warm-up included.
    pub(super) stamped: AtomicU64,
    /// Keys created and not deleted.
    pub(super) kept: AtomicI64,
}

impl Tally {
    pub(super) fn new(clients: u64) -> Tally {
        Tally {
            parts: (0..clients.min(PARTS)).map(|_| Mutex::default()).collect(),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            warmed: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            stamped: AtomicU64::new(0),
            kept: AtomicI64::new(0),
        }
    }

    fn part(&self, client: u64) -> &Mutex<Part> {
        &self.parts[usize::try_from(client).unwrap_or(0) % self.parts.len()]
    }

    /// A request of `client`, due and answered at these times of the run.
    pub(super) fn answered(&self, client: u64, operation: Operation, due: Duration, now: Duration) {
        let mut part = self.part(client).lock();
        let latencies = part.latencies.entry(operation).or_insert_with(histogram);
        latencies.record(nanos(now.saturating_sub(due)).max(1)).expect("it grows as needed");
        part.last = part.last.max(nanos(now));
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, client: u64, failure: &Failure) {
        self.fault(client, failure.code(), || failure.message());
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Something that is no request of its own.
    pub(super) fn fault(&self, client: u64, code: String, first: impl FnOnce() -> String) {
        let mut part = self.part(client).lock();
        let failures = part.errors.entry(code).or_insert_with(|| Failures { count: 0, first: first() });
        failures.count += 1;
    }

    /// What was counted since `begun`, which is when the warm-up ended.
    pub(super) fn report(&self, options: &Options, begun: Duration) -> Report {
        let mut all = histogram();
        let (mut latencies, mut errors) = (BTreeMap::<_, Histogram<u64>>::new(), BTreeMap::<_, Failures>::new());
        let mut last = 0;
        for part in &self.parts {
            let part = part.lock();
            last = last.max(part.last);
            for (operation, histogram) in &part.latencies {
                all.add(histogram).expect("it grows as needed");
                let sum = latencies.entry(*operation).or_insert_with(self::histogram);
                sum.add(histogram).expect("it grows as needed");
            }
            for (code, failures) in &part.errors {
                let sum = errors.entry(code.clone()).or_insert_with(|| Failures { count: 0, ..failures.clone() });
                sum.count += failures.count;
            }
        }
        let seconds = Duration::from_nanos(last).saturating_sub(begun).as_secs_f64();
        let operations = latencies.iter();
        Report {
            options: options.clone(),
            server: String::new(),
            filled: 0,
            warmup_requests: self.warmed.load(Ordering::Relaxed),
            requests: all.len(),
            seconds,
            per_second: per_second(all.len(), seconds),
            failed: self.failed.load(Ordering::Relaxed),
            unsent: 0,
            conflicts: self.conflicts.load(Ordering::Relaxed),
            kept: self.kept.load(Ordering::Relaxed),
            latency: Latency::new(&all),
            operations: operations.map(|(operation, histogram)| (*operation, Latency::new(histogram))).collect(),
            errors,
            watch: None,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was asked for.
    pub options: Options,
    /// The version that the first server says it has.
    pub server: String,
    /// Keys put before the run.
    pub filled: u64,
    /// Requests of the warm-up that were answered; nothing else counts them.
    pub warmup_requests: u64,
    /// Requests that were answered well.
    pub requests: u64,
    /// From the end of the warm-up to the last answer.
    pub seconds: f64,
    /// Requests a second.
    pub per_second: f64,
    /// Requests that failed or were answered wrongly.
    pub failed: u64,
    /// Requests that were due by the rate, and not sent: the server was too far behind.
    pub unsent: u64,
    /// Updates that found their key changed by another client: answered well, and nothing written.
    pub conflicts: u64,
    /// Keys that the load created and has not deleted, warm-up included.
    pub kept: i64,
    /// Of all requests.
    pub latency: Latency,
    /// Of each kind of request.
    pub operations: BTreeMap<Operation, Latency>,
    /// What failed, by its code.
    pub errors: BTreeMap<String, Failures>,
    /// What watchers got.
    pub watch: Option<Watched>,
}

/// What watchers got.
#[derive(Debug, Clone, Serialize)]
pub struct Watched {
    /// How many there were.
    pub watchers: u64,
    /// Events of this run's puts, warm-up included, of all watchers together.
    pub events: u64,
    /// Events that have to come and did not.
    pub missing: u64,
    /// Events that came after a later one, or twice.
    pub disorder: u64,
    /// From when its put was due to when an event came.
    pub latency: Latency,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// How many; the rest is 0 if there are none.
    pub count: u64,
    /// The shortest.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// Half are no longer.
    pub p50: f64,
    /// 90 of 100 are no longer.
    pub p90: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// 999 of 1000 are no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    pub(super) fn new(nanos: &Histogram<u64>) -> Latency {
        if nanos.is_empty() {
            return Latency::default();
        }
        #[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^53 ns")]
        let micros = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| micros(nanos.value_at_quantile(quantile));
        Latency {
            count: nanos.len(),
            min: micros(nanos.min()),
            mean: nanos.mean() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(nanos.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_counts_come_together_and_latencies_begin_when_due() {
        let tally = Tally::new(20);
        let millis = Duration::from_millis;
        for client in 0..20 {
            tally.answered(client, Operation::Put, millis(1000), millis(1000 + client));
        }
        tally.answered(3, Operation::Get, millis(1000), millis(3000));
        for client in 0..20 {
            tally.failed(client, &Failure::Refused(Status::unavailable("away")));
        }
        tally.failed(1, &Failure::Wrong("no".to_owned()));
        let report = tally.report(&Options::default(), millis(1000));
        assert_eq!((report.requests, report.failed), (21, 21));
        assert_eq!((report.errors["UNAVAILABLE"].count, report.errors["UNAVAILABLE"].first.as_str()), (20, "away"));
        assert_eq!(report.errors["WRONG_ANSWER"].count, 1);
        assert!((report.seconds - 2.0).abs() < 1e-9 && (report.per_second - 10.5).abs() < 1e-9);
        let (put, get) = (report.operations[&Operation::Put], report.operations[&Operation::Get]);
        assert_eq!((put.count, get.count), (20, 1));
        assert!((put.p50 / 9000.0 - 1.0).abs() < 0.002, "{put:?}");
        assert!((get.max / 2e6 - 1.0).abs() < 0.002 && (report.latency.max / 2e6 - 1.0).abs() < 0.002);
        // What was asked for, and names as they are documented.
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["options"]["load"]["name"], &json["operations"]["get"]["count"]), (&"put".into(), &1.into()));
    }

    #[test]
    fn nothing_answered_is_no_number_to_divide_by() {
        let report = Tally::new(1).report(&Options::default(), Duration::from_secs(1));
        assert_eq!((report.requests, report.latency.count), (0, 0));
        assert!(report.per_second.abs() < f64::EPSILON && report.latency.max.abs() < f64::EPSILON);
    }
}
