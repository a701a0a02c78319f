//! A keyspace: one etcd logical store.

use crate::command::{self, Applied, Entry, TableEdit};
use crate::compaction::Compaction;
use crate::core::{Core, Current};
use crate::defragment;
use crate::error::{Error, Refusal, Result};
use crate::get;
use crate::hash;
use crate::lease::Renewal;
use crate::meta;
use crate::pace::CompactionPace;
use crate::pending::Pending;
use crate::read::{self, Pinned};
use crate::record::State;
use crate::request::{
    DeleteRequest, DeleteResponse, HashKv, KeyspaceStatus, LeaseGranted, LeaseStatus, PutRequest, PutResponse,
    RangeRequest, RangeResponse, ShardStatus, SpanEnd, TxnRequest, TxnResponse, WatchRequest,
};
use crate::routes::Routes;
use crate::snapshot::Snapshot;
use crate::stats::KeyspaceStats;
use crate::stream::RangeStream;
use crate::txn;
use crate::watcher::Watcher;
use crate::write::{Extra, NotNow};
use arc_swap::Guard;
use bytes::Bytes;
use polybolt_engine::Position;
use polybolt_engine::defect::{Defect, is_on};
use polybolt_engine::run::pause;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A handle to an open keyspace. Cloning gives another handle.
///
/// ```
/// use polybolt::{Engine, Options, PutRequest, RangeRequest, Routes, Span};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dir = tempfile::tempdir()?;
/// let engine = Engine::open(dir.path(), Options::default())?;
/// let keyspace = engine.create_keyspace("default", Routes::kubernetes())?;
/// let put = keyspace.put(PutRequest::new("/registry/pods/a", "nginx")).wait()?;
/// let pods = keyspace.range(&RangeRequest::new(Span::prefix("/registry/pods/")))?;
/// assert_eq!((pods.count, pods.kvs[0].mod_revision), (1, put.revision));
/// engine.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Keyspace {
    pub(crate) current: Arc<Current>,
    /// Keeps the engine's background jobs.
    pub(crate) engine: Arc<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shared = Arc::strong_count(&self.engine);
        f.debug_struct("Keyspace").field("name", &self.current.name).field("handles", &shared).finish()
    }
}

impl Keyspace {
    /// What it is now.
    pub(crate) fn core(&self) -> Guard<Arc<Core>> {
        self.current.core()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.current.name
    }

    /// How it is split.
    pub fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.core().routes)
    }

    /// Reads keys. Never waits for writers. Memory: the result.
    ///
    /// # Errors
    /// `EmptyKey`, `Compacted`, `FutureRevision`, or damage.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse> {
        read::check(request)?;
        let core = self.core();
        let early = is_on(Defect::ViewBeforeVisible).then(|| core.views());
        pause("read: begins");
        if get::suits(request) && early.is_none() {
            let begun = core.beside.samples().then(|| core.clock.monotonic());
            if let Some(response) = get::get(&core, request) {
                if let Some(begun) = begun {
                    core.beside.add_read(core.clock.monotonic().saturating_sub(begun));
                }
                return Ok(response);
            }
        }
        // What it is now: another may have taken its place.
        let core = self.core();
        let segments = core.routes.cut(&request.span);
        let point = core.read_point(&segments, request.revision)?;
        let source = Pinned { core: &core, segments, at: point.at };
        let response = match early {
            None => read::range(&source, request, point.visible),
            Some(views) => read::range(&read::Early { source, views }, request, point.visible),
        };
        // Also where it failed: a row may be gone since.
        if !point.pin.holds() {
            return Err(Refusal::Compacted { revision: core.publisher.compacted() }.into());
        }
        response
    }

    /// Reads keys in chunks of bounded memory, all at one revision; or shows them where they lie ([`RangeStream::lend`]).
    ///
    /// # Errors
    /// As `range`; `Unsupported` for orders but by key, and for revision filters.
    pub fn range_stream(&self, request: &RangeRequest) -> Result<RangeStream> {
        RangeStream::new(&self.core(), request)
    }

    /// Puts a key.
    ///
    /// # Errors
    /// `EmptyKey`, `ValueProvided`, `LeaseProvided`, `LeaseNotFound`, `KeyNotFound`, `TooLarge`, `NoSpace`.
    pub fn put(&self, request: PutRequest) -> Pending<PutResponse> {
        self.core().submit(request.key.len() + request.value.len(), move |core, writer| {
            txn::check_put(&request).map_err(Error::from)?;
            check_size(core, request.key.len() + request.value.len())?;
            core.evaluate(writer, Extra::default(), |evaluation| {
                evaluation.check_put(&request)?;
                evaluation.put(&request)
            })
        })
    }

    /// Deletes keys; all under one revision.
    ///
    /// # Errors
    /// `EmptyKey`.
    pub fn delete_range(&self, request: DeleteRequest) -> Pending<DeleteResponse> {
        self.core().submit(request.span.key.len(), move |core, writer| {
            if request.span.key.is_empty() {
                return Err(Error::from(Refusal::EmptyKey).into());
            }
            let extra = Extra { frees_space: true, ..Extra::default() };
            core.evaluate(writer, extra, |evaluation| evaluation.delete(&request))
        })
    }

    /// Runs a txn: all of it under one revision, or nothing. One that only reads does not wait for
    /// writers (TXN-18).
    ///
    /// # Errors
    /// As its operations, and `TooManyOps`, `DuplicateKey`.
    pub fn txn(&self, request: TxnRequest) -> Pending<TxnResponse> {
        if txn::is_read_only(&request) {
            let core = self.core();
            return Pending::answered(&core, read_txn(&core, &request), None);
        }
        self.core().submit(request.bytes(), move |core, writer| {
            txn::check_txn(&request, core.options.max_txn_ops).map_err(Error::from)?;
            check_size(core, request.written_bytes())?;
            core.evaluate(writer, Extra::default(), |evaluation| evaluation.txn(&request))
        })
    }

    /// What can be refused of a put without a look at the state: before it is proposed to a log, say.
    ///
    /// # Errors
    /// `EmptyKey`, `ValueProvided`, `LeaseProvided`.
    pub fn validate_put(&self, request: &PutRequest) -> Result<()> {
        Ok(txn::check_put(request)?)
    }

    /// The same of a delete.
    ///
    /// # Errors
    /// `EmptyKey`.
    pub fn validate_delete(&self, request: &DeleteRequest) -> Result<()> {
        if request.span.key.is_empty() { Err(Refusal::EmptyKey.into()) } else { Ok(()) }
    }

    /// The same of a txn.
    ///
    /// # Errors
    /// `TooManyOps`, `DuplicateKey`, and those of its operations, the first one in order (TXN-2).
    pub fn validate_txn(&self, request: &TxnRequest) -> Result<()> {
        Ok(txn::check_txn(request, self.core().options.max_txn_ops)?)
    }

    /// Forgets history below `revision`; answers with the current revision once that is durable (CMP-7),
    /// under `Batch` too. Reads below are refused at once; rows go step by step. `physical` waits for that,
    /// and for a checkpoint; what a running read still pins goes later. The handle tells how far it is. A newer one
    /// overtakes it: what its round has not come to yet goes up to the newer revision at once.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`.
    pub fn compact(&self, revision: i64, physical: bool) -> Compaction {
        Compaction::new(&self.current, None, revision, self.compacted(revision, physical))
    }

    fn compacted(&self, revision: i64, physical: bool) -> Pending<i64> {
        let pending = self.core().submit(0, move |core, writer| {
            command::compact(core, writer, revision, None)?;
            Ok(writer.state.main.cast_signed())
        });
        let core = Arc::clone(&self.core());
        let flushed = Arc::clone(&core.store);
        if !physical {
            return if core.is_batch() { pending.then(move || flushed.flush()) } else { pending };
        }
        let swept = move |core: &Arc<Core>| {
            core.with_writer(|core, writer| {
                core.work.raise();
                // A snapshot that was installed since may have nothing to sweep.
                let swept = if writer.state.compacted >= revision { revision.max(0) } else { 0 };
                core.swept.ticket(Position(swept.cast_unsigned()))
            })
        };
        let again = Arc::clone(&core);
        // Once more of what has taken its place, if anything has.
        pending.then(move || swept(&core)).then(move || swept(&again)).then(move || flushed.flush())
    }

    /// Forgets the history of one shard below `revision`, and answers as [`compact`](Self::compact) does. Reads and
    /// watches of its keys below that are refused like compacted ones, whatever else they touch; all others go on as
    /// before. For prefixes of which less history is worth keeping than of the rest.
    ///
    /// # Errors
    /// `Compacted` at or below what the shard answers already, `FutureRevision`; `Invalid` if there is no such shard.
    pub fn compact_shard(&self, shard: &str, revision: i64) -> Compaction {
        let name = shard.to_owned();
        let pending = self.core().submit(0, move |core, writer| {
            command::compact_shard(core, writer, &name, revision, None)?;
            Ok(writer.state.main.cast_signed())
        });
        let core = Arc::clone(&self.core());
        let pending = if core.is_batch() { pending.then(move || core.store.flush()) } else { pending };
        Compaction::new(&self.current, Some(shard), revision, pending)
    }

    /// Sets how fast what compactions leave behind is taken out of a shard, or of all of them, also of one that is
    /// being done. Until the keyspace is opened again: then it is as in [`Options`](crate::Options).
    ///
    /// # Errors
    /// If no shard has that name.
    pub fn set_compaction_pace(&self, shard: Option<&str>, pace: CompactionPace) -> Result<()> {
        self.with_pace(shard, |core, which| core.paces.set(which, pace))
    }

    /// Changes how fast it is taken out of a shard, or of all of them, each from what it was.
    ///
    /// # Errors
    /// If no shard has that name.
    pub fn change_compaction_pace(&self, shard: Option<&str>, change: impl FnMut(&mut CompactionPace)) -> Result<()> {
        self.with_pace(shard, |core, which| core.paces.change(which, change))
    }

    /// With the writer: nothing else takes over meanwhile what it was.
    fn with_pace(&self, shard: Option<&str>, set: impl FnOnce(&Core, Option<usize>)) -> Result<()> {
        self.core().with_writer(|core, _| {
            let which = shard.map(|name| shard_named(core, name)).transpose()?;
            set(core, which);
            core.work.raise();
            Ok(())
        })
    }

    /// How fast it is taken out of a shard.
    ///
    /// # Errors
    /// If no shard has that name.
    pub fn compaction_pace(&self, shard: &str) -> Result<CompactionPace> {
        let core = self.core();
        Ok(core.paces.of(shard_named(&core, shard)?))
    }

    /// Applies entries of a replicated log in order. Entries at or below the applied index have no
    /// effect and answer `AlreadyApplied` (BKE-7); a refused entry moves the index too. The answer
    /// comes once all of it is durable.
    ///
    /// # Errors
    /// What says nothing of an entry but of this replica, as `NoSpace`: entries before it are applied, and
    /// the rest is not. Apply again from the applied index on.
    pub fn apply(&self, entries: Vec<Entry>) -> Pending<Vec<Result<Applied>>> {
        let mut done: Vec<Result<Applied>> = Vec::with_capacity(entries.len());
        let bytes = entries.iter().map(|entry| entry.command.bytes()).sum();
        self.core().submit(bytes, move |core, writer| {
            while let Some(entry) = entries.get(done.len()) {
                match command::apply_entry(core, writer, entry) {
                    Ok(applied) => done.push(Ok(applied)),
                    Err(NotNow::Short(ticket)) => return Err(NotNow::Short(ticket)),
                    // Another replica may have room.
                    Err(NotNow::Refused(
                        error @ Error::Refused(Refusal::NoSpace | Refusal::DiskFull | Refusal::Closed),
                    )) => {
                        return Err(error.into());
                    }
                    Err(NotNow::Refused(error @ Error::Refused(_))) => {
                        if !matches!(error, Error::Refused(Refusal::AlreadyApplied { .. })) {
                            let extra = Extra { applied_index: Some(entry.index), ..Extra::default() };
                            core.commit(writer, &[], extra)?;
                        }
                        done.push(Err(error));
                    }
                    Err(refused) => return Err(refused),
                }
            }
            Ok(std::mem::take(&mut done))
        })
    }

    /// The newest applied index.
    pub fn applied_index(&self) -> u64 {
        self.core().with_writer(|_, writer| writer.state.applied_index)
    }

    /// 128 bits over the whole history, without Volatile shards: equal on equal replicas.
    pub fn history_hash(&self) -> u128 {
        self.core().with_writer(|_, writer| writer.state.history)
    }

    /// Watches keys.
    ///
    /// # Errors
    /// `EmptyWatchRange`; `Compacted` for a negative start. A start below the compacted revision
    /// yields one `Compacted` item instead (WCH-7).
    pub fn watch(&self, mut request: WatchRequest) -> Result<Watcher> {
        if request.span.key.is_empty() {
            request.span.key = Bytes::from_static(b"\0");
        }
        if request.start_revision < 0 {
            return Err(Refusal::Compacted { revision: 0 }.into());
        }
        if let SpanEnd::Before(end) = &request.span.end
            && *end <= request.span.key
        {
            return Err(Refusal::EmptyWatchRange.into());
        }
        // Behind whatever replaced it: that has reset the hub before, and knows no newcomer.
        self.core().with_writer(|core, writer| {
            core.check_open()?;
            let visible = core.publisher.visible();
            let applied = writer.state.main;
            let next = if request.start_revision == 0 { visible + 1 } else { request.start_revision.cast_unsigned() };
            let (id, feed) = core.hub.register(request, next, applied, core.options.watch_buffer_bytes);
            // Not looked at again: one that came meanwhile is delivered, not told of as the past (WCH-8).
            Ok(Watcher::new(Arc::clone(&self.current), id, feed, visible.cast_signed()))
        })
    }

    /// Grants a lease; id 0 picks one.
    ///
    /// # Errors
    /// `LeaseTtlTooLarge`, `LeaseExists`.
    pub fn lease_grant(&self, id: i64, ttl: i64) -> Pending<LeaseGranted> {
        let entropy = self.core().store.entropy();
        self.core().submit(0, move |core, writer| command::grant(core, writer, id, ttl, entropy, None))
    }

    /// Ends a lease: its keys are deleted under one revision. Answers with the revision after it.
    ///
    /// # Errors
    /// `LeaseNotFound`.
    pub fn lease_revoke(&self, id: i64) -> Pending<i64> {
        self.core().submit(0, move |core, writer| command::revoke(core, writer, id, None))
    }

    /// Starts a lease's time to live anew and answers with it; 0 if there is no such lease. One past
    /// its deadline is not renewed: the answer is 0. Writes only if the lease was checkpointed since its
    /// last renewal: that is taken back first.
    ///
    /// # Errors
    /// `LeaseCheckpointed` in a replayed engine, where that has to be proposed.
    pub fn lease_keep_alive(&self, id: i64) -> Pending<i64> {
        let core = self.core();
        let now = core.clock.monotonic();
        let renewal = core.lessor.lock().keep_alive(id, now);
        match renewal {
            Renewal::Renewed(ttl) => Pending::answered(&core, Ok(ttl), None),
            Renewal::Gone => Pending::answered(&core, Ok(0), None),
            Renewal::Checkpointed => core.submit(0, move |core, writer| command::renew(core, writer, id)),
        }
    }

    /// A lease's time to live, and its keys if asked for.
    pub fn lease_time_to_live(&self, id: i64, keys: bool) -> Option<LeaseStatus> {
        let core = self.core();
        let now = core.clock.monotonic();
        let lessor = core.lessor.lock();
        let (granted_ttl, remaining_ttl) = lessor.time_to_live(id, now)?;
        let mut keys = if keys { lessor.keys(id) } else { Vec::new() };
        // Puts need it.
        drop(lessor);
        keys.sort_unstable();
        Some(LeaseStatus { id, granted_ttl, remaining_ttl, keys })
    }

    /// All leases, by remaining time.
    pub fn leases(&self) -> Vec<i64> {
        self.core().lessor.lock().list()
    }

    /// Leases past their deadline. In a replayed engine the frontend proposes their revokes (S4).
    pub fn due_leases(&self, max: usize) -> Vec<i64> {
        let core = self.core();
        let now = core.clock.monotonic();
        core.lessor.lock().due(now, max)
    }

    /// Leases whose remaining seconds are due to be recorded, and these: of at most
    /// [`LEASES_PER_CHECKPOINT`](command::LEASES_PER_CHECKPOINT) leases, as one entry takes them. None
    /// unless `lease_checkpoint_interval` is set. In a replayed engine the frontend proposes them (S4); until
    /// that is applied they are not renewed.
    pub fn due_lease_checkpoints(&self) -> Vec<(i64, i64)> {
        let core = self.core();
        let now = core.clock.monotonic();
        core.lessor.lock().due_checkpoints(now, command::LEASES_PER_CHECKPOINT)
    }

    /// Becomes the one whose clock expires leases; each gets `extend` and its whole time to live, or what
    /// its last checkpoint has left it. Where they are 1000 or more at most 750 end in a second.
    pub fn promote(&self, extend: Duration) {
        let core = self.core();
        let now = core.clock.monotonic();
        core.lessor.lock().promote(now, extend);
        core.work.raise();
    }

    /// Stops being that: no lease expires.
    pub fn demote(&self) {
        self.core().lessor.lock().demote();
    }

    /// Hashes all keys at a revision as etcd does; 0 is the current one.
    ///
    /// # Errors
    /// `Compacted`, `FutureRevision`.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv> {
        hash::hash_kv(&self.core(), revision)
    }

    /// CRC-32C over everything stored, as of now: rows that compaction has yet to remove too, so it is
    /// equal on equal files only.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn hash(&self) -> Result<u32> {
        let core = self.core();
        core.check_open()?;
        let mut crc = 0;
        let durable = core.shards.iter().filter(|shard| !shard.volatile).map(|shard| shard.tree);
        for tree in durable.chain([core.meta]) {
            let view = core.store.view(tree)?;
            view.ascend(Bound::Unbounded, &mut |key, head, body| {
                crc = crc32c::crc32c_append(crc, key);
                crc = crc32c::crc32c_append(crc, head);
                crc = crc32c::crc32c_append(crc, &body.load()?);
                Ok(true)
            })?;
        }
        Ok(crc)
    }

    /// The applied index that a restart may fall back to: a log above may forget nothing newer (R3).
    pub fn log_floor(&self) -> u64 {
        let core = self.core();
        let older = core.store.older_state(core.id);
        older.and_then(|state| State::decode(&state).ok()).map_or(0, |state| state.applied_index)
    }

    /// A consistent stream of everything at the current revision, taken while writes go on. Waits until
    /// that revision is durable.
    ///
    /// # Errors
    /// If the keyspace was dropped.
    pub fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::new(&self.core())
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.core().publisher.visible().cast_signed()
    }

    /// The compacted revision, -1 if never.
    pub fn compact_revision(&self) -> i64 {
        self.core().publisher.compacted()
    }

    /// The lowest revision that each shard answers, in the order of the routes: the compacted one or its own.
    pub fn floors(&self) -> Vec<i64> {
        let core = self.core();
        (0..core.shards.len()).map(|shard| core.floor_of(shard)).collect()
    }

    /// True if the quota leaves room for a write of `cost` bytes. A replayed engine applies what it is given:
    /// its frontend asks before it proposes. A put costs 256 bytes besides key and value, a grant 64 (QTA-2).
    pub fn has_room(&self, cost: u64) -> bool {
        self.core().has_room(cost)
    }

    /// Sizes and counts.
    pub fn status(&self) -> KeyspaceStatus {
        let core = self.core();
        let mut status = KeyspaceStatus {
            revision: core.publisher.visible().cast_signed(),
            compact_revision: core.publisher.compacted(),
            applied_index: core.writer.lock().state.applied_index,
            leases: core.lessor.lock().len() as u64,
            watchers: core.hub.len() as u64,
            ..KeyspaceStatus::default()
        };
        let mut damage = core.store.scrubbed().damage;
        let trees = core.shards.iter().map(|shard| shard.tree).chain([core.meta]);
        let files: Vec<_> = trees.filter_map(|tree| core.store.tree_stats(tree).ok()).map(|tree| tree.path).collect();
        damage.retain(|finding| files.contains(&finding.file));
        status.damage = damage;
        if let Ok(meta) = core.store.tree_stats(core.meta) {
            status.size += meta.size;
            status.size_in_use += meta.in_use;
        }
        for (at, (shard, options)) in core.shards.iter().zip(core.routes.shards()).enumerate() {
            let Ok(tree) = core.store.tree_stats(shard.tree) else {
                continue;
            };
            let index = shard.keys.read().stats();
            status.size += tree.size;
            status.size_in_use += tree.in_use;
            let durability = if shard.volatile {
                "volatile"
            } else if core.is_batch() {
                "batch"
            } else {
                "sync"
            };
            status.shards.push(ShardStatus {
                name: shard.name.clone(),
                prefixes: options.prefixes.clone(),
                file: tree.path,
                durability,
                size: tree.size,
                size_in_use: tree.in_use,
                keys: index.live,
                revisions: index.revisions,
                floor: core.floor_of(at),
                depth: tree.depth,
                index_bytes: shard.keys.bytes() + shard.reader.glance().leaves_bytes() as u64 + shard.lingering_bytes(),
            });
        }
        status
    }

    /// What it did since it was opened or installed, and what waits. Cheap.
    pub fn stats(&self) -> KeyspaceStats {
        let core = self.core();
        let (lagging_watchers, pending_events, events) = core.hub.counts();
        let (open_reads, oldest, since) = core.pins.state();
        let highest = core.highest_floor().max(0).cast_unsigned();
        let sweep_left = core.garbage();
        KeyspaceStats {
            waiting: core.in_line.load(Ordering::Acquire) as u64,
            open_reads: open_reads as u64,
            oldest_read: since.map_or(Duration::ZERO, |since| core.clock.monotonic().saturating_sub(since)),
            held_revisions: oldest.map_or(0, |oldest| highest.saturating_sub(oldest)),
            reads_let_go: core.pins.let_go(),
            lagging_watchers,
            pending_events,
            events,
            lingering: core.lingering() as u64,
            sweep_left,
            sweep_time_left: core.time_for(sweep_left),
            ..core.counters.stats()
        }
    }

    /// An entry of a metadata table. Waits until what it read is durable.
    ///
    /// # Errors
    /// If it cannot be read, or the store failed.
    pub fn table_get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>> {
        let (view, ticket) = self.table_view()?;
        let found = view.get(&meta::table_key(table, key))?.map(|stored| stored.body);
        ticket.wait()?;
        Ok(found)
    }

    /// All entries of a metadata table, by key. Waits until what it read is durable.
    ///
    /// # Errors
    /// If it cannot be read, or the store failed.
    pub fn table_list(&self, table: &str) -> Result<Vec<(Bytes, Bytes)>> {
        let (view, ticket) = self.table_view()?;
        let prefix = meta::table_prefix(table);
        let mut found = Vec::new();
        view.ascend(Bound::Included(&prefix), &mut |key, _, body| {
            let Some(key) = key.strip_prefix(&prefix[..]) else {
                return Ok(false);
            };
            found.push((Bytes::copy_from_slice(key), body.load()?));
            Ok(true)
        })?;
        ticket.wait()?;
        Ok(found)
    }

    /// Changes metadata tables, all at once.
    ///
    /// # Errors
    /// `Invalid`, if a key is longer than the tree can hold: with the table's name 510 bytes.
    pub fn table_write(&self, edits: Vec<TableEdit>) -> Pending<()> {
        let bytes = edits.iter().map(TableEdit::bytes).sum();
        self.core().submit(bytes, move |core, writer| {
            command::check_table(&edits).map_err(Error::from)?;
            let extra = Extra { meta: command::table_edits(&edits), frees_space: true, ..Extra::default() };
            core.commit(writer, &[], extra)
        })
    }

    /// Takes out what lingers, packs leaves that hold little, moves rows out of the ends of the files, and gives that space
    /// back to the disk, a bounded round at a time and `defragment_bytes_per_second`; reads and writes go on meanwhile.
    /// Each byte that stays may be written once or twice. One at a time.
    ///
    /// # Errors
    /// `Invalid` while it is being defragmented already; or if the disk fails.
    pub fn defragment(&self) -> Result<()> {
        defragment::defragment(&self.core())
    }

    fn table_view(&self) -> Result<(polybolt_engine::view::View, polybolt_engine::Ticket)> {
        self.core().with_writer(|core, writer| {
            core.check_open()?;
            let ticket = core.answer_at(writer.last);
            Ok((core.store.view(core.meta)?, ticket))
        })
    }
}

fn shard_named(core: &Core, name: &str) -> Result<usize> {
    let place = core.routes.shards().iter().position(|shard| shard.name == name);
    Ok(place.ok_or_else(|| Refusal::Invalid { why: format!("no shard is named {name:?}") })?)
}

fn read_txn(core: &Core, request: &TxnRequest) -> Result<TxnResponse> {
    txn::check_txn(request, core.options.max_txn_ops)?;
    // It may read whatever there is: no shard may have forgotten what was before now.
    let point = core.read_point_above(|| core.highest_floor(), 0)?;
    // Pinned first, compared with the compacted revision after (S3).
    // What is compacted already is refused without it.
    let compacted = core.publisher.compacted().max(0).cast_unsigned();
    let lowest = core.pin(txn::lowest_revision(request).map_or(point.at, |lowest| lowest.max(compacted)));
    let response = txn::Evaluation::reading(core, point.at).txn(request)?;
    if !point.pin.holds() || !lowest.holds() {
        return Err(Refusal::Compacted { revision: core.publisher.compacted() }.into());
    }
    Ok(response)
}

fn check_size(core: &Core, bytes: usize) -> Result<()> {
    let (size, max) = (bytes as u64, core.options.max_request_bytes);
    if size > max { Err(Refusal::TooLarge { size, max }.into()) } else { Ok(()) }
}
