//! Locks.

use crate::{Outcome, soon};
use etcd_client::{Client, GetOptions, LockOptions};

pub(crate) async fn lock_and_unlock(mut client: Client) -> Outcome {
    let key = client.lock("lock/one", None).await?.key().to_vec();
    assert!(key.starts_with(b"lock/one/"));
    // It came with a lease of its own.
    assert_ne!(client.get(key.clone(), None).await?.kvs()[0].lease(), 0);
    client.unlock(key.clone()).await?;
    assert!(client.get(key, None).await?.kvs().is_empty());
    let lease = client.lease_grant(60, None).await?.id();
    let own = || Some(LockOptions::new().with_lease(lease));
    let locked = client.lock("lock/two", own()).await?;
    assert_eq!(locked.key(), format!("lock/two/{lease:x}").as_bytes());
    assert!(locked.header().expect("a header").revision() > 0);
    // Whoever has it gets it again.
    assert_eq!(client.lock("lock/two", own()).await?.key(), locked.key());
    client.unlock(locked.key()).await?;
    Ok(())
}

/// Waits until so many stand in line.
async fn in_line(client: &mut Client, name: &str, count: i64) -> Outcome {
    while client.get(name, Some(GetOptions::new().with_prefix().with_count_only())).await?.count() < count {}
    Ok(())
}

pub(crate) async fn contended(mut client: Client) -> Outcome {
    let first = client.lock("lock/three", None).await?.key().to_vec();
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("lock/three", None).await });
    in_line(&mut client, "lock/three/", 2).await?;
    assert!(!waiting.is_finished());
    client.unlock(first.clone()).await?;
    let second = soon(waiting).await.expect("a task")?.key().to_vec();
    assert_ne!(first, second);
    client.unlock(second).await?;
    Ok(())
}

pub(crate) async fn lease_ends(mut client: Client) -> Outcome {
    let lease = client.lease_grant(60, None).await?.id();
    client.lock("lock/four", Some(LockOptions::new().with_lease(lease))).await?;
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.lock("lock/four", None).await });
    in_line(&mut client, "lock/four/", 2).await?;
    client.lease_revoke(lease).await?;
    let key = soon(waiting).await.expect("a task")?.key().to_vec();
    client.unlock(key).await?;
    Ok(())
}
