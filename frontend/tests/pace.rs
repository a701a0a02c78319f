//! `polybolt compaction-pace`, of a server with a compaction under way.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use common::counting::{channel, inspect, objects, put_all};
use common::{Served, polybolt, succeed, text};
use polybolt_frontend::proto::etcdserverpb as pb;
use polybolt_frontend::proto::etcdserverpb::kv_client::KvClient;
use std::time::Duration;

fn pace(served: &Served, flags: &[&str]) -> String {
    succeed(polybolt().args(["compaction-pace", "--endpoint", &served.url()]).args(flags))
}

/// The words of a shard's line.
fn line<'a>(said: &'a str, shard: &str) -> Vec<&'a str> {
    let words = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.into_iter().find(|words| words.first() == Some(&shard)).unwrap_or_else(|| panic!("no {shard} in {said}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_that_stands_still_goes_on_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let flags =
        ["--compaction-sleep-interval", "1h", "--compaction-batch-limit", "10", "--compaction-budget-percent", "off"];
    let served = Served::start(&data, &flags);
    let clients = channel(&served).await;
    for _ in 0..2 {
        put_all(&clients, &objects(300)).await;
    }
    let revision = inspect(&clients).await.revision;
    let compact = pb::CompactionRequest { revision, physical: false };
    KvClient::new(clients.clone()).compact(compact).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(inspect(&clients).await.compaction_left > 200, "one step was made");

    let said = pace(&served, &[]);
    assert_eq!(line(&said, "events"), ["events", "10", "1h", "off", "none"]);
    let refused =
        polybolt().args(["compaction-pace", "--endpoint", &served.url(), "--shard", "none"]).output().unwrap();
    assert!(!refused.status.success() && text(&refused.stderr).contains("no shard is named \"none\""));
    for wrong in [["--batch-limit", "0"], ["--batch-limit", "4294967296"], ["--budget-percent", "4294967295"]] {
        let refused = polybolt().arg("compaction-pace").args(wrong).output().unwrap();
        assert!(!refused.status.success() && text(&refused.stderr).contains(wrong[1]), "{wrong:?}");
    }

    // One shard, one setting; then all of them, and the pause that has begun is cut short.
    let said = pace(&served, &["--shard", "pods", "--deadline", "90s"]);
    assert_eq!(line(&said, "pods"), ["pods", "10", "1h", "off", "1m", "30s"]);
    assert!(!said.contains("events"), "{said}");
    let said = pace(&served, &["--batch-limit", "500", "--sleep-interval", "1ms", "--budget-percent", "25"]);
    assert_eq!(line(&said, "events"), ["events", "500", "1ms", "25", "%", "none"]);
    assert_eq!(line(&said, "pods"), ["pods", "500", "1ms", "25", "%", "1m", "30s"]);
    for tries in 0.. {
        assert!(tries < 3000, "it goes on");
        if inspect(&clients).await.compaction_left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // What is set for all shards is that of shards to come.
    succeed(polybolt().args(["reshard", "--endpoint", &served.url(), "--routes", "pods=/registry/pods/"]));
    assert_eq!(line(&pace(&served, &[]), "default"), ["default", "500", "1ms", "25", "%", "none"]);
    assert_eq!(line(&pace(&served, &["--shard", "pods", "--deadline", "0s"]), "pods")[3..], ["25", "%", "none"]);
    assert!(served.stop());
}
