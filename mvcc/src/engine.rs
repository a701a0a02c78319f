//! An engine: one data directory with many keyspaces.

use crate::check::{self, Life};
use crate::core::{Core, Current, Gate};
use crate::error::{Error, Refusal, Result};
use crate::fill::Filling;
use crate::house::{Housekeeper, Table};
use crate::install::{self, Install, Older};
use crate::keyspace::Keyspace;
use crate::options::{CompactionPace, Durability, Options};
use crate::pending::block_on;
use crate::record::State;
use crate::reopen::{self, Replayer, Retired, Rows, Shared};
use crate::reshard::{self, Reshard, ReshardProgress};
use crate::routes::Routes;
use crate::row;
use crate::snapshot::SnapshotReader;
use bytes::Bytes;
use polybolt_engine::disk::Disk;
use polybolt_engine::disk::os::OsDisk;
use polybolt_engine::file::ReadMode;
use polybolt_engine::finding::Scrubbed;
use polybolt_engine::recover::OpenReport;
use polybolt_engine::run::threads::Worker;
use polybolt_engine::run::{Clock, Job, SystemClock};
use polybolt_engine::store::{Store, StoreOptions, StoreStats, VacuumOptions};
use polybolt_engine::sync::Mutex;
use polybolt_engine::sync::atomic::{AtomicBool, Ordering};
use polybolt_engine::verify::VerifyReport;
use polybolt_engine::{Damage, Error as EngineError, Place, SpaceInfo, SpaceSpec, TreeEdit, TreeId, limits};
use std::collections::HashMap;
use std::io::Read;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

/// One data directory, open. Cloning gives another handle; the directory stays locked until
/// [`Engine::close`], or until the last handle and the last [`Keyspace`] are gone.
///
/// ```
/// use polybolt::{Engine, Options, PutRequest, RangeRequest, Routes, Span};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dir = tempfile::tempdir()?;
/// let engine = Engine::open(dir.path(), Options::default())?;
/// let tenant = engine.create_keyspace("tenant-1", Routes::kubernetes())?;
/// // The answer comes once the write is durable: `.wait()` in a thread, `.await` in a task.
/// tenant.put(PutRequest::new("/registry/pods/default/web", "spec")).wait()?;
/// engine.close()?;
///
/// let engine = Engine::open(dir.path(), Options::default())?;
/// let tenant = engine.keyspace("tenant-1")?;
/// assert_eq!(tenant.range(&RangeRequest::new(Span::prefix("/registry/")))?.count, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    // Dropped first: the job ends before the store does.
    worker: Mutex<Option<Worker>>,
    jobs: Mutex<Vec<Box<dyn Job>>>,
    keyspaces: Arc<Table>,
    shared: Shared,
    /// Held while keyspaces are created or dropped.
    changing: Mutex<()>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("keyspaces", &self.keyspaces()).finish_non_exhaustive()
    }
}

/// What an engine runs on: the machine, or a simulated one.
#[derive(Debug)]
pub struct Runtime {
    /// Where files are.
    pub disk: Arc<dyn Disk>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// True to run background jobs on threads; false to hand them out with [`Engine::take_jobs`].
    pub threads: bool,
}

impl Engine {
    /// Opens or creates an engine in a directory.
    ///
    /// # Errors
    /// If the directory is locked, holds something else, is damaged, or the disk fails. Nothing is
    /// reset or thrown away.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Engine> {
        let runtime =
            Runtime { disk: Arc::new(OsDisk::default()), clock: Arc::new(SystemClock::default()), threads: true };
        Engine::open_with(path, options, runtime)
    }

    /// Opens an engine on a disk and a clock of the caller's.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with(path: impl AsRef<Path>, options: Options, runtime: Runtime) -> Result<Engine> {
        let Runtime { disk, clock, threads } = runtime;
        let (size, max) = (options.max_request_bytes, limits::BODY_BYTES_MAX as u64);
        if size > max {
            return Err(EngineError::TooLarge { what: "max_request_bytes", size, max }.into());
        }
        // On a simulated disk the order of reads is part of the run.
        let scanners = match std::thread::available_parallelism() {
            Ok(count) if !disk.is_simulated() => count.get(),
            _ => 1,
        };
        let run = if threads {
            polybolt_engine::Runtime::Threads(Arc::clone(&clock))
        } else {
            polybolt_engine::Runtime::Manual
        };
        let mut replayer = Replayer::new(&options);
        let store = Store::open(disk, store_options(path.as_ref(), &options), run, &mut replayer)?;
        let shared = Shared {
            store: Arc::new(store),
            pace: Arc::new(Mutex::new(options.compaction_pace)),
            options: Arc::new(options),
            clock,
            work: Default::default(),
            closed: Arc::new(AtomicBool::new(false)),
            threads,
            retired: Arc::default(),
        };
        let (spaces, left_over) = reopen::current_spaces(shared.store.spaces());
        if !shared.options.read_only {
            for space in left_over {
                shared.store.drop_space(space.id)?;
            }
        }
        let cores = reopen::open_keyspaces(&shared, &spaces, Rows::Ours, scanners, None)?;
        let keyspaces = cores.into_iter().map(|core| (core.name.clone(), Current::new(core)));
        let keyspaces = Arc::new(Table::new(keyspaces.collect()));
        let mut jobs = shared.store.take_jobs();
        let mut worker = None;
        if !shared.options.read_only {
            let job = Housekeeper::new(Arc::clone(&keyspaces), shared.clone());
            if threads {
                let store = Arc::downgrade(&shared.store);
                let on_panic = move |text: &str| {
                    if let Some(store) = store.upgrade() {
                        store.fail(&EngineError::Poisoned { cause: text.into() });
                    }
                };
                worker = Some(Worker::spawn(Box::new(job), Arc::clone(&shared.clock), Box::new(on_panic)));
            } else {
                jobs.push(Box::new(job));
            }
        }
        let inner =
            Inner { worker: Mutex::new(worker), jobs: Mutex::new(jobs), keyspaces, shared, changing: Mutex::new(()) };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// The background jobs of an engine that was opened without threads, for a scheduler of the
    /// caller's.
    pub fn take_jobs(&self) -> Vec<Box<dyn Job>> {
        std::mem::take(&mut self.inner.jobs.lock())
    }

    /// What opening found and did.
    pub fn report(&self) -> &OpenReport {
        self.inner.shared.store.report()
    }

    /// How it was opened.
    pub fn options(&self) -> &Options {
        &self.inner.shared.options
    }

    /// Counters of its store.
    pub fn stats(&self) -> StoreStats {
        self.inner.shared.store.stats()
    }

    /// What the scrub has read since it was opened, and what of it is damaged.
    pub fn scrubbed(&self) -> Scrubbed {
        self.inner.shared.store.scrubbed()
    }

    /// Why it takes no more writes, if it does not.
    pub fn failure(&self) -> Option<EngineError> {
        self.inner.shared.store.failure()
    }

    /// True while its disk is full: only what frees space is taken, until there is room again. Cheap.
    pub fn is_disk_full(&self) -> bool {
        self.inner.shared.store.is_disk_full()
    }

    /// Creates a keyspace; it is durable when this returns.
    ///
    /// # Errors
    /// `KeyspaceExists`, `Invalid` names or routes, or if the disk fails.
    pub fn create_keyspace(&self, name: &str, routes: Routes) -> Result<Keyspace> {
        let _changing = self.inner.changing.lock();
        let state = State::new(routes.shards().len());
        let info = self.create_space(name, &routes, state)?;
        self.adopt(&info)
    }

    pub(crate) fn create_space(&self, name: &str, routes: &Routes, mut state: State) -> Result<SpaceInfo> {
        let Inner { shared, keyspaces, .. } = &*self.inner;
        if shared.closed.load(Ordering::Acquire) {
            return Err(Refusal::Closed.into());
        }
        if name.contains('+') || name.len() > NAME_BYTES_MAX {
            let why = format!("a keyspace cannot be named {name:?}: at most {NAME_BYTES_MAX} bytes, without '+'");
            return Err(Refusal::Invalid { why }.into());
        }
        if keyspaces.read().contains_key(name) {
            return Err(Refusal::KeyspaceExists { name: name.to_owned() }.into());
        }
        reopen::check_routes(&shared.options, routes)?;
        state.reserve = reopen::first_reserve(&shared.options, routes.any_volatile(), state.main);
        let spec =
            SpaceSpec { name: name.to_owned(), config: routes.encode(), state: state.encode(), trees: routes.trees() };
        Ok(shared.store.create_space(spec)?)
    }

    fn adopt(&self, info: &SpaceInfo) -> Result<Keyspace> {
        let opened = reopen::open_keyspaces(&self.inner.shared, std::slice::from_ref(info), Rows::Foreign, 1, None);
        let mut cores = opened.inspect_err(|_| {
            // Whoever was told that it failed may try again under this name.
            drop(self.inner.shared.store.drop_space(info.id));
        })?;
        let core = cores.pop().ok_or_else(|| Refusal::KeyspaceNotFound { name: info.name.clone() })?;
        let current = Current::new(core);
        let mut keyspaces = self.inner.keyspaces.write();
        // It may have been changed since.
        current.core().paces.set(None, *self.inner.shared.pace.lock());
        keyspaces.insert(info.name.clone(), Arc::clone(&current));
        drop(keyspaces);
        self.inner.shared.work.raise();
        Ok(self.handle(current))
    }

    /// A handle keeps the engine's jobs going.
    fn handle(&self, current: Arc<Current>) -> Keyspace {
        Keyspace { current, engine: Arc::<Inner>::clone(&self.inner) }
    }

    /// A keyspace by name.
    ///
    /// # Errors
    /// `KeyspaceNotFound`.
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        let found = self.inner.keyspaces.read().get(name).cloned();
        let current = found.ok_or_else(|| Refusal::KeyspaceNotFound { name: name.to_owned() })?;
        Ok(self.handle(current))
    }

    /// The names of all keyspaces.
    pub fn keyspaces(&self) -> Vec<String> {
        self.inner.keyspaces.read().keys().cloned().collect()
    }

    /// Drops a keyspace and its files. Its watchers end; calls on handles to it are refused.
    ///
    /// # Errors
    /// `KeyspaceNotFound`, `Invalid` while the last step of an install is under way, or if the disk fails.
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        let _changing = self.inner.changing.lock();
        let core = self.keyspace(name)?.core().with_writer(|core, writer| {
            if let Gate::Frozen(_) = writer.gate {
                let why = format!("{name:?} is being replaced by a snapshot or split otherwise: try again");
                return Err(Error::from(Refusal::Invalid { why }));
            }
            // No writer is under way while this is held.
            core.dropped.store(true, Ordering::Release);
            Ok(Arc::clone(core))
        })?;
        core.hub.close();
        core.swept.fail(EngineError::Closed);
        // Nor a sweep.
        drop(core.sweep.lock());
        self.inner.keyspaces.write().remove(name);
        // What it replaced goes first: alone it would be the keyspace at the next open.
        let shared = &self.inner.shared;
        let replaced: Vec<Retired> = shared.retired.lock().extract_if(.., |old| old.core.name == name).collect();
        for old in replaced {
            shared.store.drop_space(old.core.id)?;
        }
        Ok(shared.store.drop_space(core.id)?)
    }

    /// Checks every page of every file, and every row of every keyspace: its checksum, its place, and
    /// that the index knows it. `progress` is told what is about to be read.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(&self, progress: &mut dyn FnMut(&str)) -> Result<VerifyReport> {
        let store = &self.inner.shared.store;
        let report = store.verify(&mut |space, tree| progress(&format!("{space}.{}: pages", tree.spec.name)))?;
        for name in self.keyspaces() {
            let Ok(keyspace) = self.keyspace(&name) else { continue };
            let core = keyspace.core();
            for shard in 0..core.shards.len() {
                progress(&format!("{name}.{}: rows", core.shards[shard].name));
                verify_rows(&core, shard)?;
            }
        }
        Ok(report)
    }

    /// Checkpoints everything and leaves a clean mark; the next open is quick, and Volatile shards
    /// keep their contents. Handles that are left are refused from now on.
    ///
    /// # Errors
    /// If the disk fails; what was durable stays so.
    pub fn close(self) -> Result<()> {
        self.inner.worker.lock().take();
        self.inner.jobs.lock().clear();
        self.inner.shared.closed.store(true, Ordering::Release);
        for current in self.inner.keyspaces.read().values() {
            current.core().with_writer(|core, _| {
                core.hub.close();
                core.swept.fail(EngineError::Closed);
            });
        }
        Ok(self.inner.shared.store.close()?)
    }

    /// Restores a snapshot as a new keyspace. Without `routes` it is split as it was. Returns once it
    /// is durable; a stream that was cut or changed leaves nothing. `progress` is told how many rows
    /// are in.
    ///
    /// # Errors
    /// `KeyspaceExists`, damage of the stream, or if the disk fails.
    pub fn restore(
        &self,
        name: &str,
        routes: Option<Routes>,
        stream: impl Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Keyspace> {
        let _changing = self.inner.changing.lock();
        let (reader, head) = SnapshotReader::new(stream)?;
        let routes = routes.unwrap_or_else(|| head.routes.clone());
        let mut state = State { floors: head.floors_for(&routes), unfinished: true, ..head.state };
        let info = self.create_space(name, &routes, state.clone())?;
        let shared = &self.inner.shared;
        let filling = Filling::new(shared, &info, &routes);
        let filled = block_on(async {
            filling.fill(&state, reader, progress).await?;
            state.unfinished = false;
            state.reserve = reopen::first_reserve(&shared.options, routes.any_volatile(), state.main);
            filling.finish(&state).await
        });
        if let Err(error) = filled {
            // What stays is dropped at the next open.
            drop(shared.store.drop_space(info.id));
            return Err(error);
        }
        self.adopt(&SpaceInfo { state: state.encode(), ..info })
    }

    /// Replaces what a live keyspace holds by a snapshot of another replica, all of it: keys and their
    /// history, leases, tables, applied index, history hash. It keeps its name and its routes, and handles
    /// to it their use. A crash leaves the old or the new one. Requests meanwhile are answered out of one
    /// of the two; writes wait for the moment of the swap. Watchers go on from the next revision that each
    /// needs, or end with the compacted revision if that is gone (WCH-31).
    ///
    /// Memory: the new index beside the old one, and a bounded piece of the stream.
    ///
    /// # Errors
    /// `KeyspaceNotFound`. When the [`Install`] is waited for: `OlderSnapshot`, `Invalid` while another is under way or
    /// the keyspace is split otherwise, damage of the stream, or if the disk fails.
    pub fn install<'a>(&self, name: &str, stream: impl Read + Send + 'a, older: Older) -> Result<Install<'a>> {
        let found = self.inner.keyspaces.read().get(name).cloned();
        let current = found.ok_or_else(|| Refusal::KeyspaceNotFound { name: name.to_owned() })?;
        Ok(install::install(self.inner.shared.clone(), current, stream, older))
    }

    /// Sets how fast what compactions leave behind is taken out of all keyspaces, of those that are opened or created
    /// later too, and of each of their shards whatever it had; also of a sweep that is under way. Until the engine is
    /// opened again: then it is as in [`Options`].
    pub fn set_compaction_pace(&self, pace: CompactionPace) {
        let shared = &self.inner.shared;
        let keyspaces = self.inner.keyspaces.read();
        *shared.pace.lock() = pace;
        keyspaces.values().for_each(|current| current.core().with_writer(|core, _| core.paces.set(None, pace)));
        drop(keyspaces);
        shared.work.raise();
    }

    /// Splits a live keyspace otherwise: by these routes, whatever it had. No revision and no answer changes, but
    /// for floors; reads, watches and leases go on, and writes wait for the moment of the switch: two small checkpoints, and the
    /// metadata (leases, tables), which is compared. All of the keyspace is copied: meanwhile it takes twice its room
    /// on the disk, and its index twice its memory. A crash leaves it as it was or as it is to be. Of shards that had
    /// floors of their own (see [`compact_shard`](Keyspace::compact_shard)) each new one gets the highest of those
    /// that its keys had. `progress` is told from time to time how far it is.
    ///
    /// # Errors
    /// `KeyspaceNotFound`. When the [`Reshard`] is waited for: `Unsupported` routes; `Invalid` while a snapshot is
    /// installed or it is split otherwise already; `Compacted` if the copy takes so long that what it reads is let go
    /// (`pin_age_max`, `pin_revisions_max`); damage, or if the disk fails or is full.
    pub fn reshard<'a>(
        &self,
        name: &str,
        routes: Routes,
        progress: impl FnMut(ReshardProgress) + Send + 'a,
    ) -> Result<Reshard<'a>> {
        let found = self.inner.keyspaces.read().get(name).cloned();
        let current = found.ok_or_else(|| Refusal::KeyspaceNotFound { name: name.to_owned() })?;
        Ok(reshard::reshard(self.inner.shared.clone(), current, routes, progress))
    }

    /// A keyspace's state once it is filled.
    pub(crate) fn reserved(&self, routes: &Routes, mut state: State) -> State {
        state.reserve = reopen::first_reserve(&self.inner.shared.options, routes.any_volatile(), state.main);
        state
    }

    /// Waits until all that was applied is in the tree files, in whatever durability.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn flush(&self) -> Result<()> {
        Ok(self.inner.shared.store.flush().wait()?)
    }

    /// True if each row of a shard's tree follows from the one of its key before.
    pub(crate) fn rows_follow(&self, tree: TreeId, floor: u64) -> Result<bool> {
        let file = self.inner.shared.store.tree_stats(tree)?.path;
        let (mut newest, mut follow) = (HashMap::new(), true);
        self.inner.shared.store.view(tree)?.ascend(Bound::Unbounded, &mut |key, head, body| {
            let damaged = |damage| EngineError::corrupt(&file, Place::File, damage);
            let at = row::row_revision(key).map_err(damaged)?;
            let kv = row::open_row(key, &Bytes::copy_from_slice(head), &body.load()?).map_err(damaged)?;
            let life = Life::of(at, &kv);
            follow = check::wrong(newest.insert(Bytes::copy_from_slice(&kv.key), life), life, floor).is_none();
            Ok(follow)
        })?;
        Ok(follow)
    }

    /// A batch that the next checkpoint makes durable.
    pub(crate) fn raw_batch(
        &self,
        info: &SpaceInfo,
        routes: &Routes,
        edits: Vec<TreeEdit>,
        state: &State,
    ) -> Result<()> {
        block_on(Filling::new(&self.inner.shared, info, routes).batch(edits, state))
    }
}

/// The longest name of a keyspace.
const NAME_BYTES_MAX: usize = 100;

fn store_options(path: &Path, options: &Options) -> StoreOptions {
    StoreOptions {
        path: path.to_owned(),
        durability: options.durability,
        buffer_bytes: options.buffer_bytes,
        segment_bytes: options.segment_bytes,
        journal_bytes: options.journal_bytes,
        checkpoint_interval: match options.durability {
            Durability::Sync => options.checkpoint_interval,
            Durability::Batch { interval, .. } => interval,
        },
        space_reserve_bytes: options.space_reserve_bytes,
        read_mode: match options.read_cache_bytes {
            None => ReadMode::Mapped,
            Some(bytes) => ReadMode::Pread { cache_bytes: usize::try_from(bytes).unwrap_or(usize::MAX) },
        },
        open_files_max: options.open_files_max,
        scrub_bytes_per_second: options.scrub_bytes_per_second,
        vacuum: VacuumOptions {
            bytes_per_second: options.vacuum_bytes_per_second,
            step_bytes: options.vacuum_step_bytes,
            free_percent: options.vacuum_free_percent,
            free_bytes_min: options.vacuum_free_bytes_min,
        },
        read_only: options.read_only,
    }
}

fn verify_rows(core: &Core, shard: usize) -> Result<()> {
    let shard_of = &core.shards[shard];
    core.store.view(shard_of.tree)?.ascend(Bound::Unbounded, &mut |key, head, body| {
        let damaged = |damage| core.damaged(shard_of, damage);
        let at = row::row_revision(key).map_err(damaged)?;
        let kv = row::open_row(key, &Bytes::copy_from_slice(head), &body.load()?).map_err(damaged)?;
        let known = core.routes.shard_of(&kv.key) == shard;
        let kept = at.main.cast_signed() > core.floor_of(shard);
        if !known || (kept && !shard_of.keys.read().knows(&kv.key, at)) {
            return Err(damaged(Damage::Malformed { what: "a row that the index does not know" }));
        }
        Ok(true)
    })?;
    Ok(())
}
