//! `polybolt compaction-pace`: how fast what compactions leave behind is taken out, shown and changed.

use crate::serve::{Budget, batch_limit, budget, duration};
use crate::status;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use polybolt_frontend::proto::v1::admin_client::AdminClient;
use polybolt_frontend::proto::v1::compaction_pace_request::Budget as Wanted;
use polybolt_frontend::proto::v1::{CompactionPaceRequest, CompactionPaceResponse};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Pace {
    /// The server.
    #[arg(long, alias = "endpoints", default_value = "http://127.0.0.1:2379")]
    endpoint: String,
    /// Who asks, as name:password, if the server has users; it has to be root.
    #[arg(long, env = "ETCDCTL_USER", hide_env_values = true)]
    user: Option<String>,
    /// Of this shard; of all of them if not given.
    #[arg(long)]
    shard: Option<String>,
    /// From now on so many revisions go in one step.
    #[arg(long, value_parser = batch_limit)]
    batch_limit: Option<usize>,
    /// From now on this is the pause between steps.
    #[arg(long, value_parser = duration)]
    sleep_interval: Option<Duration>,
    /// By how many percent the 99th percentile of reads and writes may rise from now on; "off" is full speed always.
    #[arg(long, value_parser = budget)]
    budget_percent: Option<Budget>,
    /// How long after its begin a compaction is to be done from now on; 0 is none.
    #[arg(long, value_parser = duration)]
    deadline: Option<Duration>,
}

fn whole(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Pace {
    pub(crate) fn run(self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let response = runtime.map_err(|error| error.to_string())?.block_on(self.ask())?;
        print(&response);
        Ok(())
    }

    async fn ask(&self) -> Result<CompactionPaceResponse, String> {
        let endpoint = &self.endpoint;
        let request = CompactionPaceRequest {
            shard: self.shard.clone().unwrap_or_default(),
            batch_limit: self.batch_limit.map(|limit| limit as u64),
            sleep_micros: self.sleep_interval.map(|sleep| whole(sleep.as_nanos().div_ceil(1000))),
            budget: self
                .budget_percent
                .map(|Budget(percent)| percent.map_or(Wanted::NoBudget(true), Wanted::BudgetPercent)),
            deadline_millis: self.deadline.map(|deadline| whole(deadline.as_nanos().div_ceil(1_000_000))),
        };
        let channel = status::connect(endpoint).await?;
        let request = status::signed(request, endpoint, &channel, self.user.as_deref()).await?;
        let answer = AdminClient::new(channel).compaction_pace(request).await;
        Ok(answer.map_err(|error| format!("{endpoint}: {}", error.message()))?.into_inner())
    }
}

fn print(response: &CompactionPaceResponse) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["shard", "batch limit", "sleep interval", "budget", "deadline"]);
    let time = |time| humantime::format_duration(time).to_string();
    for pace in &response.shards {
        table.add_row([
            pace.shard.clone(),
            pace.batch_limit.to_string(),
            time(Duration::from_micros(pace.sleep_micros)),
            pace.budget_percent.map_or("off".to_owned(), |percent| format!("{percent} %")),
            pace.deadline_millis.map_or("none".to_owned(), |deadline| time(Duration::from_millis(deadline))),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}
