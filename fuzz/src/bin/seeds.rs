//! Writes `fuzz/seeds`: inputs for every target, made from what the engine writes. To be run again when a format
//! changes: `cargo run --release --bin seeds` in `fuzz`.

use bytes::Bytes;
// What the code calls where it is built to be watched.
use libfuzzer_sys as _;
use polybolt::disk::sim::SimDisk;
use polybolt::run::seeded::Rng;
use polybolt_engine::disk::Disk;
use polybolt_engine::file::{FileSpec, ReadMode, TreeFile};
use polybolt_engine::page::layout::HEADER_BYTES;
use polybolt_engine::space::FreeSpace;
use polybolt_engine::tree::{self, Edit, Root};
use polybolt_engine::{TreeId, UNIT_BYTES};
use polybolt_frontend::proto::{authpb, etcdserverpb as pb, v3electionpb, v3lockpb};
use polybolt_fuzz::{calls, fixture, repair};
use prost::Message;
use std::path::Path;
use std::sync::Arc;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    std::fs::create_dir_all(&dir).expect("the directory of seeds can be made");
    std::fs::write(dir.join(name), bytes).expect("a seed can be written");
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A file of the store by how its name begins or ends.
fn file(disk: &SimDisk, is: impl Fn(&str) -> bool) -> Vec<u8> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (path, len) = disk.files().into_iter().find(|(path, _)| is(&name(path))).expect("there is such a file");
    disk.peek(&path, 0, len as usize).expect("it is as long")
}

/// Pages with their height and count, as the targets take them.
fn pages(disk: &SimDisk) {
    let whole = file(disk, |name| name.starts_with("ks.low"));
    let meta = file(disk, |name| name.starts_with("ks.meta"));
    let mut of_kind = [0; 2];
    for bytes in [whole, meta] {
        for (at, len) in repair::pages_of(&bytes) {
            let (page, kind) = (&bytes[at..at + len], bytes[at + 4]);
            let branch = usize::from(kind == 3);
            if (kind == 2 || kind == 3) && len == UNIT_BYTES && of_kind[branch] < 3 {
                of_kind[branch] += 1;
                let mut seed = vec![page[5], page[36]];
                seed.extend_from_slice(trimmed(&page[HEADER_BYTES..]));
                write("page", &format!("{}-{}", ["leaf", "branch"][branch], of_kind[branch]), &seed);
            }
        }
    }
}

/// Trees as one checkpoint writes them.
fn trees() {
    for (name, keys, body) in
        [("one-leaf", 5, 20), ("two-levels", 90, 60), ("overflow", 4, 9000), ("three-levels", 55, 1)]
    {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        disk.create_dir(Path::new("/s")).expect("an empty disk");
        let spec = FileSpec { path: "/s/t".into(), engine: 7, tree: TreeId(3), page_bytes: UNIT_BYTES };
        let file = TreeFile::create(&disk, spec, ReadMode::default()).expect("an empty disk");
        let mut space = FreeSpace::unknown(1);
        let key = |n: u32| match name {
            "three-levels" => Bytes::from(format!("{n:0500}")),
            _ => Bytes::from(format!("key{n:04}")),
        };
        let put = |n: u32| (key(n), Edit::Put { head: vec![1; 10].into(), body: vec![n as u8; body].into() });
        let edits: Vec<_> = (0..keys).map(put).collect();
        let mut writer = file.writer(&mut space, 9).expect("it is open");
        tree::edit(&file, &mut writer, Root::default(), &edits).expect("the disk has room");
        writer.finish().expect("the disk has room");
        let mut seed = vec![3];
        let mut unit = 1;
        while unit < space.end() {
            let mut page = vec![0; UNIT_BYTES];
            let raw = file.disk_file().expect("it is open");
            raw.read_at(&mut page, u64::from(unit) * UNIT_BYTES as u64).expect("it is there");
            let units = u32_at(&page, 32);
            let (height, count) = if page[4] == 4 { (255, 0) } else { (page[5], page[36]) };
            let mut whole = vec![0; units as usize * UNIT_BYTES];
            raw.read_at(&mut whole, u64::from(unit) * UNIT_BYTES as u64).expect("it is there");
            let content = match height {
                255 => &whole[HEADER_BYTES..HEADER_BYTES + u32_at(&page, 36) as usize],
                _ => trimmed(&whole[HEADER_BYTES..]),
            };
            seed.extend_from_slice(&[height, count]);
            seed.extend_from_slice(&(content.len() as u16).to_le_bytes());
            seed.extend_from_slice(content);
            unit += units;
        }
        write("tree", name, &seed);
    }
}

fn stores() {
    let change = |file: u8, at: u32, kind: u8, bytes: &[u8]| {
        let [a, b, c, _] = at.to_le_bytes();
        let mut out = vec![file, a, b, c, kind, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    };
    for (flags, name) in
        [(0, "clean"), (1, "unclean"), (4, "clean-written"), (5, "unclean-written"), (8, "salvaged"), (16, "read-only")]
    {
        write("store", name, &[flags]);
    }
    // The files by name: slots of the manifest, the journal, then trees.
    for file in 0..12 {
        write(
            "store",
            &format!("file-{file}"),
            &[vec![4 | u8::from(file % 2 == 0)], change(file, 4096 + 70, 0, &[1])].concat(),
        );
    }
    write("store", "cut", &[vec![0], change(6, 5000, 6, &[])].concat());
    write("store", "exchanged", &[vec![12], change(7, 2, 7, &[0; 3])].concat());
}

fn keyspaces() {
    for (seed, operations) in [(1u16, 10), (2, 24), (3, 48), (4, 64)] {
        let mut rng = Rng::new(seed.into());
        let mut input = seed.to_le_bytes().to_vec();
        for _ in 0..operations {
            input.extend_from_slice(&(rng.below(1000) as u16).to_le_bytes());
            input.push(rng.below(2) as u8);
            input.extend_from_slice(&(rng.next_u64() as u16).to_le_bytes());
        }
        write("keyspace", &format!("operations-{operations}"), &input);
    }
}

/// A sequence of calls.
#[derive(Default)]
struct Calls(Vec<u8>);

impl Calls {
    fn grpc(mut self, path: &str, message: &impl Message) -> Self {
        calls::put(&mut self.0, calls::grpc(path), &message.encode_to_vec());
        self
    }

    fn stream(mut self, path: &str, messages: &[impl Message]) -> Self {
        let mut body = Vec::new();
        messages.iter().for_each(|message| calls::put_part(&mut body, &message.encode_to_vec()));
        calls::put(&mut self.0, calls::grpc(path), &body);
        self
    }

    fn json(mut self, path: &str, body: &str) -> Self {
        calls::put(&mut self.0, calls::json(path), body.as_bytes());
        self
    }

    fn http(mut self, text: &str) -> Self {
        calls::put(&mut self.0, calls::HTTP, text.as_bytes());
        self
    }

    fn table(mut self, table: u8, key: &[u8], value: &[u8]) -> Self {
        let mut body = Vec::new();
        calls::put_part(&mut body, &[table]);
        calls::put_part(&mut body, key);
        body.extend_from_slice(value);
        calls::put(&mut self.0, calls::TABLES, &body);
        self
    }
}

fn put(key: &'static str, value: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn range(key: &'static str, end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

fn requests() {
    use pb::compare::TargetUnion;
    use pb::request_op::Request;
    use pb::watch_request::RequestUnion;
    let op = |request| pb::RequestOp { request: Some(request) };
    let delete = pb::DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: true };
    let compare = pb::Compare { key: "a".into(), target_union: Some(TargetUnion::Version(1)), ..Default::default() };
    let inner = pb::TxnRequest { success: vec![op(Request::RequestPut(put("c", "3")))], ..Default::default() };
    let txn = pb::TxnRequest {
        compare: vec![compare],
        success: vec![op(Request::RequestPut(put("a", "2"))), op(Request::RequestTxn(inner))],
        failure: vec![op(Request::RequestRange(range("a", "z"))), op(Request::RequestDeleteRange(delete.clone()))],
    };
    let sorted = pb::RangeRequest { limit: 1, sort_order: 2, sort_target: 3, revision: 2, ..range("\0", "\0") };
    let kv = Calls::default()
        .grpc("/etcdserverpb.KV/Put", &put("a", "1"))
        .grpc("/etcdserverpb.KV/Txn", &txn)
        .grpc("/etcdserverpb.KV/Range", &sorted)
        .grpc("/etcdserverpb.KV/RangeStream", &range("a", "z"))
        .grpc("/etcdserverpb.KV/DeleteRange", &delete)
        .grpc("/etcdserverpb.KV/Compact", &pb::CompactionRequest { revision: 3, physical: true });
    write("request", "kv", &kv.0);

    let create = pb::WatchCreateRequest {
        key: "a".into(),
        range_end: "z".into(),
        start_revision: 1,
        prev_kv: true,
        fragment: true,
        progress_notify: true,
        ..Default::default()
    };
    let watches = [
        RequestUnion::CreateRequest(create),
        RequestUnion::ProgressRequest(pb::WatchProgressRequest {}),
        RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 0 }),
    ];
    let watches = watches.map(|union| pb::WatchRequest { request_union: Some(union) });
    let leases = Calls::default()
        .grpc("/etcdserverpb.Lease/LeaseGrant", &pb::LeaseGrantRequest { ttl: 60, id: 7 })
        .grpc("/etcdserverpb.KV/Put", &pb::PutRequest { lease: 7, ..put("a", "1") })
        .stream("/etcdserverpb.Watch/Watch", &watches)
        .stream("/etcdserverpb.Lease/LeaseKeepAlive", &[pb::LeaseKeepAliveRequest { id: 7 }])
        .grpc("/etcdserverpb.Lease/LeaseTimeToLive", &pb::LeaseTimeToLiveRequest { id: 7, keys: true })
        .grpc("/etcdserverpb.Lease/LeaseLeases", &pb::LeaseLeasesRequest {})
        .grpc("/etcdserverpb.Lease/LeaseRevoke", &pb::LeaseRevokeRequest { id: 7 });
    write("request", "watch-and-leases", &leases.0);
    auth();

    let alarm = |action, alarm| pb::AlarmRequest { action, member_id: 1, alarm };
    let downgrade = pb::DowngradeRequest { action: 0, version: "3.5.0".into() };
    let maintenance = Calls::default()
        .grpc("/etcdserverpb.KV/Put", &put("a", "1"))
        .grpc("/etcdserverpb.Maintenance/Alarm", &alarm(1, 1))
        .grpc("/etcdserverpb.Maintenance/Alarm", &alarm(0, 0))
        .grpc("/etcdserverpb.Maintenance/Alarm", &alarm(2, 1))
        .grpc("/etcdserverpb.Maintenance/Status", &pb::StatusRequest {})
        .grpc("/etcdserverpb.Maintenance/HashKV", &pb::HashKvRequest { revision: 2 })
        .grpc("/etcdserverpb.Maintenance/Hash", &pb::HashRequest {})
        .grpc("/etcdserverpb.Maintenance/Snapshot", &pb::SnapshotRequest {})
        .grpc("/etcdserverpb.Maintenance/Defragment", &pb::DefragmentRequest {})
        .grpc("/etcdserverpb.Maintenance/Downgrade", &downgrade)
        .grpc("/etcdserverpb.Cluster/MemberList", &pb::MemberListRequest { linearizable: true })
        .grpc("/polybolt.v1.Inspect/Shards", &());
    write("request", "maintenance", &maintenance.0);

    let lock = v3lockpb::LockRequest { name: "l".into(), lease: 7 };
    let campaign = v3electionpb::CampaignRequest { name: "e".into(), lease: 7, value: "v".into() };
    let leader = v3electionpb::LeaderRequest { name: "e".into() };
    let queues = Calls::default()
        .grpc("/etcdserverpb.Lease/LeaseGrant", &pb::LeaseGrantRequest { ttl: 60, id: 7 })
        .grpc("/v3lockpb.Lock/Lock", &lock)
        .grpc("/v3lockpb.Lock/Unlock", &v3lockpb::UnlockRequest { key: "l/7".into() })
        .grpc("/v3electionpb.Election/Campaign", &campaign)
        .grpc("/v3electionpb.Election/Leader", &leader)
        .grpc("/v3electionpb.Election/Observe", &leader);
    write("request", "queues", &queues.0);

    let json = Calls::default()
        .json("/v3/kv/put", r#"{"key":"YQ==","value":"MQ==","prev_kv":true}"#)
        .json("/v3/kv/range", r#"{"key":"AA==","rangeEnd":"AA==","sortOrder":"DESCEND","sortTarget":"VALUE","limit":"2"}"#)
        .json(
            "/v3/kv/txn",
            r#"{"compare":[{"key":"YQ==","target":"VERSION","version":"1"}],"success":[{"requestPut":{"key":"YQ=="}}]}"#,
        )
        .json("/v3/watch", r#"{"create_request":{"key":"YQ==","start_revision":1,"filters":["NOPUT"]}} {"progress_request":{}}"#)
        .json("/v3/lease/grant", r#"{"ID":7,"TTL":"60"}"#)
        .json("/v3/maintenance/alarm", r#"{"action":"ACTIVATE","memberID":"1","alarm":"NOSPACE"}"#);
    write("request", "json", &json.0);

    let http = Calls::default()
        .http("GET /health?serializable=true&exclude=NOSPACE")
        .http("GET /livez?verbose")
        .http("GET /readyz/data_corruption?exclude=linearizable_read")
        .http("GET /metrics")
        .http("GET /version")
        .http("GET /debug/vars")
        .http("OPTIONS /v3/kv/put\nOrigin: http://a\nHost: b:1")
        .http("POST /v3/kv/range\nGrpc-Metadata-client-api-version: 3.4\n\n{\"key\":\"YQ==\"}")
        .http("POST /etcdserverpb.KV/Range\ncontent-type: application/grpc+proto\nclient-api-version: 3.6\n\n\0\0\0\0\x03\x0a\x01a");
    write("request", "http", &http.0);
}

fn auth() {
    let (name, password) = (|| "root".to_owned(), || "p".to_owned());
    let user = pb::AuthUserAddRequest { name: name(), password: password(), ..Default::default() };
    let perm = authpb::Permission { perm_type: 2, key: "a".into(), range_end: "c".into() };
    let auth = Calls::default()
        .grpc("/etcdserverpb.Auth/UserAdd", &user)
        .grpc("/etcdserverpb.Auth/RoleAdd", &pb::AuthRoleAddRequest { name: "r".into() })
        .grpc(
            "/etcdserverpb.Auth/RoleGrantPermission",
            &pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm.clone()) },
        )
        .grpc("/etcdserverpb.Auth/UserGrantRole", &pb::AuthUserGrantRoleRequest { user: name(), role: "root".into() })
        .grpc("/etcdserverpb.Auth/AuthEnable", &pb::AuthEnableRequest {})
        .grpc("/etcdserverpb.KV/Range", &range("a", "b"))
        .grpc("/etcdserverpb.Auth/Authenticate", &pb::AuthenticateRequest { name: name(), password: password() })
        .grpc("/etcdserverpb.KV/Put", &put("a", "1"))
        .grpc("/etcdserverpb.Auth/UserList", &pb::AuthUserListRequest {})
        .grpc("/etcdserverpb.Auth/RoleGet", &pb::AuthRoleGetRequest { role: "r".into() })
        .grpc("/etcdserverpb.Auth/AuthDisable", &pb::AuthDisableRequest {});
    write("request", "auth", &auth.0);

    // Longer than a key of a table can be.
    let long = pb::AuthUserAddRequest { name: "n".repeat(600), password: password(), ..Default::default() };
    write("request", "long-name", &Calls::default().grpc("/etcdserverpb.Auth/UserAdd", &long).0);

    let role = authpb::Role { name: "r".into(), key_permission: vec![perm] };
    let root = authpb::User { name: "root".into(), roles: vec!["root".into()], ..Default::default() };
    let alice = authpb::User { name: "alice".into(), roles: vec!["r".into()], ..Default::default() };
    let tables = Calls::default()
        .table(0, b"enabled", &[1])
        .table(0, b"revision", &9u64.to_be_bytes())
        .table(1, b"root", &root.encode_to_vec())
        .table(1, b"alice", &alice.encode_to_vec())
        .table(2, b"r", &role.encode_to_vec())
        .table(3, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1], b"")
        .table(4, b"peer-urls", &pb::Member::default().encode_to_vec())
        .grpc(
            "/etcdserverpb.Auth/Authenticate",
            &pb::AuthenticateRequest { name: "alice".into(), password: password() },
        )
        .grpc("/etcdserverpb.Auth/AuthStatus", &pb::AuthStatusRequest {})
        .grpc("/etcdserverpb.KV/Put", &put("a", "1"));
    write("request", "tables", &tables.0);
}

/// What stock clients send: a preface, settings, and headers whose authority is none.
fn connections() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        frame.extend_from_slice(payload);
        frame
    };
    let block = |authority: &[u8]| {
        [&[0x83, 0x86, 0x45, 0x03], &b"/ab"[..], &[0x41, authority.len() as u8], authority, &[0x5f, 0x02], b"ok"]
            .concat()
    };
    let bad = frame(1, 4, &block(b"http://127.0.0.1:2379"));
    let padded = frame(1, 0x2c, &[&[2, 0, 0, 0, 0, 0], &block(b"#[a]")[..], &[0, 0]].concat());
    let compressed = [&[0x83, 0x41, 0x85], &[0xff, 0xaf, 0xfd, 0xff, 0xf7][..]].concat();
    let settings = frame(4, 0, &[0; 6]);
    write("connection", "good", &[&[7, 1], &settings[..], &frame(1, 4, &block(b"a:1"))].concat());
    write("connection", "bad", &[&[3, 1], &settings[..], &bad, &frame(0, 1, &[7; 50]), &padded, &bad].concat());
    write("connection", "compressed", &[&[5, 1], &frame(1, 4, &compressed)[..], &padded].concat());
    write("connection", "http1", &[&[3, 0], &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..]].concat());
    write("connection", "whole", &[&[9, 0], &preface[..], &settings, &bad].concat());
}

fn options() {
    for (name, text) in [
        ("routes", "rlow=a,mid=m,mid=n,e:volatile=/registry/events/"),
        ("routes-known", "rkubernetes"),
        ("routes-one", "rsingle"),
        (
            "arguments",
            "--durability=batch\n--backend-batch-interval=1h\n--backend-batch-limit=7\n--buffer-bytes=1048576",
        ),
        (
            "compaction",
            "--auto-compaction-mode=revision\n--auto-compaction-retention=1000\n--compaction-batch-limit=1\n--compaction-sleep-interval=1ns",
        ),
        (
            "period",
            "--auto-compaction-retention=90m\n--feature-gates=LeaseCheckpoint=true,CompactHashCheck=true\n--lease-checkpoint-interval=1s",
        ),
        (
            "limits",
            "--max-txn-ops=1\n--max-request-bytes=10\n--quota-backend-bytes=-1\n--max-concurrent-streams=2\n--scrub-bytes-per-second=0",
        ),
        (
            "urls",
            "--listen-client-urls=http://[::1]:2379,https://a:1/\n--advertise-client-urls=http://b:2\n--auto-tls\n--cors=a,b\n--host-whitelist=*",
        ),
        (
            "times",
            "--grpc-keepalive-interval=0s\n--grpc-keepalive-timeout=20s\n--watch-progress-notify-interval=100ms\n--auth-token-ttl=1\n--bcrypt-cost=4",
        ),
        (
            "files",
            "--cert-file=c\n--key-file=k\n--trusted-ca-file=t\n--client-cert-auth\n--log-level=debug\n--name=n\n--data-dir=d",
        ),
    ] {
        write("options", name, text.as_bytes());
    }
}

fn main() {
    let (clean, unclean) = (fixture::store(true), fixture::store(false));
    pages(&clean);
    trees();
    let slot = file(&clean, |name| name == "MANIFEST.0");
    let body = u64::from_le_bytes(slot[16..24].try_into().expect("eight bytes")) as usize;
    write("manifest", "store", &slot[64..64 + body]);
    write("manifest", "empty", &[&slot[64..64 + 152], &[0; 4]].concat());
    let segments = fixture::journal();
    write("journal", "whole", &[&[0], trimmed(&segments.concat())].concat());
    write("journal", "first", &[&[0], trimmed(&segments[0])].concat());
    stores();
    let mut rng = Rng::new(1);
    for len in [90, 900] {
        let operations: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
        write("index", &format!("operations-{len}"), &operations);
    }
    let stream = fixture::stream(12);
    write("snapshot", "install", &[&[0], &stream[..]].concat());
    write("snapshot", "restore", &[&[2], &stream[..]].concat());
    write("snapshot", "restore-split", &[&[10], &stream[..]].concat());
    write("snapshot", "older", &[&[4], &stream[..]].concat());
    write("snapshot", "as-it-is", &[&[1], &stream[..]].concat());
    let manifest = fixture::manifest();
    write("record", "state", &manifest.spaces[0].state);
    write("record", "routes", &manifest.spaces[0].config);
    write("record", "snapshot", &stream[..stream.len().min(3000)]);
    let group = &segments[0][512..];
    let record = u32_at(group, 64 + 4) as usize;
    write("record", "record", &group[72..72 + record]);
    // A row of it, behind the lengths of its head and body.
    write("record", "row", &group[72 + 7..72 + record]);
    write("record", "lease", &[&100u64.to_le_bytes()[..], &[0; 16]].concat());
    drop(unclean);
    keyspaces();
    requests();
    connections();
    options();
}
