//! Maintenance and the cluster.

use crate::{Outcome, refused, soon};
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client};

pub(crate) async fn status(mut client: Client) -> Outcome {
    let status = client.status().await?;
    assert!(status.version().starts_with("3."), "{}", status.version());
    assert!(status.db_size() > 0 && status.raft_used_db_size() > 0);
    assert!(status.leader() != 0 && status.raft_index() > 0 && status.raft_term() > 0);
    assert!(status.raft_applied_index() > 0 && !status.is_learner() && status.errors().is_empty());
    Ok(())
}

pub(crate) async fn alarm(mut client: Client) -> Outcome {
    let none = client.alarm(AlarmAction::Get, AlarmType::None, Some(AlarmOptions::new())).await?;
    assert!(none.alarms().is_empty());
    let member = client.status().await?.leader();
    let mut of = AlarmOptions::new();
    of.with_member(member);
    client.alarm(AlarmAction::Activate, AlarmType::Nospace, Some(of.clone())).await?;
    let full = refused(client.put("alarm", "v", None).await);
    let raised = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
    let disarmed = client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of)).await?;
    assert_eq!(full, "etcdserver: mvcc: database space exceeded");
    for alarms in [raised.alarms(), disarmed.alarms()] {
        assert_eq!((alarms.len(), alarms[0].member_id(), alarms[0].alarm()), (1, member, AlarmType::Nospace));
    }
    client.put("alarm", "v", None).await?;
    Ok(())
}

pub(crate) async fn defragment(mut client: Client) -> Outcome {
    client.defragment().await?;
    client.put("defragmented", "v", None).await?;
    Ok(())
}

pub(crate) async fn hashes(mut client: Client) -> Outcome {
    let revision = client.put("hashed", "v", None).await?.header().expect("a header").revision();
    let hash = client.hash().await?;
    assert!(hash.header().is_some());
    let now = client.hash_kv(0).await?;
    assert!(now.compact_version() > 0 && now.compact_version() <= revision);
    client.put("hashed", "w", None).await?;
    assert_eq!(client.hash_kv(revision).await?.hash(), now.hash());
    assert_ne!(client.hash_kv(0).await?.hash(), now.hash());
    assert_ne!(client.hash().await?.hash(), hash.hash());
    let future = client.hash_kv(revision + 1000).await;
    assert_eq!(refused(future), "etcdserver: mvcc: required revision is a future revision");
    Ok(())
}

pub(crate) async fn snapshot(mut client: Client) -> Outcome {
    let mut stream = client.snapshot().await?;
    let mut bytes = 0;
    loop {
        let part = soon(stream.message()).await?.expect("there is more");
        bytes += part.blob().len();
        if part.remaining_bytes() == 0 {
            break;
        }
    }
    assert!(bytes > 0 && bytes % 512 == 0, "{bytes} bytes");
    // Its hash comes after the last of it.
    assert_eq!(soon(stream.message()).await?.expect("a hash").blob().len(), 32);
    assert!(soon(stream.message()).await?.is_none());
    Ok(())
}

pub(crate) async fn move_leader(mut client: Client) -> Outcome {
    let members = client.member_list().await?;
    assert_eq!(members.members().len(), 1);
    let member = &members.members()[0];
    assert!(!member.name().is_empty() && !member.client_urls().is_empty() && !member.is_learner());
    assert_eq!(members.header().expect("a header").member_id(), member.id());
    assert_eq!(client.status().await?.leader(), member.id());
    assert!(client.move_leader(member.id()).await?.header().is_none());
    assert_eq!(refused(client.move_leader(member.id() + 1).await), "etcdserver: bad leader transferee");
    Ok(())
}
