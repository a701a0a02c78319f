"""Asks a server for what the package `etcd3` offers, and says step by step how it went: see `../main.rs` for what
is printed."""

import hashlib
import io
import queue
import sys
import threading
import time
import traceback
from importlib.metadata import version
from urllib.parse import urlparse

import etcd3
import grpc
from etcd3 import exceptions

ENDPOINT = urlparse(sys.argv[1])
PATIENCE = 30
STEPS = []


def connect():
    return etcd3.client(host=ENDPOINT.hostname, port=ENDPOINT.port, timeout=PATIENCE)


def say(line):
    print(line.replace("\n", " "), flush=True)


def step(name):
    """A function that is a step: it gets a client of its own."""
    return lambda function: STEPS.append((name, function)) or function


def equal(left, right):
    assert left == right, f"{left!r} is not {right!r}"


def refused(error, call, *arguments, **named):
    """What a call is refused with."""
    try:
        call(*arguments, **named)
    except error as refusal:
        return refusal
    raise AssertionError("it was not refused")


def keys(found):
    return [meta.key for _, meta in found]


def values(found):
    return [value for value, _ in found]


@step("kv: put and get, what is known of a key")
def put_and_get(etcd):
    equal(etcd.get("pg/none"), (None, None))
    revision = etcd.put("pg/key", "1").header.revision
    equal(etcd.put("pg/key", "2", prev_kv=True).prev_kv.value, b"1")
    value, meta = etcd.get("pg/key")
    equal((value, meta.key, meta.version, meta.lease_id), (b"2", b"pg/key", 2, 0))
    equal((meta.create_revision, meta.mod_revision), (revision, revision + 1))
    equal(etcd.get("pg/key", serializable=True)[0], b"2")
    equal(etcd.get_response("pg/key").header.revision, revision + 1)
    binary = bytes(range(256))
    etcd.put(binary, binary)
    equal(etcd.get(binary)[0], binary)


@step("kv: prefixes, ranges, all; every order")
def ranges(etcd):
    for key, value in [("b", "3"), ("d", "1"), ("a", "4"), ("c", "2"), ("b", "0")]:
        etcd.put("range/" + key, value)
    equal(values(etcd.get_prefix("range/")), [b"4", b"0", b"2", b"1"])
    equal(keys(etcd.get_range("range/b", "range/d")), [b"range/b", b"range/c"])
    for target, order in [("key", "abcd"), ("value", "bdca"), ("create", "bdac"), ("mod", "dacb"), ("version", "acdb")]:
        for direction, expected in [("ascend", order), ("descend", order[::-1])]:
            found = keys(etcd.get_prefix("range/", sort_target=target, sort_order=direction))
            found = "".join(key.decode()[-1] for key in found)
            if target == "version":
                found, expected = (found.strip("acd"), "b")
            equal((target, direction, found), (target, direction, expected))
    equal(values(etcd.get_prefix("range/", keys_only=True)), [b""] * 4)
    assert {b"range/a", b"pg/key"} <= set(keys(etcd.get_all()))
    response = etcd.get_prefix_response("range/")
    equal((response.count, response.more), (4, False))


@step("kv: put if not there, replace")
def put_if(etcd):
    equal(etcd.put_if_not_exists("pi/key", "1"), True)
    equal(etcd.put_if_not_exists("pi/key", "2"), False)
    equal(etcd.replace("pi/key", "0", "3"), False)
    equal(etcd.replace("pi/key", "1", "4"), True)
    equal(etcd.get("pi/key")[0], b"4")


@step("kv: delete a key, a prefix")
def delete(etcd):
    for key in "abc":
        etcd.put("del/" + key, key)
    equal(etcd.delete("del/a"), True)
    equal(etcd.delete("del/a"), False)
    equal(etcd.delete("del/b", prev_kv=True, return_response=True).prev_kvs[0].value, b"b")
    equal(etcd.delete_prefix("del/").deleted, 1)
    equal(list(etcd.get_prefix("del/")), [])


@step("txn: comparisons, operations, nested")
def transaction(etcd):
    of = etcd.transactions
    revision = etcd.put("txn/a", "m").header.revision
    holds = [
        of.value("txn/a") == "m", of.value("txn/a") != "n", of.value("txn/a") > "l", of.value("txn/a") < "n",
        of.version("txn/a") == 1, of.create("txn/a") == revision, of.mod("txn/a") < revision + 1,
        of.version("txn/none") == 0,
    ]
    done, answers = etcd.transaction(
        compare=holds,
        success=[of.put("txn/b", "1"), of.get("txn/a"), of.delete("txn/c"),
                 of.txn(compare=[of.create("txn/b") == 0], success=[of.put("txn/d", "1")], failure=[])],
        failure=[])
    equal((done, answers[1][0][0], answers[2].response_delete_range.deleted), (True, b"m", 0))
    equal(etcd.get("txn/d")[0], b"1")
    done, answers = etcd.transaction(
        compare=[of.value("txn/a") == "n"], success=[], failure=[of.get("txn/", "txn0")])
    equal((done, [value for value, _ in answers[0]]), (False, [b"m", b"1", b"1"]))


@step("txn: the same key twice is refused")
def duplicate(etcd):
    puts = [etcd.transactions.put("txn/e", "1"), etcd.transactions.put("txn/e", "2")]
    refusal = refused(grpc.RpcError, etcd.transaction, compare=[], success=puts, failure=[])
    equal(refusal.details(), "etcdserver: duplicate key given in txn request")


def collect(source, count):
    """So many events, which have to come in time."""
    found = queue.Queue()
    threading.Thread(target=lambda: [found.put(event) for event in source], daemon=True).start()
    return [found.get(timeout=PATIENCE) for _ in range(count)]


def name(event):
    return (type(event).__name__, event.key, event.value)


@step("watch: iterator, cancelled")
def watch(etcd):
    events, cancel = etcd.watch("watch/a")
    etcd.put("watch/a", "1")
    etcd.delete("watch/a")
    equal([name(event) for event in collect(events, 2)],
          [("PutEvent", b"watch/a", b"1"), ("DeleteEvent", b"watch/a", b"")])
    cancel()
    other, cancel = etcd.watch("watch/a")
    etcd.put("watch/a", "2")
    equal(name(collect(other, 1)[0]), ("PutEvent", b"watch/a", b"2"))
    cancel()


@step("watch: prefix, range, history, previous values")
def watch_options(etcd):
    revision = etcd.put("history/a", "1").header.revision
    etcd.put("history/b", "1")
    etcd.put("history/a", "2")
    etcd.delete("history/b")
    found = collect(etcd.watch_prefix("history/", start_revision=revision, prev_kv=True)[0], 4)
    equal([(event.key[-1:], event.value, event.prev_value) for event in found],
          [(b"a", b"1", b""), (b"b", b"1", b""), (b"a", b"2", b"1"), (b"b", b"", b"1")])
    found = collect(etcd.watch("history/b", range_end="history/c", start_revision=revision)[0], 2)
    equal([name(event)[0] for event in found], ["PutEvent", "DeleteEvent"])
    found = collect(etcd.watch_prefix_response("history/", start_revision=revision, progress_notify=True)[0], 1)
    assert found[0].header.revision >= revision and found[0].events


@step("watch: callbacks, of a key and of a prefix")
def watch_callback(etcd):
    found = queue.Queue()
    of_key = etcd.add_watch_callback("call/a", lambda response: found.put(("key", response)))
    of_prefix = etcd.add_watch_prefix_callback("call/", lambda response: found.put(("prefix", response)))
    etcd.put("call/a", "1")
    got = dict(found.get(timeout=PATIENCE) for _ in range(2))
    equal(sorted(got), ["key", "prefix"])
    assert all(response.events[0].value == b"1" and response.header.revision for response in got.values())
    etcd.cancel_watch(of_key)
    etcd.put("call/b", "2")
    kind, response = found.get(timeout=PATIENCE)
    equal((kind, response.events[0].key), ("prefix", b"call/b"))
    etcd.cancel_watch(of_prefix)


@step("watch: once, in time and not")
def watch_once(etcd):
    writer = connect()
    timer = threading.Timer(0.3, writer.put, ("once/a", "1"))
    timer.start()
    equal(name(etcd.watch_once("once/a", timeout=PATIENCE)), ("PutEvent", b"once/a", b"1"))
    timer = threading.Timer(0.3, writer.put, ("once/b", "1"))
    timer.start()
    equal(etcd.watch_prefix_once("once/", timeout=PATIENCE).key, b"once/b")
    refused(exceptions.WatchTimedOut, etcd.watch_once, "once/c", timeout=0.2)


@step("watch: below what was compacted")
def watch_compacted(etcd):
    old = etcd.put("comp/a", "1").header.revision
    revision = etcd.put("comp/a", "2").header.revision
    etcd.compact(revision, physical=True)
    events, _ = etcd.watch("comp/a", start_revision=old)
    refusal = refused(exceptions.RevisionCompactedError, next, events)
    equal(refusal.compacted_revision, revision)
    refusal = refused(grpc.RpcError, etcd.compact, revision)
    equal(refusal.details(), "etcdserver: mvcc: required revision has been compacted")


@step("lease: grant, put, refresh, info, revoke")
def lease(etcd):
    lease = etcd.lease(60)
    equal((lease.ttl, lease.granted_ttl), (60, 60))
    etcd.put("lease/a", "1", lease=lease)
    etcd.put("lease/b", "1", lease=lease.id)
    equal(etcd.get("lease/a")[1].lease_id, lease.id)
    equal(sorted(lease.keys), [b"lease/a", b"lease/b"])
    assert 50 < lease.remaining_ttl <= 60
    equal([(answer.ID, answer.TTL) for answer in lease.refresh()], [(lease.id, 60)])
    equal(etcd.get_lease_info(lease.id).grantedTTL, 60)
    lease.revoke()
    equal(etcd.get("lease/a")[0], None)
    equal(etcd.get_lease_info(lease.id).TTL, -1)
    equal(etcd.lease(60, lease_id=777).id, 777)
    etcd.revoke_lease(777)


@step("lease: one that ends takes its key along")
def lease_ends(etcd):
    lease = etcd.lease(1)
    events, cancel = etcd.watch("ending/a")
    etcd.put("ending/a", "1", lease=lease)
    equal([name(event)[0] for event in collect(events, 2)], ["PutEvent", "DeleteEvent"])
    cancel()


@step("lock: two clients, of whom one has it")
def lock(etcd):
    other = connect()
    with etcd.lock("place", ttl=20) as held:
        equal(held.is_acquired(), True)
        equal(held.refresh()[0].TTL, 20)
        wanted = other.lock("place", ttl=20)
        equal(wanted.acquire(timeout=0.3), False)
        equal(wanted.is_acquired(), False)
        # It waits for the release.
        got = queue.Queue()
        threading.Thread(target=lambda: got.put(wanted.acquire(timeout=PATIENCE)), daemon=True).start()
        time.sleep(0.2)
        equal(got.empty(), True)
    equal(got.get(timeout=PATIENCE), True)
    equal((held.is_acquired(), wanted.is_acquired()), (False, True))
    equal((held.release(), wanted.release()), (False, True))


@step("cluster: members")
def members(etcd):
    found = list(etcd.members)
    equal(len(found), 1)
    assert found[0].name and found[0].id and found[0].client_urls
    equal(list(found[0].active_alarms), [])


@step("maintenance: status")
def status(etcd):
    status = etcd.status()
    assert status.version.startswith("3.") and status.db_size > 0
    assert status.raft_index > 0 and status.raft_term > 0
    equal(status.leader.id, next(iter(etcd.members)).id)


@step("maintenance: alarms")
def alarms(etcd):
    equal(list(etcd.list_alarms()), [])
    member = next(iter(etcd.members)).id
    equal([alarm.member_id for alarm in etcd.create_alarm(member)], [member])
    full = refused(grpc.RpcError, etcd.put, "alarm/a", "1")
    equal([alarm.member_id for alarm in etcd.list_alarms(member)], [member])
    equal([alarm.member_id for alarm in etcd.disarm_alarm(member)], [member])
    equal(full.details(), "etcdserver: mvcc: database space exceeded")
    etcd.put("alarm/a", "1")


@step("maintenance: defragment, hash")
def defragment(etcd):
    before = etcd.hash()
    etcd.put("hash/a", "1")
    assert etcd.hash() != before
    etcd.defragment()
    equal(etcd.get("hash/a")[0], b"1")


@step("maintenance: snapshot")
def snapshot(etcd):
    file = io.BytesIO()
    etcd.snapshot(file)
    whole = file.getvalue()
    image, digest = whole[:-32], whole[-32:]
    equal(len(image) % 512, 0)
    equal(hashlib.sha256(image).digest(), digest)


@step("restart: a watch is told, keys and leases stay")
def restart(etcd):
    lease = etcd.lease(300)
    etcd.put("kept", "1", lease=lease)
    told = queue.Queue()
    etcd.add_watch_callback("kept", told.put)
    say("restart")
    sys.stdin.readline()
    assert isinstance(told.get(timeout=PATIENCE), grpc.RpcError)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            value, meta = etcd.get("kept")
            break
        except exceptions.ConnectionFailedError:
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.1)
    equal((value, meta.lease_id, lease.granted_ttl), (b"1", lease.id, 300))
    events, _ = etcd.watch("kept")
    etcd.put("kept", "2")
    equal(name(collect(events, 1)[0]), ("PutEvent", b"kept", b"2"))


def main():
    say("version " + version("etcd3"))
    for name, function in STEPS:
        say("begin " + name)
        try:
            function(connect())
            say("pass")
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)
            line = [frame.lineno for frame in at if frame.filename == __file__][-1]
            say(f"fail line {line}: {type(error).__name__}: {error}")


main()
