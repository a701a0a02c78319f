//! A peer in a process of its own: its memory is its own, it really opens, and it can be killed.
//!
//! It says one line of JSON once its store is open, then reads one request a line and answers each with one.

use crate::figure::{Figure, Unit};
use crate::measure::{now, resident};
use crate::peer::{self, Kind, Mode, MvccPeer, Result};
use crate::plan::{Model, Plan};
use crate::rows::{Expected, READS};
use crate::writes::{self, BATCHES, SYNCS};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

/// What a child is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Purpose {
    /// Fills a new store.
    Fill,
    /// Reads one.
    Read,
    /// Puts into one, durably.
    Put,
}

/// Its command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which peer.
    #[arg(long)]
    pub peer: Kind,
    /// Where its store is.
    #[arg(long)]
    pub dir: PathBuf,
    /// What for.
    #[arg(long)]
    pub purpose: Purpose,
    /// How many keys.
    #[arg(long)]
    pub keys: usize,
    /// Seconds that a row may take.
    #[arg(long)]
    pub seconds: f64,
}

/// What it is asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Request {
    /// A row.
    Row(u32),
    /// The content hash.
    Check,
    /// Its memory.
    Memory,
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
    Put(Box<Plan>),
}

/// Runs one.
pub fn run(arguments: &Arguments) -> Result<()> {
    let time = Duration::from_secs_f64(arguments.seconds);
    let mut knows = match arguments.purpose {
        Purpose::Read => Knows::Read(Box::new(Expected::new(arguments.keys, time))),
        Purpose::Put => Knows::Put(Box::new(Plan::new(arguments.keys))),
        Purpose::Fill => {
            let plan = Plan::new(arguments.keys);
            let model = Model::new(&plan);
            Knows::Fill(Box::new(plan), model)
        }
    };
    let mode = if arguments.purpose == Purpose::Fill { Mode::Batch } else { Mode::Sync };
    let before = resident().anonymous;
    let begun = now();
    let opened = |peer: &dyn MvccPeer, knows: &Knows| {
        let (what, unit) = match knows {
            Knows::Fill(..) => return Ok(Vec::new()),
            Knows::Read(expected) => {
                peer.get(expected.some_key())?.ok_or("a key is not there")?;
                ("reopen after a clean close, until a get", Unit::Ms)
            }
            Knows::Put(plan) => {
                peer.get(plan.key(plan.keys - 1))?.ok_or("a key is not there")?;
                writes::durable_put(peer, plan.key(plan.keys - 1), plan.values.of(16))?;
                ("reopen after SIGKILL, until a get and a durable put", Unit::Ms)
            }
        };
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(vec![Figure::new(
            16,
            what,
            unit,
            begun.elapsed().as_secs_f64() * 1e3,
        )])
    };
    peer::with(arguments.peer, &arguments.dir, mode, &mut |peer| {
        say(&Answer::Figures(opened(peer, &knows)?))?;
        for line in std::io::stdin().lock().lines() {
            let answer = match serde_json::from_str(&line?)? {
                Request::Close => break,
                Request::Memory => {
                    let held = resident().anonymous.saturating_sub(before) as f64;
                    Answer::Figures(vec![Figure::new(0, "anonymous memory after reads", Unit::Bytes, held)])
                }
                Request::Check => match &knows {
                    Knows::Read(expected) => expected.check(peer, 2).map_or_else(failed, Answer::Hash),
                    _ => Answer::Failed("only a reader checks".into()),
                },
                Request::Row(row) => row_of(row, peer, &mut knows, arguments).map_or_else(failed, Answer::Figures),
            };
            say(&answer)?;
        }
        Ok(())
    })
}

/// Of 64 callers some begin late and some end late: a shorter time says little.
pub fn time_of_callers(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(1.5))
}

#[expect(clippy::needless_pass_by_value, reason = "as map_or_else has it")]
fn failed(error: Box<dyn std::error::Error + Send + Sync>) -> Answer {
    Answer::Failed(error.to_string())
}

fn row_of(row: u32, peer: &dyn MvccPeer, knows: &mut Knows, arguments: &Arguments) -> Result<Vec<Figure>> {
    match knows {
        Knows::Fill(plan, model) if BATCHES.contains(&row) => writes::batch(row, peer, plan, model),
        Knows::Read(expected) if READS.contains(&row) => expected.measure(row, peer),
        Knows::Put(plan) if SYNCS.contains(&row) => {
            writes::sync(row, peer, plan, &arguments.dir, time_of_callers(arguments.seconds))
        }
        _ => Err(format!("row {row} is not for this child").into()),
    }
}
