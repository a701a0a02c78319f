//! `polybolt reshard`: how keys are split into files, changed.

use crate::serve::KEYSPACE;
use crate::status;
use clap::Args;
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use polybolt::{Engine, Options, ReshardStage, Routes};
use polybolt_frontend::proto::v1::ReshardRequest;
use polybolt_frontend::proto::v1::admin_client::AdminClient;
use polybolt_frontend::proto::v1::reshard_response::Stage;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Reshard {
    /// How keys are to be split into files: kubernetes, single, or name=prefix,name=prefix,...; the rest goes to a
    /// shard named default.
    #[arg(long)]
    routes: String,
    /// The server, which goes on serving meanwhile.
    #[arg(long, alias = "endpoints", default_value = "http://127.0.0.1:2379")]
    endpoint: String,
    /// Who asks, as name:password, if the server has users; it has to be root.
    #[arg(long, env = "ETCDCTL_USER", hide_env_values = true, conflicts_with = "data_dir")]
    user: Option<String>,
    /// Change this data directory instead, which no server may have open.
    #[arg(long, conflicts_with = "endpoint")]
    data_dir: Option<PathBuf>,
}

const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Reshard {
    pub(crate) fn run(self) -> Result<(), String> {
        let routes = Routes::parse(&self.routes).map_err(|why| format!("--routes: {why}"))?;
        let shards = routes.shards().len();
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{elapsed} [{bar:40}] {human_pos}/{human_len} rows: {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let done = match &self.data_dir {
            Some(path) => offline(path, routes, &bar),
            None => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(|error| error.to_string())?.block_on(self.online(&bar))
            }
        };
        let (rows, took) = (bar.position(), bar.elapsed());
        bar.finish_and_clear();
        done?;
        println!(
            "keyspace {KEYSPACE}: {} rows copied into {shards} shards in {}",
            HumanCount(rows),
            HumanDuration(took)
        );
        Ok(())
    }

    async fn online(&self, bar: &ProgressBar) -> Result<(), String> {
        let endpoint = &self.endpoint;
        let failed = |error: tonic::Status| format!("{endpoint}: {}", error.message());
        let channel = status::connect(endpoint).await?;
        let request = ReshardRequest { routes: self.routes.clone() };
        let request = status::signed(request, endpoint, &channel, self.user.as_deref()).await?;
        let mut stream = AdminClient::new(channel).reshard(request).await.map_err(failed)?.into_inner();
        while let Some(progress) = stream.message().await.map_err(failed)? {
            show(bar, progress.stage(), progress.rows, progress.of);
            if progress.stage() == Stage::Done {
                return Ok(());
            }
        }
        Err(format!("{endpoint}: the server went before it was done; polybolt status shows how keys are split"))
    }
}

fn offline(path: &Path, routes: Routes, bar: &ProgressBar) -> Result<(), String> {
    let failed = |error: polybolt::Error| format!("{}: {error}", path.display());
    // First only to read: what is no data directory does not become one.
    let there = Engine::open(path, Options { read_only: true, ..Options::default() }).map_err(failed)?;
    there.keyspace(KEYSPACE).map_err(failed)?;
    there.close().map_err(failed)?;
    // No lease ends meanwhile, and nothing that is read is let go, however long it takes.
    // Nobody is there to notice.
    let (lease_extend, pin_age_max) = (TEN_YEARS, TEN_YEARS);
    let options = Options { lease_extend, pin_age_max, reshard_bytes_per_second: 0, ..Options::default() };
    let engine = Engine::open(path, options).map_err(failed)?;
    let progress = |progress: polybolt::ReshardProgress| {
        let stage = match progress.stage {
            ReshardStage::Copy => Stage::Copy,
            ReshardStage::Index => Stage::Index,
            ReshardStage::Follow => Stage::Follow,
            ReshardStage::Switch => Stage::Switch,
        };
        show(bar, stage, progress.rows, progress.of);
    };
    let done = engine.reshard(KEYSPACE, routes, progress).and_then(|reshard| reshard.wait());
    engine.close().map_err(failed)?;
    done.map_err(failed)
}

fn show(bar: &ProgressBar, stage: Stage, rows: u64, of: u64) {
    bar.set_length(of);
    bar.set_position(rows);
    bar.set_message(match stage {
        Stage::Copy => "copying",
        Stage::Index => "making the index",
        Stage::Follow => "copying what was written meanwhile",
        Stage::Switch | Stage::Done => "switching",
    });
}
