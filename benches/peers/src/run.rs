//! Rounds over the peers, row by row in turns.

use crate::arguments::Arguments;
use crate::child::{Answer, BESIDES, Purpose, Request, SYNCS};
use crate::etcd::Etcd;
use crate::figure::Figure;
use crate::handle::Child;
use crate::peer::{Kind, Result};
use crate::raw;
use crate::report::Report;
use crate::rows::READS;
use crate::writes::FILLS;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A run.
struct Run<'a> {
    arguments: &'a Arguments,
    rows: Vec<u32>,
    peers: Vec<Kind>,
    etcd: Option<Etcd>,
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
    std::fs::create_dir_all(&dir)?;
    let rows = match arguments.rows.is_empty() {
        true => (1..=18).collect(),
        false => arguments.rows.clone(),
    };
    let mut peers = if arguments.peers.is_empty() { Kind::built() } else { arguments.peers.clone() };
    let with_etcd = (arguments.peers.is_empty() || peers.contains(&Kind::Etcd)) && !arguments.objects();
    peers.retain(|kind| *kind != Kind::Etcd);
    let etcd = match &arguments.etcd_core {
        Some(program) if with_etcd => Some(Etcd::new(program.clone(), &dir, arguments.keys)?),
        _ => None,
    };
    match (arguments.objects(), &etcd) {
        (true, _) => println!("etcd's own core is left out: its program has no such values"),
        (false, None) if with_etcd => {
            println!("etcd's own core is left out: --etcd-core or POLYBOLT_ETCD_CORE names the program");
        }
        _ => (),
    }
    let style = ProgressStyle::with_template("{elapsed_precise} {spinner} {msg}")?;
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    /// What file systems in memory say they are.
    const TMPFS: i64 = 0x0102_1994;
    let memory = rustix::fs::statfs(&dir)?.f_type == TMPFS;
    let report = Report::new(arguments, &rows, memory);
    let mut run = Run { arguments, rows, peers, etcd, dir, report, bar };
    run.all(memory)?;
    run.bar.finish_and_clear();
    run.report.print();
    let out = arguments.out(memory);
    run.report.write(&out)?;
    println!("kept in {}", out.display());
    Ok(())
}

impl Run<'_> {
    /// One kind of work after the other, each in rounds.
    fn all(&mut self, memory: bool) -> Result<()> {
        self.index()?;
        for round in 0..self.arguments.writes.max(1) {
            if round == 0 || self.wants(&FILLS) {
                self.fill(round)?;
            }
        }
        if self.wants(&READS) || self.wants(&[18]) {
            self.read()?;
        }
        if self.wants(&BESIDES) {
            self.beside()?;
        }
        if self.wants(&SYNCS) {
            self.put(memory)?;
        }
        if let (Some(etcd), true) = (&self.etcd, self.wants(&[16])) {
            self.says(0, "etcd's core", "reopens");
            self.report.add(Kind::Etcd.name(), etcd.reopened()?);
        }
        Ok(())
    }

    fn wants(&self, rows: &[u32]) -> bool {
        rows.iter().any(|row| self.rows.contains(row))
    }

    fn says(&self, round: usize, peer: &str, what: &str) {
        let message = format!("round {}: {peer}, {what}", round + 1);
        if self.bar.is_hidden() {
            eprintln!("{:>6.0} s {message}", self.bar.elapsed().as_secs_f64());
        }
        self.bar.set_message(message);
    }

    fn dir_of(&self, kind: Kind, which: &str) -> PathBuf {
        self.dir.join(kind.name()).join(which)
    }

    /// All peers and the machine, whose rows are limits.
    fn all_kinds(&self) -> Vec<Kind> {
        self.peers.iter().copied().chain([Kind::Machine]).collect()
    }

    fn start_one(&mut self, kind: Kind, purpose: Purpose, which: &str, answered: u64) -> Result<(Child, Vec<Figure>)> {
        let dir = self.dir_of(kind, which);
        std::fs::create_dir_all(&dir)?;
        let mut child = Child::start(kind, &dir, purpose, self.arguments, answered)?;
        let figures = child.figures()?;
        Ok((child, figures))
    }

    /// Starts a child for each peer, one after the other, and takes what it says of its opening.
    fn start(&mut self, purpose: Purpose, which: &str, answered: &BTreeMap<Kind, u64>) -> Result<Vec<Child>> {
        let mut children = Vec::new();
        for kind in self.all_kinds() {
            self.says(0, kind.name(), "opens");
            let (child, figures) = self.start_one(kind, purpose, which, answered.get(&kind).copied().unwrap_or(0))?;
            if self.wants(&[16]) {
                self.report.add(kind.name(), figures);
            }
            children.push(child);
        }
        Ok(children)
    }

    /// One row, by turns; the order turns too.
    fn row(&mut self, round: usize, row: u32, children: &mut [Child]) -> Result<()> {
        let turn = round % children.len().max(1);
        let (first, last) = children.split_at_mut(turn);
        for child in last.iter_mut().chain(first) {
            self.says(round, child.kind.name(), &format!("row {row}"));
            child.ask(Request::Row(row))?;
            let mut figures = child.figures()?;
            figures.retain(|figure| self.rows.contains(&figure.row));
            self.report.add(child.kind.name(), figures);
        }
        Ok(())
    }

    fn index(&mut self) -> Result<()> {
        if !self.wants(&[1]) {
            return Ok(());
        }
        self.says(0, "polybolt", "its index alone");
        let (mut child, _) = self.start_one(Kind::Machine, Purpose::Index, "index", 0)?;
        child.ask(Request::Row(1))?;
        let figures = child.figures()?;
        self.report.add(Kind::Polybolt.name(), figures);
        child.close()
    }

    /// Rows in `Batch`, into new stores; the first are kept and read.
    fn fill(&mut self, round: usize) -> Result<()> {
        let which = if round == 0 { "store" } else { "again" };
        for kind in self.all_kinds() {
            let dir = self.dir_of(kind, which);
            if dir.exists() {
                std::fs::remove_dir_all(dir)?;
            }
        }
        let mut children = self.start(Purpose::Fill, which, &BTreeMap::new())?;
        for row in FILLS {
            self.row(round, row, &mut children)?;
        }
        for child in children {
            let kind = child.kind;
            child.close()?;
            if round > 0 {
                std::fs::remove_dir_all(self.dir_of(kind, which))?;
            }
        }
        self.of_etcd(round, "fills", |etcd, rows, _| etcd.fill(rows, round == 0))
    }

    fn read(&mut self) -> Result<()> {
        let mut children = self.start(Purpose::Read, "store", &BTreeMap::new())?;
        for child in children.iter_mut().filter(|child| child.kind != Kind::Machine) {
            self.says(0, child.kind.name(), "content hash");
            child.ask(Request::Check)?;
            match child.answer()? {
                Answer::Hash(hash) => self.report.hash(child.kind, hash)?,
                other => return Err(format!("{} answers {other:?}", child.kind.name()).into()),
            }
        }
        for round in 0..self.arguments.rounds {
            for row in READS.into_iter().chain((round == 0).then_some(18)) {
                if self.wants(&[row]) {
                    self.row(round, row, &mut children)?;
                }
            }
            self.of_etcd(round, "reads", Etcd::read)?;
        }
        children.into_iter().try_for_each(Child::close)
    }

    /// Copies of the stores, to be changed.
    fn copies(&mut self, which: &str) -> Result<()> {
        for kind in self.peers.clone() {
            self.says(0, kind.name(), "copies");
            let copy = self.dir_of(kind, which);
            if copy.exists() {
                std::fs::remove_dir_all(&copy)?;
            }
            copy_all(&self.dir_of(kind, "store"), &copy)?;
        }
        Ok(())
    }

    fn remove(&self, which: &str) -> Result<()> {
        self.all_kinds().into_iter().try_for_each(|kind| Ok(std::fs::remove_dir_all(self.dir_of(kind, which))?))
    }

    /// Rows beside a writer in `Batch`.
    fn beside(&mut self) -> Result<()> {
        self.copies("beside")?;
        let mut children = self.start(Purpose::Beside, "beside", &BTreeMap::new())?;
        for round in 0..self.arguments.writes {
            for row in BESIDES {
                // What is written at row 11 is for row 18 too.
                if self.wants(&[row]) || (row == 11 && self.wants(&[18])) {
                    self.row(round, row, &mut children)?;
                }
            }
            self.of_etcd(round, "reads and writes", Etcd::beside)?;
        }
        children.into_iter().try_for_each(Child::close)?;
        self.remove("beside")
    }

    /// Rows in `Sync`, into copies, which are killed after each round and opened again.
    fn put(&mut self, memory: bool) -> Result<()> {
        self.copies("written")?;
        let mut answered = BTreeMap::new();
        for round in 0..self.arguments.writes {
            let mut children = self.start(Purpose::Put, "written", &answered)?;
            for row in SYNCS {
                if self.wants(&[row]) || (row == 13 && self.wants(&[18])) {
                    self.row(round, row, &mut children)?;
                }
            }
            for child in children {
                let kind = child.kind;
                if kind == Kind::Machine {
                    child.close()?;
                } else {
                    answered.insert(kind, child.kill()?);
                }
            }
            if self.wants(&[16]) {
                self.reopen(round, &mut answered, memory)?;
            }
        }
        self.remove("written")
    }

    /// Opens what was killed: warm, killed again, then with nothing of it in memory.
    fn reopen(&mut self, round: usize, answered: &mut BTreeMap<Kind, u64>, memory: bool) -> Result<()> {
        for cold in [false, true] {
            for kind in self.peers.clone() {
                if cold && memory {
                    continue;
                }
                let dir = self.dir_of(kind, "written");
                if cold {
                    raw::forget(&dir)?;
                    let once = raw::read_once(&dir)?;
                    self.report.add(kind.name(), vec![once]);
                    raw::forget(&dir)?;
                }
                self.says(round, kind.name(), if cold { "opens cold" } else { "opens warm" });
                let (mut child, mut figures) = self.start_one(kind, Purpose::Open, "written", answered[&kind])?;
                if cold {
                    figures.iter_mut().for_each(|figure| "... cold".clone_into(&mut figure.what));
                } else {
                    // As full a journal for the next one.
                    child.ask(Request::Row(16))?;
                    child.figures()?;
                }
                self.report.add(kind.name(), figures);
                answered.insert(kind, child.kill()?);
            }
        }
        Ok(())
    }

    /// What etcd's core has of some rows.
    fn of_etcd(
        &mut self,
        round: usize,
        what: &str,
        work: impl Fn(&Etcd, &[u32], f64) -> Result<Vec<Figure>>,
    ) -> Result<()> {
        if let Some(etcd) = &self.etcd {
            self.says(round, "etcd's core", what);
            let figures = work(etcd, &self.rows, self.arguments.seconds)?;
            self.report.add(Kind::Etcd.name(), figures);
        }
        Ok(())
    }
}

/// Sparse files stay sparse.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(format!("cp: {status}").into()) }
}
