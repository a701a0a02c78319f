// Asks a server for what the package `etcd3` offers, and says step by step how it went: see `../main.rs` for what is
// printed.
'use strict';

const assert = require('node:assert/strict');
const { createHash } = require('node:crypto');
const { once } = require('node:events');
const { createInterface } = require('node:readline');
const { Etcd3, EtcdLockFailedError, NotCampaigningError, Range } = require('etcd3');

const PATIENCE = 30_000;
const endpoint = process.argv[2];
const connect = () => new Etcd3({ hosts: endpoint });
const say = line => process.stdout.write(line.replaceAll('\n', ' ') + '\n');
const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
const text = buffers => buffers.map(buffer => buffer.toString());

/** What has to come in time. */
function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} does not come in time`)), PATIENCE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Keeps what a watcher tells, from before it is connected; `take(n)` waits for so many. */
function events(builder) {
  const watcher = builder.watcher();
  const seen = [];
  let wake = () => {};
  const tell = event => (seen.push(event), wake());
  watcher.on('put', (kv, previous) => tell({ type: 'put', kv, previous }));
  watcher.on('delete', (kv, previous) => tell({ type: 'delete', kv, previous }));
  const take = async count => {
    while (seen.length < count) await soon(new Promise(resolve => (wake = resolve)), `event ${seen.length + 1}`);
    return seen.splice(0, count);
  };
  return { watcher, take, connected: soon(once(watcher, 'connected'), 'the watch') };
}

const names = found => found.map(({ type, kv }) => `${type} ${kv.key} ${kv.value}`);

const steps = {
  async 'kv: put, get, as text, number, JSON, bytes'(etcd) {
    assert.equal(await etcd.get('kv/none'), null);
    await etcd.put('kv/text').value('one');
    await etcd.put('kv/number').value(42);
    await etcd.put('kv/json').value(JSON.stringify({ a: [1] }));
    assert.equal(await etcd.get('kv/text'), 'one');
    assert.equal(await etcd.get('kv/text').string(), 'one');
    assert.equal(await etcd.get('kv/number').number(), 42);
    assert.deepEqual(await etcd.get('kv/json').json(), { a: [1] });
    assert.deepEqual(await etcd.get('kv/text').buffer(), Buffer.from('one'));
    assert.deepEqual([await etcd.get('kv/text').exists(), await etcd.get('kv/none').exists()], [true, false]);
    const { kvs, header } = await etcd.get('kv/text').exec();
    assert.equal(kvs[0].version, '1');
    assert.equal(kvs[0].create_revision, kvs[0].mod_revision);
    assert.equal((await etcd.put('kv/text').value('two').getPrevious()).value.toString(), 'one');
    assert.equal(await etcd.get('kv/text').revision(header.revision), 'one');
    assert.equal(await etcd.get('kv/text').serializable(true), 'two');
    await etcd.put('kv/text').touch();
    assert.equal((await etcd.get('kv/text').exec()).kvs[0].version, '3');
  },

  async 'kv: getAll with prefix, range, limit, order, keys, count'(etcd) {
    const revisions = [];
    for (const [key, value] of [['b', 3], ['d', 1], ['a', 4], ['c', 2], ['b', 0]]) {
      revisions.push((await etcd.put(`all/${key}`).value(value)).header.revision);
    }
    const all = () => etcd.getAll().prefix('all/');
    assert.deepEqual(await all(), { 'all/a': '4', 'all/b': '0', 'all/c': '2', 'all/d': '1' });
    assert.deepEqual(await all().numbers(), { 'all/a': 4, 'all/b': 0, 'all/c': 2, 'all/d': 1 });
    assert.deepEqual(await all().json(), { 'all/a': 4, 'all/b': 0, 'all/c': 2, 'all/d': 1 });
    assert.deepEqual((await all().buffers())['all/a'], Buffer.from('4'));
    assert.deepEqual(await all().keys(), ['all/a', 'all/b', 'all/c', 'all/d']);
    assert.deepEqual(text(await all().keyBuffers()), ['all/a', 'all/b', 'all/c', 'all/d']);
    assert.equal(await all().count(), 4);
    for (const [target, order] of [['Key', 'dcba'], ['Value', 'acdb'], ['Create', 'cadb'], ['Mod', 'bcad']]) {
      const sorted = async direction => (await all().sort(target, direction).keys()).map(key => key.at(-1)).join('');
      assert.equal(await sorted('Descend'), order, target);
      assert.equal(await sorted('Ascend'), [...order].reverse().join(''), target);
    }
    const limited = await all().limit(2).exec();
    assert.deepEqual([limited.kvs.length, limited.more, limited.count], [2, true, '4']);
    assert.deepEqual(await etcd.getAll().inRange(new Range('all/b', 'all/d')).keys(), ['all/b', 'all/c']);
    assert.deepEqual(await all().minModRevision(revisions[2]).maxModRevision(revisions[3]).keys(), ['all/a', 'all/c']);
    assert.deepEqual(await all().minCreateRevision(revisions[0]).maxCreateRevision(revisions[1]).keys(), ['all/b', 'all/d']);
    assert.equal((await etcd.getAll().all().keys()).includes('all/d'), true);
  },

  async 'kv: delete a key, a prefix, a range, with what was there'(etcd) {
    for (const key of ['a', 'b', 'c', 'd', 'e']) await etcd.put(`del/${key}`).value(key);
    assert.equal((await etcd.delete().key('del/a')).deleted, '1');
    assert.equal((await etcd.delete().key('del/a')).deleted, '0');
    assert.deepEqual(text((await etcd.delete().key('del/b').getPrevious()).map(kv => kv.value)), ['b']);
    assert.equal((await etcd.delete().range(new Range('del/c', 'del/e'))).deleted, '2');
    assert.equal((await etcd.delete().prefix('del/')).deleted, '1');
  },

  async 'txn: if, and, then, else; every column'(etcd) {
    const { header } = await etcd.put('txn/a').value('m');
    const done = await etcd
      .if('txn/a', 'Value', '==', 'm')
      .and('txn/a', 'Version', '==', 1)
      .and('txn/a', 'Create', '===', header.revision)
      .and('txn/a', 'Mod', '<', Number(header.revision) + 1)
      .and('txn/a', 'Value', '!==', 'n')
      .and('txn/a', 'Value', '>', 'l')
      .then(etcd.put('txn/b').value('1'), etcd.get('txn/a'), etcd.delete().key('txn/c'))
      .else(etcd.get('txn/none'))
      .commit();
    assert.equal(done.succeeded, true);
    assert.deepEqual(done.responses.map(answer => answer.response), ['response_put', 'response_range', 'response_delete_range']);
    assert.equal(done.responses[1].response_range.kvs[0].value.toString(), 'm');
    const not = await etcd.if('txn/a', 'Version', '>', 1).then(etcd.put('txn/a').value('x')).else(etcd.getAll().prefix('txn/')).commit();
    assert.equal(not.succeeded, false);
    assert.deepEqual(text(not.responses[0].response_range.kvs.map(kv => kv.key)), ['txn/a', 'txn/b']);
    const twice = etcd.if('txn/a', 'Version', '==', 1).then(etcd.put('txn/d').value('1'), etcd.put('txn/d').value('2')).commit();
    await assert.rejects(twice, /duplicate key given in txn request/);
  },

  async 'namespace: one in another'(etcd) {
    const space = etcd.namespace('space/').namespace('inner/');
    await space.put('a').value('1');
    assert.equal(await etcd.get('space/inner/a'), '1');
    assert.deepEqual(await space.getAll(), { a: '1' });
    const { take, watcher, connected } = events(space.watch().prefix(''));
    await connected;
    await space.delete().all();
    assert.deepEqual(names(await take(1)), ['delete a ']);
    await watcher.cancel();
  },

  async 'stm: concurrent transactions in every isolation'(etcd) {
    for (const [name, isolation] of [['snapshot', 0], ['serializable', 1], ['repeatable', 2], ['committed', 3]]) {
      const key = `stm/${name}`;
      await etcd.put(key).value(0);
      const add = () =>
        etcd.stm({ isolation, retries: 50, prefetch: isolation === 0 ? [key] : [] }).transact(async tx => {
          const value = await tx.get(key).number();
          await tx.put(key).value(value + 1);
        });
      await Promise.all(Array.from({ length: 4 }, add));
      const sum = await etcd.get(key).number();
      // Whoever reads committed does not check that it is still so.
      assert.ok(isolation === 3 ? sum >= 1 && sum <= 4 : sum === 4, `${name}: ${sum}`);
    }
    await etcd.stm().transact(tx => tx.delete().key('stm/snapshot'));
    assert.equal(await etcd.get('stm/snapshot'), null);
  },

  async 'lease: put under it, keep it alive, revoke'(etcd) {
    const lease = etcd.lease(60);
    const established = soon(once(lease, 'keepaliveSucceeded'), 'a keep-alive');
    const id = await lease.grant();
    await lease.put('lease/a').value('1');
    await etcd.put('lease/b').value('1').lease(id);
    assert.equal((await established)[0].TTL, '60');
    assert.equal((await lease.keepaliveOnce()).ID, id);
    await etcd.put('lease/b').value('2').ignoreLease();
    const live = await etcd.leaseClient.leaseTimeToLive({ ID: id, keys: true });
    assert.deepEqual([live.grantedTTL, text(live.keys).sort()], ['60', ['lease/a', 'lease/b']]);
    assert.ok((await etcd.leaseClient.leaseLeases()).leases.some(lease => lease.ID === id));
    await lease.revoke();
    assert.equal(await etcd.get('lease/a'), null);
    await assert.rejects(etcd.leaseClient.leaseRevoke({ ID: id }), /requested lease not found/);
  },

  async 'lease: kept alive beyond its time; lost when it was revoked'(etcd) {
    const lease = etcd.lease(2);
    await lease.put('kept/a').value('1');
    const forgotten = etcd.lease(1, { autoKeepAlive: false });
    const { take, connected } = events(etcd.watch().key('kept/b'));
    await connected;
    await forgotten.put('kept/b').value('1');
    assert.deepEqual(names(await take(2)), ['put kept/b 1', 'delete kept/b ']);
    assert.equal(await etcd.get('kept/a'), '1');
    const lost = soon(once(lease, 'lost'), 'the loss');
    await etcd.leaseClient.leaseRevoke({ ID: await lease.grant() });
    await lost;
    assert.equal(lease.revoked(), true);
  },

  async 'lock: one at a time'(etcd) {
    const held = etcd.lock('place');
    let inside = 0;
    const result = await held.ttl(20).do(async () => {
      inside += 1;
      assert.notEqual(await held.leaseId(), null);
      await assert.rejects(connect().lock('place').acquire(), EtcdLockFailedError);
      return 'done';
    });
    assert.deepEqual([result, inside], ['done', 1]);
    const next = await etcd.lock('place').acquire();
    await next.release();
    await assert.rejects(etcd.lock('place').do(() => { throw new Error('inside'); }), /inside/);
    assert.equal(await etcd.get('place'), null);
  },

  async 'election: campaign, observe, proclaim, resign'(etcd) {
    const election = etcd.election('office', 20);
    assert.equal(await election.leader(), undefined);
    const first = election.campaign('a');
    await soon(first.wait(), 'the first leader');
    assert.equal(await election.leader(), 'a');
    const observer = await soon(election.observe(), 'the observer');
    while (observer.leader() !== 'a') await soon(once(observer, 'change'), 'a');
    const change = value => soon(new Promise(resolve => observer.on('change', now => now === value && resolve())), value);
    const proclaimed = change('a2');
    await first.proclaim('a2');
    await proclaimed;
    const second = connect().election('office', 20).campaign('b');
    const elected = soon(second.wait(), 'the second leader');
    while ((await etcd.getAll().prefix('election/office/').count()) < 2) await pause(10);
    const followed = change('b');
    await first.resign();
    await elected;
    await followed;
    await assert.rejects(first.proclaim('late'), NotCampaigningError);
    await observer.cancel();
    await second.resign();
    assert.equal(await election.leader(), undefined);
  },

  async 'watch: key, prefix, range; put, delete, previous values'(etcd) {
    const key = events(etcd.watch().key('watch/a').withPreviousKV());
    const prefix = events(etcd.watch().prefix('watch/'));
    const range = events(etcd.watch().inRange(new Range('watch/b', 'watch/c')));
    const puts = events(etcd.watch().prefix('watch/').only('put'));
    const deletes = events(etcd.watch().prefix('watch/').only('delete'));
    await Promise.all([key, prefix, range, puts, deletes].map(({ connected }) => connected));
    await etcd.put('watch/a').value('1');
    await etcd.put('watch/a').value('2');
    await etcd.put('watch/b').value('3');
    await etcd.delete().key('watch/a');
    assert.deepEqual((await key.take(3)).map(({ previous }) => previous && String(previous.value)), [null, '1', '2']);
    assert.deepEqual(names(await prefix.take(4)), ['put watch/a 1', 'put watch/a 2', 'put watch/b 3', 'delete watch/a ']);
    assert.deepEqual(names(await range.take(1)), ['put watch/b 3']);
    assert.deepEqual(names(await puts.take(3)), ['put watch/a 1', 'put watch/a 2', 'put watch/b 3']);
    assert.deepEqual(names(await deletes.take(1)), ['delete watch/a ']);
    await prefix.watcher.cancel();
    await etcd.put('watch/b').value('4');
    assert.deepEqual(names(await range.take(1)), ['put watch/b 4']);
    for (const { watcher } of [key, range, puts, deletes]) await watcher.cancel();
  },

  async 'watch: from an old revision, from a compacted one'(etcd) {
    const { header: old } = await etcd.put('history/a').value('1');
    const { header } = await etcd.put('history/a').value('2');
    const { take, watcher } = events(etcd.watch().key('history/a').startRevision(old.revision));
    assert.deepEqual(names(await take(2)), ['put history/a 1', 'put history/a 2']);
    await watcher.cancel();
    await etcd.kv.compact({ revision: header.revision, physical: true });
    const behind = etcd.watch().key('history/a').startRevision(old.revision).watcher();
    const [error] = await soon(once(behind, 'error'), 'the refusal');
    assert.match(error.message, /Watcher canceled/);
    await assert.rejects(etcd.get('history/a').revision(old.revision).exec(), /required revision has been compacted/);
  },

  async 'maintenance: status, hash, defragment, members'(etcd) {
    const status = await etcd.maintenance.status();
    assert.match(status.version, /^3\./);
    assert.ok(Number(status.dbSize) > 0 && Number(status.raftIndex) > 0 && Number(status.raftTerm) > 0);
    const { members } = await etcd.cluster.memberList({});
    assert.deepEqual([members.length, members[0].ID], [1, status.leader]);
    const { hash } = await etcd.maintenance.hash();
    await etcd.put('hash/a').value('1');
    assert.notEqual((await etcd.maintenance.hash()).hash, hash);
    await etcd.maintenance.defragment();
    assert.equal(await etcd.get('hash/a'), '1');
  },

  async 'maintenance: alarm raised, listed, disarmed'(etcd) {
    const memberID = (await etcd.maintenance.status()).leader;
    const alarm = action => etcd.maintenance.alarm({ action, memberID, alarm: action === 'Get' ? 'None' : 'Nospace' });
    assert.deepEqual((await alarm('Get')).alarms, []);
    await alarm('Activate');
    // By a client of its own: one that is refused again and again stops asking.
    const refused = await connect().put('alarm/a').value('1').exec().catch(error => error);
    const raised = (await alarm('Get')).alarms;
    await alarm('Deactivate');
    assert.match(refused.message, /database space exceeded/);
    assert.deepEqual(raised.map(({ memberID, alarm }) => [memberID, alarm]), [[memberID, 'Nospace']]);
    await etcd.put('alarm/a').value('1');
  },

  async 'maintenance: snapshot'(etcd) {
    const stream = await etcd.maintenance.snapshot();
    const blobs = [];
    stream.on('data', ({ blob }) => blobs.push(blob));
    await soon(once(stream, 'end'), 'the end');
    const whole = Buffer.concat(blobs);
    const [image, digest] = [whole.subarray(0, -32), whole.subarray(-32)];
    assert.equal(image.length % 512, 0);
    assert.deepEqual(createHash('sha256').update(image).digest(), digest);
  },

  async 'restart: a watcher and a lease go on'(etcd) {
    const lease = etcd.lease(30);
    await lease.put('restart/leased').value('1');
    const { take, watcher, connected } = events(etcd.watch().prefix('restart/'));
    await connected;
    await etcd.put('restart/a').value('1');
    assert.deepEqual(names(await take(1)), ['put restart/a 1']);
    const disconnected = soon(once(watcher, 'disconnected'), 'the loss');
    const again = soon(once(watcher, 'connected'), 'the reconnection');
    say('restart');
    await once(createInterface({ input: process.stdin }), 'line');
    await disconnected;
    // Written while the watcher may not be back yet: it asks for what it missed.
    for (const deadline = Date.now() + PATIENCE; ; await pause(100)) {
      const refused = await connect().put('restart/a').value('2').exec().then(() => null, error => error);
      if (refused === null) break;
      assert.ok(Date.now() < deadline, refused.message);
    }
    await again;
    assert.deepEqual(names(await take(1)), ['put restart/a 2']);
    assert.equal((await lease.keepaliveOnce()).TTL, '30');
    assert.equal(await etcd.get('restart/leased'), '1');
    await lease.revoke();
    assert.deepEqual(names(await take(1)), ['delete restart/leased ']);
  },
};

async function main() {
  say(`version ${require('etcd3/package.json').version}`);
  for (const [name, step] of Object.entries(steps)) {
    say(`begin ${name}`);
    const etcd = connect();
    try {
      await step(etcd);
      say('pass');
    } catch (error) {
      const at = /steps\.js:(\d+)/.exec(error.stack);
      say(`fail line ${at ? at[1] : '?'}: ${error.message}`);
    }
    etcd.close();
  }
  process.exit(0);
}

main();
