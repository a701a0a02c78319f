//! Opening after SIGKILL with a full journal: until a get is answered and a put is durable, every leaf verified.
//!
//! ```text
//! cargo run --release -p polybolt-benches --bin open -- --rounds 5
//! ```
//!
//! A child fills a store and kills itself; each opening is of a fresh copy, in a process of its own, warm (just
//! copied) or cold (its pages dropped from the cache), by turns with reading the same files once.

use clap::{Parser, ValueEnum};
use polybolt::{Engine, Error, Options, Pending, PutRequest, PutResponse, RangeRequest, Refusal, Routes, Span};
use polybolt_benches::dataset::{self, Numbers, Values};
use polybolt_benches::{machine, mib, now, pause, resident};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Opening after SIGKILL with a full journal.
#[derive(Debug, Parser)]
struct Args {
    /// Keys, shaped as in Kubernetes.
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Overwrites of keys drawn at random; the last 100,000 stay in the journal alone.
    #[arg(long, default_value_t = 500_000)]
    revisions: usize,
    /// One shard, instead of those for Kubernetes.
    #[arg(long)]
    one_shard: bool,
    /// Where; a new directory under the system's if not given. A filled one is used as it is.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Other builds of this program, to be measured by turns with this one.
    #[arg(long)]
    beside: Vec<PathBuf>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What a child does.
    #[arg(long, hide = true, requires = "dir")]
    child: Option<Child>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Child {
    Fill,
    Open,
    Read,
}

/// What stays in the journal.
const TAIL: usize = 100_000;
const WINDOW: usize = 2048;
const STORE: &str = "store";
const COPY: &str = "copy";
/// What was written last, beside the store.
const LAST: &str = "last";
const FIGURES: [&str; 8] = ["open s", "get s", "put s", "in all s", "CPU s", "read MiB", "peak MiB", "index MiB"];

fn invalid(why: impl ToString) -> Error {
    Error::Refused(Refusal::Invalid { why: why.to_string() })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads files as they are")]
fn file(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(invalid)
}

/// The files of a directory and those below, but for what is only a reserve of space.
fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(invalid)? {
        let path = entry.map_err(invalid)?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.file_name().is_none_or(|name| name != "RESERVE" && name != "LOCK") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn main() -> Result<(), Error> {
    let args = Args::parse();
    match (args.child, &args.dir) {
        (Some(Child::Fill), Some(dir)) => fill(&args, dir),
        (Some(Child::Open), Some(dir)) => open(dir),
        (Some(Child::Read), Some(dir)) => read(&dir.join(COPY)),
        _ => measure(&args),
    }
}

fn put_all(engine: &Engine, puts: impl Iterator<Item = (String, Vec<u8>)>) -> Result<(), Error> {
    let keyspace = engine.keyspace("default")?;
    let mut pending: VecDeque<Pending<PutResponse>> = VecDeque::new();
    for (key, value) in puts {
        if pending.len() >= WINDOW
            && let Some(oldest) = pending.pop_front()
        {
            oldest.wait()?;
        }
        pending.push_back(keyspace.put(PutRequest::new(key, value)));
    }
    pending.into_iter().try_for_each(|put| put.wait().map(drop))
}

/// Fills a store, and kills itself while the last of it is in the journal alone.
fn fill(args: &Args, dir: &Path) -> Result<(), Error> {
    let (store, values, names) = (dir.join(STORE), Values::new(), dataset::keys(args.keys));
    let mut numbers = Numbers::new(1);
    let keys: Vec<usize> =
        dataset::scattered(args.keys).chain((0..args.revisions).map(|_| numbers.below(args.keys))).collect();
    let put = |at: usize| (names[keys[at]].clone(), values.of(at as u64).to_vec());
    let tail = keys.len() - TAIL.min(args.revisions);
    let engine = Engine::open(&store, Options::default())?;
    let routes = if args.one_shard { Routes::single() } else { Routes::kubernetes() };
    drop(engine.create_keyspace("default", routes)?);
    put_all(&engine, (0..tail).map(put))?;
    engine.close()?;
    // No checkpoint: the journal is as full as buffers of the default size let it become.
    let hour = Duration::from_secs(3600);
    let options = Options { buffer_bytes: 256 << 20, checkpoint_interval: hour, ..Options::default() };
    let engine = Engine::open(&store, options)?;
    put_all(&engine, (tail..keys.len()).map(put))?;
    let last = keys.len() - 1;
    let said = format!("{} {} {last} {}", args.keys, engine.keyspace("default")?.revision(), names[keys[last]]);
    std::fs::write(dir.join(LAST), said).map_err(invalid)?;
    println!("in buffers when it is killed: {}", mib(engine.stats().buffered_bytes));
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).map_err(invalid)
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Bytes that this process had read from a device.
fn read_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

fn print_figures(figures: [f64; 8]) {
    println!("{}", figures.map(|figure| figure.to_string()).join(" "));
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn in_mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn open(dir: &Path) -> Result<(), Error> {
    let last = std::fs::read_to_string(dir.join(LAST)).map_err(invalid)?;
    let last: Vec<&str> = last.split(' ').collect();
    let [keys, revision, value, key] = last[..] else { return Err(invalid("the last key is not known")) };
    let (stop, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                peak.fetch_max(resident().anonymous, Ordering::AcqRel);
                pause(Duration::from_millis(5));
            }
        });
        let (begun, worked) = (now(), cpu());
        let engine = Engine::open(dir.join(COPY), Options::default());
        let opened = begun.elapsed();
        let found = engine.as_ref().map_err(invalid).and_then(|engine| {
            let keyspace = engine.keyspace("default")?;
            let got = keyspace.range(&RangeRequest::new(Span::key(key.to_owned())))?;
            let answered = begun.elapsed();
            keyspace.put(PutRequest::new("/registry/minions/another", "node")).wait()?;
            Ok((got, answered, begun.elapsed(), cpu() - worked))
        });
        stop.store(true, Ordering::Release);
        let (got, answered, put, worked) = found?;
        let keyspace = engine?.keyspace("default")?;
        let index: u64 = keyspace.status().shards.iter().map(|shard| shard.index_bytes).sum();
        let count = keyspace.range(&RangeRequest { count_only: true, ..RangeRequest::new(Span::prefix("")) })?.count;
        let is_last = |kv: &polybolt::KeyValue| value.parse().is_ok_and(|number| kv.value == Values::new().of(number));
        if count.to_string() != (keys.parse::<u64>().map_err(invalid)? + 1).to_string()
            || keyspace.revision().to_string() != (revision.parse::<i64>().map_err(invalid)? + 1).to_string()
            || !got.kvs.first().is_some_and(is_last)
        {
            return Err(invalid(format!("{count} keys at {}, not what was written", keyspace.revision())));
        }
        let seconds = |time: Duration| time.as_secs_f64();
        print_figures([
            seconds(opened),
            seconds(answered - opened),
            seconds(put - answered),
            seconds(put),
            seconds(worked),
            in_mib(read_bytes()),
            in_mib(peak.load(Ordering::Acquire)),
            in_mib(index),
        ]);
        Ok(())
    })
}

/// Reads every file once, from its beginning to its end.
fn read(dir: &Path) -> Result<(), Error> {
    let (begun, worked) = (now(), cpu());
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    for path in files(dir)? {
        let mut file = file(&path)?;
        loop {
            match file.read(&mut buffer).map_err(invalid)? {
                0 => break,
                more => bytes += more as u64,
            }
        }
    }
    let took = begun.elapsed().as_secs_f64();
    print_figures([0.0, 0.0, 0.0, took, (cpu() - worked).as_secs_f64(), in_mib(read_bytes()), 0.0, in_mib(bytes)]);
    Ok(())
}

/// Copies the killed store; nothing of the copy is left to be written.
fn copy(dir: &Path) -> Result<(), Error> {
    let (from, to) = (dir.join(STORE), dir.join(COPY));
    if to.exists() {
        std::fs::remove_dir_all(&to).map_err(invalid)?;
    }
    for path in files(&from)? {
        let target = to.join(path.strip_prefix(&from).map_err(invalid)?);
        std::fs::create_dir_all(target.parent().unwrap_or(&to)).map_err(invalid)?;
        std::fs::copy(&path, &target).map_err(invalid)?;
        file(&target)?.sync_all().map_err(invalid)?;
    }
    Ok(())
}

/// Drops the copy's pages from the page cache.
fn forget(dir: &Path) -> Result<(), Error> {
    for path in files(&dir.join(COPY))? {
        rustix::fs::fadvise(file(&path)?, 0, None, rustix::fs::Advice::DontNeed).map_err(invalid)?;
    }
    Ok(())
}

fn run(program: &Path, what: &str, dir: &Path) -> Result<Vec<f64>, Error> {
    let output = Command::new(program).args(["--child", what, "--dir"]).arg(dir).output().map_err(invalid)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = said.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
    if !output.status.success() || figures.len() != FIGURES.len() {
        return Err(invalid(format!("{what} failed: {said} {}", String::from_utf8_lossy(&output.stderr))));
    }
    Ok(figures)
}

fn measure(args: &Args) -> Result<(), Error> {
    let scratch = tempfile::tempdir().map_err(invalid)?;
    let dir = args.dir.as_deref().unwrap_or(scratch.path());
    let this = std::env::current_exe().map_err(invalid)?;
    println!("{}; {} keys and {} more revisions", machine(), args.keys, args.revisions);
    if !dir.join(LAST).exists() {
        let mut filler = Command::new(&this);
        filler.args(["--child", "fill", "--keys", &args.keys.to_string(), "--revisions", &args.revisions.to_string()]);
        filler.args(args.one_shard.then_some("--one-shard")).arg("--dir").arg(dir);
        filler.status().map_err(invalid)?;
    }
    let openers: Vec<&Path> = std::iter::once(&*this).chain(args.beside.iter().map(|path| &**path)).collect();
    let mut sides: Vec<(String, Vec<Vec<f64>>)> = Vec::new();
    let mut note = |name: String, figures| match sides.iter_mut().find(|(known, _)| *known == name) {
        Some((_, all)) => all.push(figures),
        None => sides.push((name, vec![figures])),
    };
    for _ in 0..args.rounds {
        for (which, opener) in openers.iter().enumerate() {
            copy(dir)?;
            note(format!("open {which}, warm"), run(opener, "open", dir)?);
            copy(dir)?;
            forget(dir)?;
            note(format!("open {which}, cold"), run(opener, "open", dir)?);
        }
        copy(dir)?;
        note("read, warm".to_owned(), run(&this, "read", dir)?);
        forget(dir)?;
        note("read, cold".to_owned(), run(&this, "read", dir)?);
    }
    println!("{:<14}{}", "medians", FIGURES.map(|name| format!("{name:>11}")).concat());
    for (name, all) in sides {
        let median = |at: usize| {
            let mut figures: Vec<f64> = all.iter().map(|figures| figures[at]).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        println!("{name:<14}{}", std::array::from_fn::<_, 8, _>(|at| format!("{:>11.3}", median(at))).concat());
    }
    Ok(())
}
