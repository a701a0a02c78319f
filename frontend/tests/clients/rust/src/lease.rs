//! Leases.

use crate::{Outcome, refused, soon};
use etcd_client::{
    Client, EventType, LeaseClientPrefix, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, WatchOptions,
};

pub(crate) async fn life(mut client: Client) -> Outcome {
    let granted = client.lease_grant(60, None).await?;
    let id = granted.id();
    assert_eq!((granted.ttl(), granted.error()), (60, ""));
    let live = client.lease_time_to_live(id, None).await?;
    assert_eq!((live.id(), live.granted_ttl()), (id, 60));
    assert!(live.ttl() > 50 && live.ttl() <= 60);
    let (mut keeper, mut stream) = client.lease_keep_alive(id).await?;
    keeper.keep_alive().await?;
    let kept = soon(stream.message()).await?.expect("an answer");
    assert_eq!((kept.id(), kept.ttl()), (id, 60));
    assert!(client.leases().await?.leases().iter().any(|lease| lease.id() == id));
    client.lease_revoke(id).await?;
    assert!(client.leases().await?.leases().iter().all(|lease| lease.id() != id));
    assert!(client.lease_keep_alive(id).await.is_err(), "it was revoked");
    assert_eq!(client.lease_time_to_live(id, None).await?.ttl(), -1);
    assert_eq!(refused(client.lease_revoke(id).await), "etcdserver: requested lease not found");
    Ok(())
}

pub(crate) async fn keys(mut client: Client) -> Outcome {
    let own = || Some(LeaseGrantOptions::new().with_id(4242));
    assert_eq!(client.lease_grant(100, own()).await?.id(), 4242);
    assert_eq!(refused(client.lease_grant(100, own()).await), "etcdserver: lease already exists");
    for key in ["leased/a", "leased/b"] {
        client.put(key, "v", Some(PutOptions::new().with_lease(4242))).await?;
    }
    let live = client.lease_time_to_live(4242, Some(LeaseTimeToLiveOptions::new().with_keys())).await?;
    let mut keys = live.keys().to_vec();
    keys.sort();
    assert_eq!(keys, [b"leased/a", b"leased/b"]);
    // A put without the lease lets the key go.
    client.put("leased/b", "v", None).await?;
    client.lease_revoke(4242).await?;
    assert!(client.get("leased/a", None).await?.kvs().is_empty());
    assert_eq!(client.get("leased/b", None).await?.kvs().len(), 1);
    Ok(())
}

pub(crate) async fn keep_alive(mut client: Client) -> Outcome {
    let id = client.lease_grant(30, None).await?.id();
    let (mut keeper, mut stream) = client.lease_keep_alive(id).await?;
    for _ in 0..20 {
        keeper.keep_alive().await?;
    }
    for _ in 0..20 {
        let kept = soon(stream.message()).await?.expect("an answer");
        assert_eq!((kept.id(), kept.ttl()), (id, 30));
    }
    client.lease_revoke(id).await?;
    keeper.keep_alive().await?;
    assert_eq!(soon(stream.message()).await?.expect("an answer").ttl(), 0);
    drop(keeper);
    assert!(soon(stream.message()).await?.is_none());
    Ok(())
}

pub(crate) async fn namespace(mut client: Client) -> Outcome {
    let id = client.lease_grant(60, None).await?.id();
    client.put("inside/k", "v", Some(PutOptions::new().with_lease(id))).await?;
    let mut leases = LeaseClientPrefix::new(client.lease_client(), "inside/".into());
    let live = leases.time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await?;
    assert_eq!(live.keys(), [b"k"]);
    client.lease_revoke(id).await?;
    Ok(())
}

pub(crate) async fn expiry(mut client: Client) -> Outcome {
    let mut stream = client.watch("expiring", Some(WatchOptions::new())).await?;
    let granted = client.lease_grant(1, None).await?;
    client.put("expiring", "v", Some(PutOptions::new().with_lease(granted.id()))).await?;
    loop {
        let response = soon(stream.message()).await?.expect("the stream goes on");
        if response.events().iter().any(|event| event.event_type() == EventType::Delete) {
            break;
        }
    }
    assert!(client.get("expiring", None).await?.kvs().is_empty());
    assert_eq!(client.lease_time_to_live(granted.id(), None).await?.ttl(), -1);
    Ok(())
}
