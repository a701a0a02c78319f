//! A peer in a process of its own: its memory is its own, it really opens, and it can be killed.
//!
//! It says one line of JSON once its store is open, then reads one request a line and answers each with one.

use crate::callers::{self, Pairs, Until};
use crate::cost::Meter;
use crate::dataset::Data;
use crate::figure::{Figure, Unit};
use crate::later::{Later, value_of};
use crate::measure::{now, resident};
use crate::peer::{self, Kind, Mode, MvccPeer, Pair, Result};
use crate::plan::{Model, Plan};
use crate::rows::{Expected, READS};
use crate::writes::{self, FILLS};
use crate::{beside, durable, memory, raw};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Rows beside a writer in `Batch`, on a copy.
pub const BESIDES: [u32; 4] = [4, 15, 17, 11];
/// Rows in `Sync`, on a copy; of row 16 what it finds when it opens again.
pub const SYNCS: [u32; 4] = [12, 18, 13, 16];
/// Puts that are in the journal when row 16 opens: as many as fit before they are written to where they stay.
const JOURNALED: u64 = 80_000;

/// What a child is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Purpose {
    /// Fills a new store.
    Fill,
    /// Reads one.
    Read,
    /// Puts into one in `Batch`, beside other work.
    Beside,
    /// Puts into one, durably.
    Put,
    /// Opens one.
    Open,
    /// Fills an index in memory.
    Index,
}

/// Its command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which peer.
    #[arg(long)]
    pub peer: String,
    /// Where its store is.
    #[arg(long)]
    pub dir: PathBuf,
    /// What for.
    #[arg(long)]
    pub purpose: Purpose,
    /// How many keys.
    #[arg(long)]
    pub keys: usize,
    /// True for values as objects have them.
    #[arg(long)]
    pub objects: bool,
    /// Seconds that a row may take.
    #[arg(long)]
    pub seconds: f64,
    /// The revision of the last put that was answered before it was killed.
    #[arg(long, default_value_t = 0)]
    pub answered: u64,
}

/// What it is asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Request {
    /// A row.
    Row(u32),
    /// The content hash.
    Check,
    /// One more put, and its revision.
    Last,
    /// To close and end.
    Close,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Figures.
    Figures(Vec<Figure>),
    /// A content hash.
    Hash(String),
    /// A revision.
    Revision(u64),
    /// It failed.
    Failed(String),
}

fn say(answer: &Answer) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, answer)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// What a child knows besides its store.
enum Knows {
    Fill(Box<Plan>, Model),
    Read(Box<Expected>),
    Later(Box<Later>),
    Plan(Box<Plan>),
}

impl Knows {
    fn new(arguments: &Arguments) -> Self {
        let data = if arguments.objects { Data::Objects } else { Data::Flat };
        let plan = || Plan::new(arguments.keys, data);
        match arguments.purpose {
            Purpose::Fill => {
                let plan = plan();
                let model = Model::new(&plan);
                Knows::Fill(Box::new(plan), model)
            }
            Purpose::Read => {
                Knows::Read(Box::new(Expected::new(arguments.keys, data, Duration::from_secs_f64(arguments.seconds))))
            }
            Purpose::Beside | Purpose::Put => Knows::Later(Box::new(Later::new(plan()))),
            Purpose::Open | Purpose::Index => Knows::Plan(Box::new(plan())),
        }
    }
}

/// The key of the last put before a kill and of the first after it: one that the plan leaves alive.
fn last_pair(plan: &Plan) -> Pair<'_> {
    pair_of(plan, plan.keys)
}

fn pair_of(plan: &Plan, key: usize) -> Pair<'_> {
    Pair { key: plan.key(key), value: plan.values.of(value_of(key)) }
}

fn journaled(plan: &Plan) -> Until {
    Until { time: Duration::from_secs(4), puts: JOURNALED.min(plan.keys as u64) / callers::CALLERS as u64 }
}

/// Whether what was answered before a kill is there, then one put more. Its revision.
fn one_more(peer: &dyn MvccPeer, plan: &Plan, answered: u64) -> Result<u64> {
    let pair = last_pair(plan);
    let got = peer.get(pair.key)?.ok_or("a key is not there")?;
    if answered > 0 && (got.modified != answered || got.value != pair.value) {
        return Err(format!("the put that was answered with revision {answered} is lost").into());
    }
    callers::put(peer, pair)?;
    peer.revision()
}

/// Runs one.
pub fn run(arguments: &Arguments) -> Result<()> {
    let kind = Kind::of(&arguments.peer)?;
    let mut knows = Knows::new(arguments);
    if kind == Kind::Machine {
        say(&Answer::Figures(Vec::new()))?;
        return serve(&mut |request| match request {
            Request::Row(row) => machine(row, &knows, arguments).map(Answer::Figures),
            _ => Err("the machine has no store".into()),
        });
    }
    let mode = match arguments.purpose {
        Purpose::Fill | Purpose::Beside => Mode::Batch,
        _ => Mode::Sync,
    };
    let (base, begun) = (resident().anonymous, now());
    peer::with(kind, &arguments.dir, mode, &mut |peer| {
        let what = match &knows {
            Knows::Fill(..) => None,
            Knows::Read(expected) => {
                peer.get(expected.some_key())?.ok_or("a key is not there")?;
                Some("reopen after a clean close, until a get")
            }
            Knows::Later(later) => {
                one_more(peer, &later.plan, arguments.answered)?;
                None
            }
            Knows::Plan(plan) => {
                one_more(peer, plan, arguments.answered)?;
                Some("reopen after SIGKILL, until a get and a durable put")
            }
        };
        let took = begun.elapsed().as_secs_f64() * 1e3;
        say(&Answer::Figures(what.map(|what| Figure::new(16, what, Unit::Ms, took)).into_iter().collect()))?;
        serve(&mut |request| match request {
            Request::Row(row) => {
                let meter = Meter::start(peer);
                let mut figures = row_of(row, peer, &mut knows, arguments)?;
                figures.extend(meter.costs(row, base, peer));
                Ok(Answer::Figures(figures))
            }
            Request::Check => match &knows {
                Knows::Read(expected) => expected.check(peer, 2).map(Answer::Hash),
                _ => Err("only a reader checks".into()),
            },
            Request::Last => match &knows {
                Knows::Later(later) => one_more(peer, &later.plan, 0).map(Answer::Revision),
                Knows::Plan(plan) => one_more(peer, plan, 0).map(Answer::Revision),
                _ => Err("a reader puts nothing".into()),
            },
            Request::Close => Err("it ends".into()),
        })
    })
}

fn serve(answer: &mut dyn FnMut(Request) -> Result<Answer>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Request::Close => break,
            request => say(&answer(request).unwrap_or_else(|error| Answer::Failed(error.to_string())))?,
        }
    }
    Ok(())
}

/// Of 64 callers some begin late and some end late: a shorter time says little.
fn time_of_callers(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(1.5))
}

fn row_of(row: u32, peer: &dyn MvccPeer, knows: &mut Knows, arguments: &Arguments) -> Result<Vec<Figure>> {
    let (time, long) = (Duration::from_secs_f64(arguments.seconds), time_of_callers(arguments.seconds));
    if let (Knows::Plan(plan), 16) = (&*knows, row) {
        // Keys that came last are all alive.
        let pair = |at| pair_of(plan, plan.keys + at);
        return callers::journal(peer, Pairs { count: plan.names.len() - plan.keys, pair: &pair }, journaled(plan));
    }
    if let (Knows::Later(later), Purpose::Put | Purpose::Beside) = (&*knows, arguments.purpose) {
        let pair = |at| later.pair(at);
        let pairs = Pairs { count: later.keys(), pair: &pair };
        match (row, arguments.purpose) {
            (11, Purpose::Beside) => {
                let puts = (arguments.keys / 2).div_ceil(callers::CALLERS) as u64;
                return callers::overwrites(peer, pairs, Until { time: time * 20, puts });
            }
            (13, Purpose::Put) => return callers::durable(peer, pairs, long),
            (16, Purpose::Put) => return callers::journal(peer, pairs, journaled(&later.plan)),
            _ => (),
        }
    }
    match (knows, row, arguments.purpose) {
        (Knows::Fill(plan, model), row, _) if FILLS.contains(&row) => writes::fill(row, peer, plan, model),
        (Knows::Read(expected), row, _) if READS.contains(&row) => expected.measure(row, peer),
        (Knows::Read(expected), 18, _) => Ok(expected.size(stored(&arguments.dir)?)),
        (Knows::Later(later), 4, Purpose::Beside) => beside::gets(peer, later, time),
        (Knows::Later(later), 15, Purpose::Beside) => beside::ranges(peer, later, time),
        (Knows::Later(later), 17, Purpose::Beside) => beside::history(peer, later, later.plan.first_after_load(), time),
        (Knows::Later(later), 12, Purpose::Put) => durable::alternating(peer, later, &arguments.dir),
        (Knows::Later(later), 18, Purpose::Put) => durable::trickle(peer, later, long),
        (_, row, purpose) => Err(format!("row {row} is not for a child to {purpose:?}").into()),
    }
}

/// Bytes that files of a store take on disk: of polybolt only trees, for its journal and its reserve do not grow with it.
fn stored(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for file in raw::files(dir)? {
        let beside = file.strip_prefix(dir)?.iter().any(|part| part == "journal" || part == "RESERVE");
        bytes += if beside { 0 } else { std::fs::metadata(&file)?.blocks() * 512 };
    }
    Ok(bytes)
}

/// What the machine does where peers have a row.
fn machine(row: u32, knows: &Knows, arguments: &Arguments) -> Result<Vec<Figure>> {
    let file = arguments.dir.join("raw");
    match (knows, row) {
        (Knows::Plan(plan), 1) => Ok(memory::index(plan.keys)),
        (Knows::Fill(plan, _), 10) => raw::load(&file, plan),
        (Knows::Read(expected), 2) => raw::dependent(expected.keys() * 600),
        (Knows::Read(expected), 6) => expected.gather(),
        (Knows::Later(later), 13) => raw::group(&file, callers::CALLERS, time_of_callers(arguments.seconds), later),
        _ => Ok(Vec::new()),
    }
}
