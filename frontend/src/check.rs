//! `polybolt check`: what is wrong with a data directory that no server has open, and what can be saved of it.

use crate::report::Report;
use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use polybolt::{CheckReport, KeyAt, List, Loss, Lost, Place, Progress, SalvageReport, Severity};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Damage was found.
const DAMAGED: u8 = 1;
/// Nothing can be said.
const NOT_CHECKED: u8 = 2;
/// What is listed of each list on a terminal; --json lists more.
const LISTED: usize = 20;

/// Exit status: 0 sound, 1 damage was found, 2 it could not be checked.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The data directory.
    #[arg(long, default_value = "polybolt.data")]
    data_dir: PathBuf,
    /// Print a report for programs.
    #[arg(long)]
    json: bool,
    /// Copy what is intact into a new data directory, and list what is not.
    #[arg(long, value_name = "DIR")]
    salvage: Option<PathBuf>,
    /// Copy rows too that may have been compacted away.
    #[arg(long, requires = "salvage")]
    doubtful: bool,
}

impl Check {
    pub(crate) fn run(self) -> ExitCode {
        match self.check() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(DAMAGED),
            Err(error) => {
                eprintln!("polybolt: {error}");
                ExitCode::from(NOT_CHECKED)
            }
        }
    }

    /// True if nothing is damaged.
    fn check(&self) -> Result<bool, String> {
        let found = with_bar(|progress| polybolt::check(&self.data_dir, progress))?;
        let salvaged = match &self.salvage {
            None => None,
            Some(to) => {
                let salvaged = with_bar(|progress| polybolt::salvage(&self.data_dir, to, self.doubtful, progress))?;
                let again = with_bar(|progress| polybolt::check(to, progress))?;
                if let Some(finding) = again.findings.list.iter().find(|finding| finding.severity != Severity::Note) {
                    return Err(format!("what was salvaged is not to be used: {finding}"));
                }
                Some(salvaged)
            }
        };
        if self.json {
            let report = Report::new(&self.data_dir, &found, self.salvage.as_deref().zip(salvaged.as_ref()));
            println!("{}", serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?);
        } else {
            print(&self.data_dir, &found);
            if let Some((to, salvaged)) = self.salvage.as_deref().zip(salvaged.as_ref()) {
                print_salvaged(to, salvaged);
            }
        }
        let findings = &found.findings;
        let Some(first) = findings.list.iter().find(|finding| finding.severity != Severity::Note) else {
            return Ok(true);
        };
        let count = findings.damage + findings.unreadable;
        if findings.damage == 0 {
            return Err(format!("{first}; {count} in all: the rest is sound"));
        }
        eprintln!("polybolt: damaged: {first}; {count} in all");
        Ok(false)
    }
}

/// Runs something long under a progress bar, which is shown on a terminal only.
fn with_bar<T>(run: impl FnOnce(&mut dyn FnMut(Progress<'_>)) -> polybolt::Result<T>) -> Result<T, String> {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{elapsed} [{bar:40}] {bytes}/{total_bytes}, {eta} left: {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let done = run(&mut |progress| match progress {
        Progress::Total(bytes) => bar.set_length(bytes),
        Progress::At(what) => bar.set_message(what.to_owned()),
        Progress::Bytes(bytes) => bar.inc(bytes),
    });
    bar.finish_and_clear();
    done.map_err(|error| error.to_string())
}

fn print(data_dir: &Path, report: &CheckReport) {
    for finding in &report.findings.list {
        let severity = match finding.severity {
            Severity::Damage => "damage",
            Severity::Unreadable => "unreadable",
            Severity::Note => "note",
        };
        println!("{severity}: {finding}");
    }
    if report.findings.left_out() > 0 {
        println!("and {} more", HumanCount(report.findings.left_out()));
    }
    let sound = if report.findings.is_clean() { "sound" } else { "damaged" };
    println!(
        "{}: {sound}: {} keyspaces, {} trees, {} pages, {} overflow extents, {} rows, {} keys, {} leases, {} ({} free); \
         journal: {} segments, {} groups with {} records to replay",
        data_dir.display(),
        report.keyspaces,
        report.trees,
        HumanCount(report.pages),
        HumanCount(report.extents),
        HumanCount(report.rows),
        HumanCount(report.keys),
        HumanCount(report.leases),
        HumanBytes(report.bytes),
        HumanBytes(report.free),
        report.journal.segments,
        HumanCount(report.journal.replay.groups),
        HumanCount(report.journal.replay.records),
    );
}

fn print_salvaged(to: &Path, report: &SalvageReport) {
    for (name, why) in &report.left {
        println!("keyspace {name} was left: {why}");
    }
    for of in &report.keyspaces {
        println!(
            "{}: keyspace {}: revision {}, {} rows, {} leases and table entries",
            to.display(),
            of.name,
            of.revision,
            HumanCount(of.rows),
            HumanCount(of.entries)
        );
        list("lost", &of.losses, loss);
        list("recovered from a page that nothing leads to", &of.recovered, key_at);
        list("doubtful (it may have been compacted away)", &of.doubtful, key_at);
        list("perhaps stale (it may have been changed or deleted since)", &of.stale, key_at);
    }
}

fn list<T>(what: &str, list: &List<T>, show: impl Fn(&T) -> String) {
    for item in list.first.iter().take(LISTED) {
        println!("{what}: {}", show(item));
    }
    let left_out = list.count.saturating_sub(LISTED as u64);
    if left_out > 0 {
        println!("{what}: {} more; --json lists more of them", HumanCount(left_out));
    }
}

fn key_at(at: &KeyAt) -> String {
    format!("{} at revision {}", at.key.escape_ascii(), at.revision)
}

fn loss(loss: &Loss) -> String {
    let place = match loss.place {
        Place::File => String::new(),
        place => place.to_string().trim_end_matches(',').to_owned(),
    };
    let what = match &loss.what {
        Lost::Revisions { from, to: Some(to) } => {
            format!("revisions {}.{} to before {}.{}", from.0, from.1, to.0, to.1)
        }
        Lost::Revisions { from, to: None } => format!("revisions from {}.{} on", from.0, from.1),
        Lost::Row { key, revision } => format!("the value of {} at revision {revision}", key.escape_ascii()),
        Lost::Entries { from, to: Some(to) } => {
            format!("leases and table entries from {} to before {}", from.escape_ascii(), to.escape_ascii())
        }
        Lost::Entries { from, to: None } => format!("leases and table entries from {} on", from.escape_ascii()),
        Lost::Records { count } => format!("{count} records of the journal"),
    };
    format!("{}{place}: {what}", loss.file.display())
}
