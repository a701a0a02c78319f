//! `polybolt status`: shard by shard.

use crate::serve::KEYSPACE;
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanBytes;
use polybolt::{Engine, Options};
use polybolt_frontend::proto::etcdserverpb::AuthenticateRequest;
use polybolt_frontend::proto::etcdserverpb::auth_client::AuthClient;
use polybolt_frontend::proto::v1::inspect_client::InspectClient;
use polybolt_frontend::proto::v1::{ShardsRequest, ShardsResponse};
use std::path::PathBuf;
use tonic::Request;
use tonic::transport::Channel;

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The server to ask.
    #[arg(long, alias = "endpoints", default_value = "http://127.0.0.1:2379")]
    endpoint: String,
    /// Who asks, as name:password, if the server has users.
    #[arg(long, env = "ETCDCTL_USER", hide_env_values = true, conflicts_with = "data_dir")]
    user: Option<String>,
    /// Look into this data directory instead, which no server may have open.
    #[arg(long, conflicts_with = "endpoint")]
    data_dir: Option<PathBuf>,
}

impl Status {
    pub(crate) fn run(self) -> Result<(), String> {
        let response = match &self.data_dir {
            Some(path) => {
                let options = Options { read_only: true, ..Options::default() };
                let engine = Engine::open(path, options).map_err(|error| error.to_string())?;
                let keyspace = engine.keyspace(KEYSPACE).map_err(|error| format!("{}: {error}", path.display()))?;
                polybolt_frontend::inspect::shards(&engine, &keyspace)
            }
            None => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(|error| error.to_string())?.block_on(ask(&self.endpoint, self.user.as_deref()))?
            }
        };
        print(&response);
        Ok(())
    }
}

/// A connection to a server.
pub(crate) async fn connect(endpoint: &str) -> Result<Channel, String> {
    let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let channel = Channel::from_shared(url).map_err(|error| format!("{endpoint}: {error}"))?;
    channel.connect().await.map_err(|error| format!("no server answers at {endpoint}: {error}"))
}

/// A request of `user`, name:password, if the server has users.
pub(crate) async fn signed<T>(
    request: T,
    endpoint: &str,
    channel: &Channel,
    user: Option<&str>,
) -> Result<Request<T>, String> {
    let mut request = Request::new(request);
    if let Some(user) = user {
        let (name, password) = user.split_once(':').ok_or("--user is name:password")?;
        let login = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        let token = AuthClient::new(channel.clone()).authenticate(login).await;
        let token = token.map_err(|error| format!("{endpoint}: {}", error.message()))?.into_inner().token;
        let token = token.parse().map_err(|_| format!("{endpoint}: the token cannot be sent"))?;
        request.metadata_mut().insert("token", token);
    }
    Ok(request)
}

async fn ask(endpoint: &str, user: Option<&str>) -> Result<ShardsResponse, String> {
    let channel = connect(endpoint).await?;
    let request = signed(ShardsRequest {}, endpoint, &channel, user).await?;
    let shards = InspectClient::new(channel).shards(request).await;
    Ok(shards.map_err(|error| format!("{endpoint}: {}", error.message()))?.into_inner())
}

fn print(response: &ShardsResponse) {
    println!(
        "keyspace {}: revision {}, compacted {}, {} leases, {} watchers",
        response.keyspace, response.revision, response.compact_revision, response.leases, response.watchers
    );
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "shard",
        "keys",
        "revisions",
        "from",
        "size",
        "in use",
        "free",
        "depth",
        "index",
        "durability",
        "prefixes",
        "file",
    ]);
    for shard in &response.shards {
        let prefixes: Vec<_> = shard.prefixes.iter().map(|prefix| String::from_utf8_lossy(prefix)).collect();
        table.add_row([
            shard.name.clone(),
            shard.keys.to_string(),
            shard.revisions.to_string(),
            shard.floor.to_string(),
            HumanBytes(shard.size).to_string(),
            HumanBytes(shard.size_in_use).to_string(),
            format!("{} %", shard.size.saturating_sub(shard.size_in_use) * 100 / shard.size.max(1)),
            shard.depth.to_string(),
            HumanBytes(shard.index_bytes).to_string(),
            shard.durability.clone(),
            prefixes.join(" "),
            shard.file.clone(),
        ]);
    }
    for column in 1..9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    println!(
        "journal {}, {} groups, {} segments recycled; {} checkpoints; {} syncs",
        HumanBytes(response.journal_bytes),
        response.journal_groups,
        response.journal_segments_recycled,
        response.checkpoints,
        response.sync_calls
    );
    if response.compaction_left > 0 {
        let (left, seconds) = (response.compaction_left, response.compaction_seconds_left);
        println!("compaction: about {left} revisions left, {seconds} s");
    }
    if response.compaction_lingering > 0 {
        println!("{} rows of removed revisions are left in leaves", response.compaction_lingering);
    }
    print!("scrub {} read, {} rounds", HumanBytes(response.scrub_bytes), response.scrub_rounds);
    if response.scrub_round_of > 0 {
        let (read, of) = (HumanBytes(response.scrub_round_bytes), HumanBytes(response.scrub_round_of));
        print!(", {read} of {of} in the one under way");
    }
    println!();
    let (moved, cut) = (HumanBytes(response.vacuum_moved_bytes), HumanBytes(response.vacuum_cut_bytes));
    println!("vacuum {moved} moved, {cut} given back");
    let (journal, pages) = (response.journal_written_bytes, response.page_written_bytes);
    print!("written {} of journal and {} of pages", HumanBytes(journal), HumanBytes(pages));
    if response.put_bytes > 0 {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let amplification = (journal + pages) as f64 / response.put_bytes as f64;
        print!(", {amplification:.1} times the {} that were put", HumanBytes(response.put_bytes));
    }
    println!();
    for damage in &response.damage {
        println!("damaged: {damage}");
    }
}
