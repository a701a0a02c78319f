//! Elections.

use crate::{Failure, Outcome, refused, soon};
use etcd_client::{Client, GetOptions, LeaderKey, ObserveStream, ProclaimOptions, ResignOptions};

fn proclaim(leader: &LeaderKey) -> Option<ProclaimOptions> {
    Some(ProclaimOptions::new().with_leader(leader.clone()))
}

fn resign(leader: &LeaderKey) -> Option<ResignOptions> {
    Some(ResignOptions::new().with_leader(leader.clone()))
}

/// The value that the leader has next.
async fn observed(stream: &mut ObserveStream) -> Result<String, Failure> {
    let response = soon(stream.message()).await?.expect("the stream goes on");
    Ok(response.kv().expect("a leader").value_str()?.to_owned())
}

async fn campaign(client: &mut Client, name: &str, value: &str) -> Result<LeaderKey, Failure> {
    let lease = client.lease_grant(60, None).await?.id();
    let elected = client.campaign(name, value, lease).await?;
    let leader = elected.leader().expect("a leader").clone();
    assert_eq!((leader.name_str()?, leader.lease()), (name, lease));
    assert_eq!(leader.key_str()?, format!("{name}/{lease:x}"));
    Ok(leader)
}

pub(crate) async fn one(mut client: Client) -> Outcome {
    let leader = campaign(&mut client, "election/one", "first").await?;
    let proclaimed = client.proclaim("second", proclaim(&leader)).await?;
    assert!(proclaimed.header().expect("a header").revision() > leader.rev());
    let mut stream = client.observe(leader.name()).await?;
    assert_eq!(observed(&mut stream).await?, "second");
    let now = client.leader("election/one").await?;
    let kv = now.kv().expect("a leader");
    assert_eq!((kv.key(), kv.value(), kv.create_revision()), (leader.key(), &b"second"[..], leader.rev()));
    client.proclaim("third", proclaim(&leader)).await?;
    assert_eq!(observed(&mut stream).await?, "third");
    let resigned = client.resign(resign(&leader)).await?;
    assert!(resigned.header().is_some());
    assert_eq!(refused(client.leader("election/one").await), "election: no leader");
    Ok(())
}

pub(crate) async fn two(mut client: Client) -> Outcome {
    let first = campaign(&mut client, "election/two", "a").await?;
    let mut stream = client.observe("election/two").await?;
    assert_eq!(observed(&mut stream).await?, "a");
    let mut rival = client.clone();
    let waiting = tokio::spawn(async move { campaign(&mut rival, "election/two", "b").await });
    let line = || Some(GetOptions::new().with_prefix().with_count_only());
    while client.get("election/two/", line()).await?.count() < 2 {}
    assert!(!waiting.is_finished());
    client.resign(resign(&first)).await?;
    let second = soon(waiting).await.expect("a task")?;
    assert_eq!(observed(&mut stream).await?, "b");
    assert_ne!(first.key(), second.key());
    // The end of a lease ends a leader too.
    client.lease_revoke(second.lease()).await?;
    assert_eq!(refused(client.leader("election/two").await), "election: no leader");
    Ok(())
}

pub(crate) async fn refusals(mut client: Client) -> Outcome {
    let leader = campaign(&mut client, "election/three", "a").await?;
    client.resign(resign(&leader)).await?;
    assert_eq!(refused(client.proclaim("late", proclaim(&leader)).await), "election: not leader");
    assert_eq!(refused(client.proclaim("v", None).await), "\"leader\" field must be provided");
    assert_eq!(refused(client.resign(None).await), "\"leader\" field must be provided");
    let ended = client.campaign("election/three", "b", 99).await;
    assert_eq!(refused(ended), "etcdserver: requested lease not found");
    Ok(())
}
