//! The JSON gateway: the same requests to a real etcd's and to ours, in lockstep, and what streams.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;
#[path = "common/http.rs"]
mod web;
#[path = "common/reference.rs"]
mod reference;

use common::Served;
use http_body_util::{BodyExt, Channel as BodyChannel};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use reference::Etcd;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::net::TcpStream;
use web::{Answer, ask};

async fn post(port: u16, path: &str, body: &str) -> Answer {
    ask(port, "POST", path, &[("Content-Type", "application/json")], body).await
}

/// Path and body, in the order in which they are sent. `a` is YQ==, `b` Yg==, `foo` Zm9v, `l` bA==, `e` ZQ==.
const REQUESTS: &[(&str, &str)] = &[
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
    ("kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
    // Names in either form, numbers as text or not, and what nobody knows.
    ("kv/put", r#"{"key":"Zm9v","value":"YmFy","prevKv":true,"lease":"0"}"#),
    ("kv/put", r#"{"key":"YQ==","value":"MQ==","ignore_lease":false,"unknown":[1,{"a":2}]}"#),
    ("kv/put", r#"{"key":"Yg==","value":null}"#),
    ("kv/put", r#"{"key":"YQ==","ignore_value":true,"value":"eA=="}"#),
    ("kv/put", r#"{"key":"YQ==","lease":12345}"#),
    ("kv/put", r#"{"value":"YmFy"}"#),
    ("kv/range", r#"{"key":"Zm9v"}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA=="}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","limit":2,"sort_order":"DESCEND","sort_target":"MOD"}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","limit":"1","sortOrder":1,"sortTarget":4}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#),
    ("kv/range", r#"{"key":"AA==","range_end":"AA==","keys_only":true,"min_mod_revision":"4"}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":2}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":"1000"}"#),
    ("kv/range", r#"{"key":"Zm9v","limit":1.0}"#),
    ("kv/range", r#"{"key":"Zm9v","limit":1e1}"#),
    ("kv/range", r#"{"key":"Zm9v","sort_order":"WHAT"}"#),
    // Base64 of either alphabet, padded or not.
    ("kv/range", r#"{"key":"_-8="}"#),
    ("kv/range", r#"{"key":"/+8="}"#),
    ("kv/range", r#"{"key":"Zm9vYg"}"#),
    ("kv/range", r#"{"key":null}"#),
    ("kv/range", ""),
    ("kv/range", "{}"),
    ("kv/range", "  {\"key\" :\n \"Zm9v\" } "),
    // Only the first object is looked at.
    ("kv/range", r#"{"key":"Zm9v"}garbage"#),
    ("kv/range", r#"{"key":"Zm9v"} {"key":"YQ=="}"#),
    // What cannot be read.
    ("kv/range", r#"{"key":"Z*9v"}"#),
    ("kv/range", r#"{"key":5}"#),
    ("kv/range", r#"{"key":"Zm9v","limit":"abc"}"#),
    ("kv/range", r#"{"key":"Zm9v","limit":1.5}"#),
    ("kv/range", r#"{"key":"Zm9v","limit":99999999999999999999}"#),
    ("kv/range", r#"{"key":"Zm9v","serializable":"true"}"#),
    ("kv/range", r#"{"key":"Zm9v""#),
    ("kv/range", r#"{"key":"Zm9v"]"#),
    ("kv/range", r#"{"key":"Zm9v","key":"YQ=="}"#),
    ("kv/range", "[]"),
    ("kv/range", "null"),
    ("kv/range", r#""x""#),
    (
        "kv/txn",
        r#"{"compare":[{"key":"Zm9v","target":"CREATE","create_revision":"0","result":"EQUAL"}],
        "success":[{"requestPut":{"key":"Zm9v","value":"MQ=="}}],
        "failure":[{"request_range":{"key":"Zm9v"}},{"request_delete_range":{"key":"YQ==","prev_kv":true}}]}"#,
    ),
    ("kv/txn", r#"{"compare":[{"key":"Zm9v","target":3,"value":"YmFy","result":"NOT_EQUAL"}]}"#),
    ("kv/txn", r#"{"success":[{"request_txn":{"success":[{"request_put":{"key":"YQ==","prev_kv":true}}]}}]}"#),
    ("kv/txn", r#"{"success":[{}]}"#),
    ("kv/txn", r#"{"success":[{"request_range":{"key":"Zm9v"},"request_put":{"key":"Zm9v"}}]}"#),
    ("kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#),
    ("kv/txn", "{}"),
    ("kv/deleterange", r#"{"key":"Yg==","prev_kv":true}"#),
    ("kv/deleterange", r#"{"key":"Yg=="}"#),
    ("kv/deleterange", "{}"),
    ("kv/compaction", r#"{"revision":"3","physical":true}"#),
    ("kv/compaction", r#"{"revision":"3"}"#),
    ("kv/compaction", r#"{"revision":"3000"}"#),
    ("kv/range", r#"{"key":"Zm9v","revision":2}"#),
    ("lease/grant", r#"{"TTL":"600","ID":"77"}"#),
    ("lease/grant", r#"{"TTL":600,"ID":77}"#),
    ("lease/grant", r#"{"TTL":"9000000001"}"#),
    ("kv/put", r#"{"key":"bA==","lease":"77"}"#),
    ("lease/timetolive", r#"{"ID":77,"keys":true}"#),
    ("kv/lease/timetolive", r#"{"ID":"78"}"#),
    ("lease/leases", "{}"),
    ("kv/lease/leases", ""),
    ("lease/keepalive", r#"{"ID":77}"#),
    ("lease/keepalive", r#"{"ID":77} {"ID":"77"}"#),
    ("lease/revoke", r#"{"ID":78}"#),
    ("kv/lease/revoke", r#"{"ID":77}"#),
    ("lease/leases", "{}"),
    ("lease/grant", r#"{"TTL":"600","ID":"80"}"#),
    ("lock/lock", r#"{"name":"bA==","lease":80}"#),
    ("lock/lock", r#"{"name":"bA==","lease":4242}"#),
    ("lock/unlock", r#"{"key":"bC81MA=="}"#),
    ("election/leader", r#"{"name":"ZQ=="}"#),
    ("election/campaign", r#"{"name":"ZQ==","lease":"80","value":"MQ=="}"#),
    ("election/leader", r#"{"name":"ZQ=="}"#),
    ("election/proclaim", r#"{"leader":{"name":"ZQ==","key":"ZS81MA==","rev":"1","lease":"80"},"value":"Mg=="}"#),
    ("election/proclaim", r#"{"value":"Mg=="}"#),
    ("election/resign", r#"{"leader":{"name":"ZQ==","key":"ZS81MA==","rev":"1","lease":"80"}}"#),
    ("election/resign", "{}"),
    ("cluster/member/list", "{}"),
    ("cluster/member/list", r#"{"linearizable":true}"#),
    ("cluster/member/add", r#"{"peerURLs":["x"]}"#),
    ("cluster/member/add", "{}"),
    ("cluster/member/remove", r#"{"ID":5}"#),
    ("cluster/member/update", r#"{"ID":"5","peerURLs":["http://1.2.3.4:5"]}"#),
    ("cluster/member/promote", r#"{"ID":5}"#),
    ("maintenance/status", "{}"),
    ("maintenance/alarm", "{}"),
    ("maintenance/alarm", r#"{"action":"ACTIVATE","memberID":"7","alarm":"NOSPACE"}"#),
    ("kv/put", r#"{"key":"Zm9v"}"#),
    ("maintenance/alarm", r#"{"action":1,"memberID":7,"alarm":2}"#),
    ("maintenance/alarm", r#"{"action":"GET"}"#),
    ("kv/put", r#"{"key":"Zm9v"}"#),
    ("maintenance/alarm", r#"{"action":"DEACTIVATE","memberID":"7","alarm":"NOSPACE"}"#),
    ("maintenance/alarm", r#"{"action":"DEACTIVATE","memberID":"7","alarm":"CORRUPT"}"#),
    ("maintenance/defragment", "{}"),
    ("maintenance/hash", "{}"),
    ("maintenance/hashkv", "{}"),
    ("maintenance/hashkv", r#"{"revision":"1"}"#),
    ("maintenance/transfer-leadership", r#"{"targetID":5}"#),
    ("maintenance/downgrade", r#"{"action":"VALIDATE","version":"x"}"#),
    ("maintenance/downgrade", r#"{"action":"CANCEL"}"#),
    ("auth/status", "{}"),
    ("auth/authenticate", r#"{"name":"a","password":"b"}"#),
    ("auth/disable", ""),
    ("auth/enable", "{}"),
    ("auth/user/add", r#"{"name":"root","password":"secret"}"#),
    ("auth/user/add", r#"{"name":"root","password":"secret"}"#),
    ("auth/user/add", r#"{"name":"","password":"secret"}"#),
    ("auth/user/add", r#"{"name":"u","options":{"no_password":true}}"#),
    ("auth/user/list", "{}"),
    ("auth/user/get", r#"{"name":"u"}"#),
    ("auth/user/changepw", r#"{"name":"root","password":"other"}"#),
    ("auth/role/add", r#"{"name":"r"}"#),
    ("auth/role/grant", r#"{"name":"r","perm":{"permType":"READWRITE","key":"YQ==","range_end":"Yg=="}}"#),
    ("auth/role/get", r#"{"role":"r"}"#),
    ("auth/role/list", "{}"),
    ("auth/user/grant", r#"{"user":"u","role":"r"}"#),
    ("auth/user/grant", r#"{"user":"u","role":"none"}"#),
    ("auth/user/revoke", r#"{"name":"u","role":"r"}"#),
    ("auth/role/revoke", r#"{"role":"r","key":"YQ==","range_end":"Yg=="}"#),
    ("auth/role/delete", r#"{"role":"r"}"#),
    ("auth/user/delete", r#"{"name":"u"}"#),
    ("auth/user/delete", r#"{"name":"u"}"#),
    ("auth/enable", "{}"),
    ("no/such", "{}"),
    ("kv/rangestream", "{}"),
    ("kv/range/", "{}"),
    ("", "{}"),
];

/// Who answers and what is measured, which may differ; and what 3.6 has and an older one does not.
fn masked(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for name in ["hash_revision", "storageVersion", "dbSizeQuota", "downgradeInfo"] {
                fields.remove(name);
            }
            // Without a key the hash is that of the whole store.
            if fields.contains_key("hash") && !fields.contains_key("compact_revision") {
                fields.insert("hash".into(), json!("*"));
            }
            for (name, value) in fields.iter_mut() {
                // In any order.
                if let ("alarms" | "leases", Value::Array(values)) = (name.as_str(), &mut *value) {
                    values.sort_by_key(Value::to_string);
                }
                let is_masked = matches!(
                    name.as_str(),
                    "cluster_id"
                        | "member_id"
                        | "raft_term"
                        | "leader"
                        | "raftIndex"
                        | "raftAppliedIndex"
                        | "raftTerm"
                        | "dbSize"
                        | "dbSizeInUse"
                        | "version"
                        | "peerURLs"
                        | "clientURLs"
                ) && (value.is_string() || value.is_array());
                let is_id = name == "ID" && value.as_str().is_some_and(|id| id.len() > 10);
                let is_time = name == "TTL" && value.as_str().is_some_and(|ttl| ttl.starts_with("59"));
                if is_masked || is_id {
                    *value = json!("*");
                } else if is_time {
                    *value = json!("600");
                } else {
                    masked(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(masked),
        _ => {}
    }
}

/// The objects of an answer: one, or a line each.
fn objects(answer: &Answer) -> Vec<Value> {
    let mut values: Vec<Value> = serde_json::Deserializer::from_str(&answer.body)
        .into_iter()
        .map(|value| value.unwrap_or_else(|error| panic!("{error}: {}", answer.body)))
        .collect();
    values.iter_mut().for_each(masked);
    values
}

/// Where answers may differ, and why. Their status has to be the same.
fn may_differ(etcd: &Etcd, ours: &Value, theirs: &Value) -> Option<&'static str> {
    let message = |value: &Value| value["message"].as_str().unwrap_or_default().to_owned();
    let (one, other) = (message(ours), message(theirs));
    let is_malformed = ["proto:", "unexpected EOF"].iter().any(|start| one.starts_with(start));
    if is_malformed && ours["code"] == 3 && theirs["code"] == 3 {
        return Some("what is wrong with a JSON text is said in the words of the library that read it");
    }
    let version = etcd.version;
    let mut bare = ours.clone();
    bare.as_object_mut().map(|fields| fields.remove("header"));
    if version < (3, 5) && !ours["header"].is_null() && theirs["header"].is_null() && bare == *theirs {
        return Some("3.4 asks for alarms without a header");
    }
    (version < (3, 5) && ours["code"] == theirs["code"] && one == other && !one.is_empty())
        .then_some("3.4 repeats the message as \"error\"")
}

/// Requests that an etcd answers otherwise, and why.
fn is_left_out(etcd: &Etcd, path: &str, body: &str) -> Option<&'static str> {
    let old = etcd.version < (3, 5);
    if body.contains("\"key\":\"Zm9v\",\"key\"") {
        return Some("a field given twice: the last one counts, where Go's reader refuses");
    }
    if path == "lock/lock" && body.contains("4242") {
        return Some("a lock that is refused says with which code; etcd's says Unknown of everything");
    }
    (old && body.contains(r#""request_range":{"key":"Zm9v"},"request_put""#))
        .then_some("3.4 takes the last of two choices")
}

#[tokio::test]
async fn the_same_json_as_etcd_gw_1_to_4() {
    for program in reference::programs() {
        let dirs = tempfile::tempdir().unwrap();
        let ours = Served::start(&dirs.path().join("ours"), &[]);
        let etcd = Etcd::start(&program, &dirs.path().join("etcd"), &[]);
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        for (path, body) in REQUESTS {
            if let Some(why) = is_left_out(&etcd, path, body) {
                *used.entry(why).or_default() += 1;
                continue;
            }
            let path_of = format!("/v3/{path}");
            let (one, other) = (post(ours.port, &path_of, body).await, post(etcd.port, &path_of, body).await);
            let what = format!("{path} {body}\n  ours: {one:?}\n  {program}: {other:?}");
            if etcd.version < (3, 5) && other.status == 404 && other.body == "Not Found\n" {
                *used.entry("3.4 has fewer paths").or_default() += 1;
                continue;
            }
            let refused = |answer: &Answer| answer.status == 400 && answer.json()["code"] == 3;
            if etcd.version < (3, 5) && path.starts_with("kv/") && (refused(&one) || refused(&other)) {
                *used.entry("3.4 reads JSON by other rules").or_default() += 1;
                continue;
            }
            // 3.4's gateway is another: 412 for 9, and the message twice.
            assert!(one.status == other.status || etcd.version < (3, 5), "{what}");
            assert_eq!(one.header("content-type"), other.header("content-type"), "{what}");
            let (one, other) = (objects(&one), objects(&other));
            assert_eq!(one.len(), other.len(), "{what}");
            for (one, other) in one.iter().zip(&other) {
                match may_differ(&etcd, one, other) {
                    Some(why) => *used.entry(why).or_default() += 1,
                    None => assert_eq!(one, other, "{what}"),
                }
            }
        }
        // The old prefix, and other methods.
        for (method, path, body) in [
            ("POST", "/v3beta/kv/range", r#"{"key":"Zm9v"}"#),
            ("POST", "/v3alpha/kv/range", r#"{"key":"Zm9v"}"#),
            ("POST", "/v2/keys", ""),
            ("OPTIONS", "/v3/kv/range", ""),
        ] {
            let (one, other) =
                (ask(ours.port, method, path, &[], body).await, ask(etcd.port, method, path, &[], body).await);
            assert_eq!(one.status, other.status, "{method} {path} {one:?} {other:?}");
        }
        for method in ["GET", "PUT", "DELETE"] {
            for path in ["/v3/kv/range", "/v3/no/such", "/v3beta/kv/range"] {
                let (one, other) =
                    (ask(ours.port, method, path, &[], "").await, ask(etcd.port, method, path, &[], "").await);
                // 3.4 says 405 in plain text.
                if etcd.version >= (3, 5) {
                    assert_eq!((one.status, objects(&one)), (other.status, objects(&other)), "{method} {path}");
                }
            }
        }
        println!("{program}: differences used: {used:#?}");
    }
}

#[tokio::test]
async fn the_forms_gw_2_to_4() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let put = post(served.port, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy","lease":"0"}"#).await;
    assert_eq!((put.status, put.header("content-type")), (200, "application/json"));
    assert_eq!(put.json()["header"]["revision"], "2", "64-bit integers are text");
    let range = post(served.port, "/v3beta/kv/range", r#"{"key":"Zm9v"}"#).await.json();
    let kv = json!({"key": "Zm9v", "create_revision": "2", "mod_revision": "2", "version": "1", "value": "YmFy"});
    assert_eq!((&range["kvs"], &range["count"], &range["more"]), (&json!([kv]), &json!("1"), &Value::Null));
    // Every kind of error.
    for (path, body, status, code, message) in [
        ("kv/range", "{}", 400, 3, "etcdserver: key is not provided"),
        ("lease/revoke", r#"{"ID":5}"#, 404, 5, "etcdserver: requested lease not found"),
        ("auth/authenticate", "{}", 400, 9, "etcdserver: authentication is not enabled"),
        ("kv/compaction", r#"{"revision":9}"#, 400, 11, "etcdserver: mvcc: required revision is a future revision"),
        ("maintenance/downgrade", r#"{"action":9}"#, 500, 2, "etcdserver: unknown method"),
    ] {
        let answer = post(served.port, &format!("/v3/{path}"), body).await;
        assert_eq!((answer.status, answer.json()), (status, json!({ "code": code, "message": message })));
    }
    let get = ask(served.port, "GET", "/v3/kv/range", &[], "").await;
    assert_eq!((get.status, get.json()), (501, json!({ "code": 12, "message": "Method Not Allowed" })));
    let none = post(served.port, "/v3/no/such", "{}").await;
    assert_eq!((none.status, none.json()), (404, json!({ "code": 5, "message": "Not Found" })));
    // Sizes, as by gRPC.
    let large = |bytes: usize| format!(r#"{{"key":"YQ==","value":"{}"}}"#, "A".repeat(bytes.div_ceil(3) * 4));
    let answer = post(served.port, "/v3/kv/put", &large(1_600_000)).await;
    assert_eq!((answer.status, answer.json()["message"].as_str()), (400, Some("etcdserver: request is too large")));
    for bytes in [2_200_000, 6_000_000] {
        let answer = post(served.port, "/v3/kv/put", &large(bytes)).await;
        assert_eq!((answer.status, &answer.json()["code"]), (429, &json!(8)));
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("grpc: received message larger than max ("), "{message}");
    }
    // What the headers say reaches the call: metadata, and who asks (GW-5).
    let asked = [("Authorization", "a token"), ("Grpc-Metadata-client-api-version", "3.5")];
    assert_eq!(ask(served.port, "POST", "/v3/kv/range", &asked, r#"{"key":"YQ=="}"#).await.status, 200);
    let text = web::get(served.port, "/metrics").await.body;
    assert!(text.contains("etcd_server_client_requests_total{client_api_version=\"3.5\",type=\"unary\"} 1"), "{text}");
}

#[tokio::test]
async fn a_token_in_the_header_says_who_asks_gw_5() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    for (path, body) in [
        ("user/add", r#"{"name":"root","password":"secret"}"#),
        ("user/grant", r#"{"user":"root","role":"root"}"#),
        ("enable", "{}"),
    ] {
        assert_eq!(post(served.port, &format!("/v3/auth/{path}"), body).await.status, 200, "{path}");
    }
    let login = post(served.port, "/v3/auth/authenticate", r#"{"name":"root","password":"secret"}"#).await;
    let token = login.json()["token"].as_str().unwrap().to_owned();
    let put = r#"{"key":"YQ==","value":"MQ=="}"#;
    for (token, status, code) in [("", 400, 3), ("made up", 401, 16), (&token, 200, 0)] {
        let headers = if token.is_empty() { vec![] } else { vec![("Authorization", token)] };
        let answer = ask(served.port, "POST", "/v3/kv/put", &headers, put).await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_i64().unwrap_or(0)),
            (status, code),
            "{token:?}: {answer:?}"
        );
    }
}

/// A stream of objects in, and of lines out.
struct Streaming {
    sender: http_body_util::channel::Sender<Bytes>,
    body: Incoming,
    text: String,
}

impl Streaming {
    async fn open(port: u16, path: &str, first: &str) -> Streaming {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (mut sender, body) = BodyChannel::<Bytes>::new(4);
        sender.send_data(Bytes::copy_from_slice(first.as_bytes())).await.unwrap();
        let request = Request::post(path).header("Host", "127.0.0.1").body(body).unwrap();
        let response = tokio::time::timeout(Duration::from_secs(30), client.send_request(request)).await;
        let response = response.unwrap_or_else(|_| panic!("no answer of {path}")).unwrap();
        assert_eq!(response.status(), 200);
        Streaming { sender, body: response.into_body(), text: String::new() }
    }

    async fn send(&mut self, text: &str) {
        self.sender.send_data(Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
    }

    /// The next line; None at the end.
    async fn line(&mut self) -> Option<Value> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let value = serde_json::from_str(line).unwrap();
                self.text = rest.to_owned();
                return Some(value);
            }
            let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame()).await.unwrap()?;
            if let Ok(data) = frame.unwrap().into_data() {
                self.text.push_str(std::str::from_utf8(&data).unwrap());
            }
        }
    }
}

#[tokio::test]
async fn streams_are_lines_gw_3() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(dir.path(), &[]);
    let port = served.port;
    // Objects as they come, cut anywhere; events go on when the client has closed its side.
    let mut watch = Streaming::open(port, "/v3/watch", r#"{"create_request":{"key":"Zm9v"}}{"create_"#).await;
    assert_eq!(watch.line().await.unwrap()["result"]["created"], true);
    watch.send(r#"request":{"key":"YQ==","watch_id":"7"}}"#).await;
    assert_eq!(watch.line().await.unwrap()["result"]["watch_id"], "7");
    watch.send(r#" {"progress_request":{}} {"cancel_request":{"watch_id":7}}"#).await;
    assert_eq!(watch.line().await.unwrap()["result"]["watch_id"], "-1");
    assert_eq!(watch.line().await.unwrap()["result"]["canceled"], true);
    let Streaming { sender, body, text } = watch;
    drop(sender);
    let (sender, _) = BodyChannel::<Bytes>::new(1);
    let mut watch = Streaming { sender, body, text };
    post(port, "/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#).await;
    let event = watch.line().await.unwrap();
    assert_eq!(event["result"]["events"][0]["kv"]["value"], "YmFy");
    assert_eq!(event["result"]["events"][0]["type"], Value::Null, "PUT is the default");
    post(port, "/v3/kv/deleterange", r#"{"key":"Zm9v"}"#).await;
    assert_eq!(watch.line().await.unwrap()["result"]["events"][0]["type"], "DELETE");
    // An object that cannot be read ends its stream with an error, in the status if nothing was said before.
    let bad = post(port, "/v3/watch", r#"{"create_request":{"key":5}}"#).await;
    assert_eq!((bad.status, &bad.json()["code"]), (400, &json!(3)));
    let mut watch = Streaming::open(port, "/v3/watch", r#"{"create_request":{"key":"Zm9v"}}"#).await;
    assert_eq!(watch.line().await.unwrap()["result"]["created"], true);
    watch.send("[]").await;
    assert_eq!(watch.line().await.unwrap()["error"]["code"], 3);
    assert_eq!(watch.line().await, None);
    // The others that stream.
    post(port, "/v3/lease/grant", r#"{"TTL":"600","ID":"5"}"#).await;
    let mut alive = Streaming::open(port, "/v3/lease/keepalive", r#"{"ID":"5"}"#).await;
    assert_eq!(alive.line().await.unwrap()["result"]["TTL"], "600");
    alive.send(r#"{"ID":6}"#).await;
    assert_eq!(alive.line().await.unwrap()["result"]["ID"], "6");
    post(port, "/v3/election/campaign", r#"{"name":"ZQ==","lease":"5","value":"MQ=="}"#).await;
    let mut observed = Streaming::open(port, "/v3/election/observe", r#"{"name":"ZQ=="}"#).await;
    assert_eq!(observed.line().await.unwrap()["result"]["kv"]["value"], "MQ==");
    let snapshot = post(port, "/v3/maintenance/snapshot", "{}").await;
    let lines: Vec<Value> = snapshot.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() > 1 && lines.iter().all(|line| line["result"]["blob"].is_string()));
    // The server's end is the stream's.
    assert!(tokio::task::spawn_blocking(move || served.stop()).await.unwrap());
    assert_eq!(watch_end(&mut observed).await["error"]["code"], 14);
}

async fn watch_end(stream: &mut Streaming) -> Value {
    stream.line().await.unwrap()
}
