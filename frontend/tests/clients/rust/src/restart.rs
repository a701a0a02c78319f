//! A server that is killed and starts again.

use crate::{Outcome, say, soon};
use etcd_client::{Client, PutOptions};
use std::time::Duration;

pub(crate) async fn goes_on(mut client: Client) -> Outcome {
    let lease = client.lease_grant(300, None).await?.id();
    let put = client.put("kept", "1", Some(PutOptions::new().with_lease(lease))).await?;
    let revision = put.header().expect("a header").revision();
    let mut stream = client.watch("kept", None).await?;
    assert!(soon(stream.message()).await?.expect("an answer").created());
    say("restart");
    let answered = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    answered.await.expect("a task").expect("a line");
    // The stream's end is told; the connection comes back by itself.
    assert!(!matches!(soon(stream.message()).await, Ok(Some(_))));
    let got = loop {
        match client.get("kept", None).await {
            Ok(got) => break got,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert_eq!((got.kvs()[0].value(), got.kvs()[0].mod_revision(), got.kvs()[0].lease()), (&b"1"[..], revision, lease));
    assert_eq!(client.lease_time_to_live(lease, None).await?.granted_ttl(), 300);
    client.put("kept", "2", None).await?;
    Ok(())
}
