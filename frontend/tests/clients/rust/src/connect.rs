//! Ways to connect.

use crate::Outcome;
use etcd_client::{Client, ConnectOptions};
use std::time::Duration;

pub(crate) async fn options(endpoint: String) -> Outcome {
    let seconds = Duration::from_secs;
    let options = ConnectOptions::new()
        .with_timeout(seconds(20))
        .with_connect_timeout(seconds(10))
        .with_tcp_keepalive(seconds(5))
        .with_keep_alive(seconds(1), seconds(5))
        .with_keep_alive_while_idle(true)
        .with_require_leader(true);
    let mut client = Client::connect([&endpoint], Some(options)).await?;
    client.put("connect/options", "1", None).await?;
    // Idle for longer than the interval of its pings.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(client.get("connect/options", None).await?.kvs()[0].value(), b"1");
    Ok(())
}

pub(crate) async fn endpoints(endpoint: String) -> Outcome {
    let mut client = Client::connect([&endpoint, &endpoint], None).await?;
    client.put("connect/endpoints", "1", None).await?;
    client.add_endpoint(&endpoint).await?;
    client.remove_endpoint("http://127.0.0.1:1").await?;
    for _ in 0..10 {
        assert_eq!(client.get("connect/endpoints", None).await?.kvs()[0].value(), b"1");
    }
    Ok(())
}
