//! Rounds over the peers, row by row in turns.

use crate::child::{Answer, Purpose, Request, time_of_callers};
use crate::dataset::Values;
use crate::etcd::Etcd;
use crate::figure::{Figure, Unit};
use crate::peer::{Kind, Result};
use crate::raw;
use crate::report::Report;
use crate::rows::READS;
use crate::writes::{BATCHES, SYNCS};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What is to be run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How many keys are loaded, a multiple of 20,000.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: usize,
    /// Rounds over all peers.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Rows of docs/benchmarks.md, all if none.
    #[arg(long, value_delimiter = ',')]
    pub rows: Vec<u32>,
    /// Peers, all if none.
    #[arg(long, value_delimiter = ',', value_enum)]
    pub peers: Vec<Kind>,
    /// Where stores are made; a new directory under the system's if not given.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Seconds that a row may take for a peer in a round, if one pass is not longer.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// The program with etcd's core.
    #[arg(long, env = "POLYBOLT_ETCD_CORE")]
    pub etcd_core: Option<PathBuf>,
    /// Where the JSON goes; `benches/results/peers-KEYS.json` if not given.
    #[arg(long)]
    pub out: Option<PathBuf>,
}

const ALL: [Kind; 5] = [Kind::Polybolt, Kind::Lmdb, Kind::Redb, Kind::Fjall, Kind::Sqlite];

/// A child process.
struct Child {
    kind: Kind,
    process: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Child {
    fn start(kind: Kind, dir: &Path, purpose: Purpose, arguments: &Arguments) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("child").arg("--peer").arg(kind.name()).arg("--dir").arg(dir);
        command.arg("--purpose").arg(format!("{purpose:?}").to_lowercase());
        command.arg("--keys").arg(arguments.keys.to_string()).arg("--seconds").arg(arguments.seconds.to_string());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(process.stdout.take().ok_or("a child has no output")?);
        Ok(Child { kind, process, answers })
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(format!("{} ended", self.kind.name()).into());
        }
        match serde_json::from_str(&line)? {
            Answer::Failed(why) => Err(format!("{}: {why}", self.kind.name()).into()),
            answer => Ok(answer),
        }
    }

    fn figures(&mut self) -> Result<Vec<Figure>> {
        match self.answer()? {
            Answer::Figures(figures) => Ok(figures),
            other => Err(format!("{} answers {other:?}", self.kind.name()).into()),
        }
    }

    fn ask(&mut self, request: Request) -> Result<()> {
        let input = self.process.stdin.as_mut().ok_or("a child has no input")?;
        serde_json::to_writer(&mut *input, &request)?;
        input.write_all(b"\n")?;
        Ok(input.flush()?)
    }

    fn close(mut self) -> Result<()> {
        self.ask(Request::Close)?;
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{}: {status}", self.kind.name()).into()) }
    }

    /// As a crash: nothing is closed.
    fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

/// A run.
struct Run<'a> {
    arguments: &'a Arguments,
    rows: Vec<u32>,
    peers: Vec<Kind>,
    dir: PathBuf,
    report: Report,
    bar: ProgressBar,
}

/// Runs everything and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.keys == 0 || !arguments.keys.is_multiple_of(20_000) {
        return Err("--keys has to be a multiple of 20,000".into());
    }
    let scratch = tempfile::tempdir()?;
    let dir = arguments.dir.clone().unwrap_or_else(|| scratch.path().to_path_buf());
    let rows = match arguments.rows.is_empty() {
        true => [&BATCHES[..], &READS, &SYNCS, &[16]].concat(),
        false => arguments.rows.clone(),
    };
    let mut peers = if arguments.peers.is_empty() { ALL.to_vec() } else { arguments.peers.clone() };
    let with_etcd = arguments.peers.is_empty() || peers.contains(&Kind::Etcd);
    peers.retain(|kind| *kind != Kind::Etcd);
    let etcd = match &arguments.etcd_core {
        Some(program) if with_etcd => Some(Etcd::new(program.clone(), &dir, arguments.keys)?),
        _ => None,
    };
    if with_etcd && etcd.is_none() {
        println!("etcd's own core is left out: --etcd-core or POLYBOLT_ETCD_CORE names the program");
    }
    let style = ProgressStyle::with_template("{elapsed_precise} {spinner} {msg}")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    let report = Report::new(arguments.keys, arguments.rounds);
    let mut run = Run { arguments, rows, peers, dir, report, bar };
    for round in 0..arguments.rounds {
        run.fill(round)?;
        run.read(round)?;
        run.put(round)?;
        if let Some(etcd) = &etcd {
            run.says(round, "etcd's core", "its rows");
            let figures = etcd.round(&run.rows, round == 0, arguments.seconds)?;
            run.report.add(Kind::Etcd.name(), figures);
        }
        run.raw()?;
    }
    if let (Some(etcd), true) = (&etcd, run.rows.contains(&16)) {
        run.report.add(Kind::Etcd.name(), etcd.reopened()?);
    }
    run.bar.finish_and_clear();
    run.report.print();
    let out = arguments.out.clone().unwrap_or_else(|| {
        let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results");
        results.join(format!("peers-{}.json", arguments.keys))
    });
    run.report.write(&out)?;
    println!("kept in {}", out.display());
    Ok(())
}

impl Run<'_> {
    fn says(&self, round: usize, peer: &str, what: &str) {
        self.bar.set_message(format!("round {} of {}: {peer}, {what}", round + 1, self.arguments.rounds));
    }

    fn dir_of(&self, kind: Kind, which: &str) -> PathBuf {
        self.dir.join(kind.name()).join(which)
    }

    /// Starts a child for each peer, one after the other, and takes what it says of its opening if that is wanted.
    fn start(&mut self, round: usize, purpose: Purpose, which: &str, opening: bool) -> Result<Vec<Child>> {
        let mut children = Vec::new();
        for kind in self.peers.clone() {
            self.says(round, kind.name(), "opens");
            let mut child = Child::start(kind, &self.dir_of(kind, which), purpose, self.arguments)?;
            let figures = child.figures()?;
            if opening && self.rows.contains(&16) {
                self.report.add(kind.name(), figures);
            }
            children.push(child);
        }
        Ok(children)
    }

    /// One row, by turns; the order turns too.
    fn row(&mut self, round: usize, row: u32, children: &mut [Child], keep: bool) -> Result<()> {
        let turn = round % children.len().max(1);
        let (first, last) = children.split_at_mut(turn);
        for child in last.iter_mut().chain(first) {
            self.says(round, child.kind.name(), &format!("row {row}"));
            child.ask(Request::Row(row))?;
            let figures = child.figures()?;
            if keep {
                self.report.add(child.kind.name(), figures);
            }
        }
        Ok(())
    }

    /// Rows in `Batch`, into new stores; the first are kept and read.
    fn fill(&mut self, round: usize) -> Result<()> {
        if round > 0 && !self.rows.iter().any(|row| BATCHES.contains(row)) {
            return Ok(());
        }
        let which = if round == 0 { "store" } else { "again" };
        for kind in &self.peers {
            let dir = self.dir_of(*kind, which);
            if dir.exists() {
                std::fs::remove_dir_all(dir)?;
            }
        }
        let mut children = self.start(round, Purpose::Fill, which, false)?;
        for row in BATCHES {
            self.row(round, row, &mut children, self.rows.contains(&row))?;
        }
        for child in children {
            let kind = child.kind;
            child.close()?;
            if round == 0 {
                let bytes = size(&self.dir_of(kind, which))? as f64;
                self.report
                    .add(kind.name(), vec![Figure::new(0, "files once everything is closed", Unit::Bytes, bytes)]);
            } else {
                std::fs::remove_dir_all(self.dir_of(kind, which))?;
            }
        }
        Ok(())
    }

    fn read(&mut self, round: usize) -> Result<()> {
        let mut children = self.start(round, Purpose::Read, "store", true)?;
        if round == 0 {
            for child in &mut children {
                self.says(round, child.kind.name(), "content hash");
                child.ask(Request::Check)?;
                match child.answer()? {
                    Answer::Hash(hash) => self.report.hash(child.kind, hash)?,
                    other => return Err(format!("{} answers {other:?}", child.kind.name()).into()),
                }
            }
        }
        for row in READS.into_iter().filter(|row| self.rows.contains(row)).collect::<Vec<_>>() {
            self.row(round, row, &mut children, true)?;
        }
        for mut child in children {
            child.ask(Request::Memory)?;
            let figures = child.figures()?;
            self.report.add(child.kind.name(), figures);
            child.close()?;
        }
        Ok(())
    }

    /// Rows in `Sync`, into copies, which are killed after each round.
    fn put(&mut self, round: usize) -> Result<()> {
        if !self.rows.iter().any(|row| SYNCS.contains(row) || *row == 16) {
            return Ok(());
        }
        if round == 0 {
            for kind in self.peers.clone() {
                self.says(round, kind.name(), "copies");
                let copy = self.dir_of(kind, "written");
                if copy.exists() {
                    std::fs::remove_dir_all(&copy)?;
                }
                copy_all(&self.dir_of(kind, "store"), &copy)?;
            }
            // Before the first round nobody was killed yet.
            let mut children = self.start(round, Purpose::Put, "written", false)?;
            self.row(round, 13, &mut children, false)?;
            children.into_iter().try_for_each(Child::kill)?;
        }
        let mut children = self.start(round, Purpose::Put, "written", true)?;
        for row in SYNCS {
            // Row 13 leaves a journal behind for whoever opens next.
            let wanted = self.rows.contains(&row);
            if wanted || row == 13 {
                self.row(round, row, &mut children, wanted)?;
            }
        }
        children.into_iter().try_for_each(Child::kill)
    }

    /// What the machine does without any store.
    fn raw(&mut self) -> Result<()> {
        self.bar.set_message("the machine itself");
        let mut figures = Vec::new();
        if self.rows.contains(&2) {
            let each = raw::dependent_reads(self.arguments.keys * 600, 1_000_000);
            figures.push(Figure::new(2, "... a dependent read in as much memory", Unit::Ns, each));
        }
        if self.rows.contains(&10) {
            let bytes = (self.arguments.keys as u64 * 600).next_multiple_of(1 << 20);
            let rate = raw::sequential(&self.dir.join("sequential"), bytes)? / 567.0;
            figures.push(Figure::new(10, "... as records of 567 bytes written in a row", Unit::PerSecond, rate));
        }
        if self.rows.contains(&13) {
            let record = [b"/registry/pods/namespace-001/frontend-0123456789-01234", Values::new().of(1)].concat();
            let rate =
                raw::group_commit(&self.dir.join("group"), 64, time_of_callers(self.arguments.seconds), &record)?;
            figures.push(Figure::new(13, "... a bare group-commit loop", Unit::PerSecond, rate));
        }
        self.report.add("the machine", figures);
        Ok(())
    }
}

/// Bytes that files take on disk.
fn size(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += if kind.is_dir() { size(&entry.path())? } else { entry.metadata()?.blocks() * 512 };
    }
    Ok(bytes)
}

/// Sparse files stay sparse.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(format!("cp: {status}").into()) }
}
