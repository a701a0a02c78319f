//! Commands on a data directory that no server has open.

use crate::serve::KEYSPACE;
use clap::{Args, Subcommand};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use polybolt::{Engine, Options, Routes};
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Makes a data directory from a file that `etcdctl snapshot save` wrote from a polybolt server.
    Restore(Restore),
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// The file.
    file: PathBuf,
    /// The data directory to make; it may not exist, or has to be empty.
    #[arg(long)]
    data_dir: PathBuf,
    /// How keys are split into files; as they were if not given.
    #[arg(long, value_parser = Routes::parse)]
    routes: Option<Routes>,
}

impl Snapshot {
    #[expect(clippy::disallowed_methods, reason = "the user's own file, not one of a store")]
    pub(crate) fn run(self) -> Result<(), String> {
        let Snapshot::Restore(Restore { file, data_dir, routes }) = self;
        let opened = File::open(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let bytes = opened.metadata().map_or(0, |metadata| metadata.len());
        let bar = ProgressBar::new(bytes);
        let style = ProgressStyle::with_template("{elapsed} [{bar:40}] {bytes}/{total_bytes}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let engine = Engine::open(&data_dir, Options::default()).map_err(|error| error.to_string())?;
        let reader = bar.wrap_read(BufReader::new(opened));
        let mut rows = 0;
        let restored = engine.restore(KEYSPACE, routes, reader, &mut |done| rows = done);
        bar.finish_and_clear();
        let keyspace = restored.map_err(|error| format!("{}: {error}", file.display()))?;
        let revision = keyspace.revision();
        drop(keyspace);
        engine.close().map_err(|error| error.to_string())?;
        println!("{}: {} rows up to revision {revision}", data_dir.display(), HumanCount(rows));
        Ok(())
    }
}
