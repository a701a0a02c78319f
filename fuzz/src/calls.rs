//! What the `request` target can ask. Seeds name calls by their place here: new ones come last.

/// gRPC methods; true if the client streams.
pub const GRPC: &[(&str, bool)] = &[
    ("/etcdserverpb.KV/Range", false),
    ("/etcdserverpb.KV/RangeStream", false),
    ("/etcdserverpb.KV/Put", false),
    ("/etcdserverpb.KV/DeleteRange", false),
    ("/etcdserverpb.KV/Txn", false),
    ("/etcdserverpb.KV/Compact", false),
    ("/etcdserverpb.Watch/Watch", true),
    ("/etcdserverpb.Lease/LeaseGrant", false),
    ("/etcdserverpb.Lease/LeaseRevoke", false),
    ("/etcdserverpb.Lease/LeaseKeepAlive", true),
    ("/etcdserverpb.Lease/LeaseTimeToLive", false),
    ("/etcdserverpb.Lease/LeaseLeases", false),
    ("/etcdserverpb.Cluster/MemberAdd", false),
    ("/etcdserverpb.Cluster/MemberRemove", false),
    ("/etcdserverpb.Cluster/MemberUpdate", false),
    ("/etcdserverpb.Cluster/MemberList", false),
    ("/etcdserverpb.Cluster/MemberPromote", false),
    ("/etcdserverpb.Maintenance/Alarm", false),
    ("/etcdserverpb.Maintenance/Status", false),
    ("/etcdserverpb.Maintenance/Defragment", false),
    ("/etcdserverpb.Maintenance/Hash", false),
    ("/etcdserverpb.Maintenance/HashKV", false),
    ("/etcdserverpb.Maintenance/Snapshot", false),
    ("/etcdserverpb.Maintenance/MoveLeader", false),
    ("/etcdserverpb.Maintenance/Downgrade", false),
    ("/etcdserverpb.Auth/AuthEnable", false),
    ("/etcdserverpb.Auth/AuthDisable", false),
    ("/etcdserverpb.Auth/AuthStatus", false),
    ("/etcdserverpb.Auth/Authenticate", false),
    ("/etcdserverpb.Auth/UserAdd", false),
    ("/etcdserverpb.Auth/UserGet", false),
    ("/etcdserverpb.Auth/UserList", false),
    ("/etcdserverpb.Auth/UserDelete", false),
    ("/etcdserverpb.Auth/UserChangePassword", false),
    ("/etcdserverpb.Auth/UserGrantRole", false),
    ("/etcdserverpb.Auth/UserRevokeRole", false),
    ("/etcdserverpb.Auth/RoleAdd", false),
    ("/etcdserverpb.Auth/RoleGet", false),
    ("/etcdserverpb.Auth/RoleList", false),
    ("/etcdserverpb.Auth/RoleDelete", false),
    ("/etcdserverpb.Auth/RoleGrantPermission", false),
    ("/etcdserverpb.Auth/RoleRevokePermission", false),
    ("/v3lockpb.Lock/Lock", false),
    ("/v3lockpb.Lock/Unlock", false),
    ("/v3electionpb.Election/Campaign", false),
    ("/v3electionpb.Election/Proclaim", false),
    ("/v3electionpb.Election/Leader", false),
    ("/v3electionpb.Election/Observe", false),
    ("/v3electionpb.Election/Resign", false),
    ("/polybolt.v1.Inspect/Shards", false),
    ("/grpc.health.v1.Health/Check", false),
    ("/grpc.health.v1.Health/Watch", false),
];

/// Paths of the JSON gateway.
pub const JSON: &[&str] = &[
    "/v3/kv/range",
    "/v3/kv/put",
    "/v3/kv/deleterange",
    "/v3/kv/txn",
    "/v3/kv/compaction",
    "/v3/watch",
    "/v3/lease/grant",
    "/v3/lease/revoke",
    "/v3/lease/keepalive",
    "/v3/lease/timetolive",
    "/v3/lease/leases",
    "/v3/kv/lease/revoke",
    "/v3/kv/lease/timetolive",
    "/v3/kv/lease/leases",
    "/v3/cluster/member/add",
    "/v3/cluster/member/remove",
    "/v3/cluster/member/update",
    "/v3/cluster/member/list",
    "/v3/cluster/member/promote",
    "/v3/maintenance/alarm",
    "/v3/maintenance/status",
    "/v3/maintenance/defragment",
    "/v3/maintenance/hash",
    "/v3/maintenance/hashkv",
    "/v3/maintenance/snapshot",
    "/v3/maintenance/transfer-leadership",
    "/v3/maintenance/downgrade",
    "/v3/auth/enable",
    "/v3/auth/disable",
    "/v3/auth/status",
    "/v3/auth/authenticate",
    "/v3/auth/user/add",
    "/v3/auth/user/get",
    "/v3/auth/user/list",
    "/v3/auth/user/delete",
    "/v3/auth/user/changepw",
    "/v3/auth/user/grant",
    "/v3/auth/user/revoke",
    "/v3/auth/role/add",
    "/v3/auth/role/get",
    "/v3/auth/role/list",
    "/v3/auth/role/delete",
    "/v3/auth/role/grant",
    "/v3/auth/role/revoke",
    "/v3/lock/lock",
    "/v3/lock/unlock",
    "/v3/election/campaign",
    "/v3/election/proclaim",
    "/v3/election/leader",
    "/v3/election/observe",
    "/v3/election/resign",
];

/// Calls from here on are JSON.
pub const FIRST_JSON: u8 = 128;
/// A whole request over HTTP as text: method, space, path; headers; an empty line; the body.
pub const HTTP: u8 = 127;
/// From here on without the token of the last login.
pub const SIGN_OUT: u8 = 126;
/// Entries of the server's tables, as they are before it starts: table, key, value.
pub const TABLES: u8 = 125;
/// Tables, by the first byte of an entry.
pub const TABLE_NAMES: [&str; 5] = ["auth", "auth-user", "auth-role", "alarm", "member"];

/// The call of a gRPC method.
pub fn grpc(path: &str) -> u8 {
    GRPC.iter().position(|(known, _)| *known == path).expect("a known method") as u8
}

/// The call of a path of the gateway.
pub fn json(path: &str) -> u8 {
    FIRST_JSON + JSON.iter().position(|known| *known == path).expect("a known path") as u8
}

/// Appends a call to an input.
pub fn put(out: &mut Vec<u8>, call: u8, body: &[u8]) {
    out.push(call);
    out.extend_from_slice(&u16::try_from(body.len()).expect("seeds are small").to_le_bytes());
    out.extend_from_slice(body);
}

/// Appends a part of a body: a message of a stream, or a field of a table's entry.
pub fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    out.push(u8::try_from(part.len()).expect("seeds are small"));
    out.extend_from_slice(part);
}

/// Takes the next call off an input.
pub fn take<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let ([call, low, high], rest) = input.split_first_chunk()?;
    let (body, rest) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
    *input = rest;
    Some((*call, body))
}

/// Takes the next part off a body.
pub fn take_part<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = body.split_first()?;
    let (part, rest) = rest.split_at(usize::from(*len).min(rest.len()));
    *body = rest;
    Some(part)
}
