//! Replacing what a live keyspace holds by a snapshot.
//!
//! ```text
//! fill     a space of the next generation, unfinished: a crash leaves the old one, and the next open drops it
//! scan     its rows into indexes, as at open; reads and writes of the old one have gone on until here
//! freeze   the old one: writes stand in line
//! finish   one manifest commit in which the new space is not unfinished: from here a restart finds it
//! commit   the other manifest slot too: a damaged slot does not bring the old one back
//! swap     handles, the line and the watchers go over to the new one; the old goes when nobody reads it
//! ```
//!
//! Watchers go on from the next revision that each needs. What they have of the old one is part of the new
//! one as long as both are of one history; that is what refusing older snapshots is for.

use crate::core::{Core, Current, Gate, Writer};
use crate::error::{Refusal, Result};
use crate::fill::Filling;
use crate::pending::block_on;
use crate::record::State;
use crate::reopen::{self, Heir, Retired, Rows, Shared};
use crate::snapshot::SnapshotReader;
use polybolt_engine::sync::atomic::Ordering;
use polybolt_engine::{Position, SpaceId, SpaceSpec, Watermark};
use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// What to do about a snapshot of a revision or applied index below the keyspace's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    /// Refuse it.
    Refuse,
    /// Take the keyspace back. Revisions that somebody saw are used again, and watchers wait until what
    /// they need next comes.
    Install,
}

/// A snapshot on its way into a live keyspace; answers with the revision that the keyspace is at then. Does
/// nothing until it is waited for or polled; polling reads the stream and the disk, so a task should leave
/// it to a thread that may block. Dropped before its end, the keyspace stays as it was.
pub type Install<'a> = Replacement<'a, i64>;

/// What is to take the place of all that a live keyspace holds, on its way.
#[must_use = "it does nothing unless waited for"]
pub struct Replacement<'a, T> {
    work: Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>,
}

impl<'a, T> Replacement<'a, T> {
    pub(crate) fn new(work: impl Future<Output = Result<T>> + Send + 'a) -> Self {
        Replacement { work: Box::pin(work) }
    }
}

impl<T> std::fmt::Debug for Replacement<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replacement").finish_non_exhaustive()
    }
}

impl<T> Replacement<'_, T> {
    /// Blocks until it is durable and in place.
    ///
    /// # Errors
    /// Those of [`Engine::install`](crate::Engine::install) and [`Engine::reshard`](crate::Engine::reshard); the
    /// keyspace is as it was then.
    pub fn wait(self) -> Result<T> {
        block_on(self.work)
    }
}

impl<T> Future for Replacement<'_, T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        self.work.as_mut().poll(cx)
    }
}

pub(crate) fn install<'a>(
    shared: Shared,
    current: Arc<Current>,
    stream: impl Read + Send + 'a,
    older: Older,
) -> Install<'a> {
    Replacement::new(run(shared, current, stream, older))
}

async fn run(shared: Shared, current: Arc<Current>, stream: impl Read + Send, older: Older) -> Result<i64> {
    let mut half = Half::begin(&shared, &current)?;
    let old = Arc::clone(&current.core());
    let (reader, head) = SnapshotReader::new(stream)?;
    old.check_open()?;
    check_age(&old.writer.lock(), &head.state, older)?;
    let routes = &*old.routes;
    let mut state = State { floors: head.floors_for(routes), unfinished: true, reserve: 0, ..head.state };
    let info = shared.store.create_space(SpaceSpec {
        name: reopen::next_space(&shared.store, &current.name),
        config: routes.encode(),
        state: state.encode(),
        trees: routes.trees(),
    })?;
    half.space = Some(info.id);
    let filling = Filling::new(&shared, &info, routes);
    filling.fill(&state, reader, |_| ()).await?;
    filling.flush().await?;
    state.unfinished = false;
    state.reserve = reopen::first_reserve(&shared.options, routes.any_volatile(), state.main);
    let finished = polybolt_engine::SpaceInfo { state: state.encode(), ..info.clone() };
    let opened =
        reopen::open_keyspaces(&shared, &[finished], Rows::Foreign, 1, Some(Heir { of: &old, leases: false }))?.pop();
    let new = opened.ok_or(Refusal::Closed)?;
    half.freeze(&old, |writer| check_age(writer, &state, older))?;
    filling.finish(&state).await?;
    half.swap(&old, &new, |_, to| {
        if old.lessor.lock().is_primary() {
            let now = new.clock.monotonic();
            new.lessor.lock().promote(now, new.options.lease_extend);
        }
        new.hub.reset(to.state.main);
    });
    Ok(state.main.cast_signed())
}

fn check_age(writer: &Writer, snapshot: &State, older: Older) -> Result<()> {
    let State { main, applied_index, .. } = &writer.state;
    if older == Older::Refuse && (snapshot.main < *main || snapshot.applied_index < *applied_index) {
        let (snapshot, current) = (snapshot.main.cast_signed(), main.cast_signed());
        return Err(Refusal::OlderSnapshot { snapshot, current }.into());
    }
    Ok(())
}

/// A core that is on its way to take another's place, and not there yet. Its end lets the next one begin, and takes
/// back what is not whole.
pub(crate) struct Half<'a> {
    shared: &'a Shared,
    current: &'a Current,
    pub(crate) space: Option<SpaceId>,
    frozen: Option<Arc<Core>>,
}

impl<'a> Half<'a> {
    pub(crate) fn begin(shared: &'a Shared, current: &'a Current) -> Result<Self> {
        if current.replacing.swap(true, Ordering::AcqRel) {
            let why = format!("{:?} is being replaced by a snapshot or split otherwise already", current.name);
            return Err(Refusal::Invalid { why }.into());
        }
        Ok(Half { shared, current, space: None, frozen: None })
    }

    /// From here on writes wait for what becomes of it, unless `check` finds that it cannot be.
    pub(crate) fn freeze(&mut self, old: &Arc<Core>, check: impl FnOnce(&Writer) -> Result<()>) -> Result<()> {
        let mut writer = old.writer.lock();
        old.check_open()?;
        check(&writer)?;
        writer.gate = Gate::Frozen(Arc::default());
        self.frozen = Some(Arc::clone(old));
        Ok(())
    }

    /// The new core in the place of the old one, which goes when nobody reads it; `hand_over` is for what the two
    /// writers have between them.
    pub(crate) fn swap(mut self, old: &Arc<Core>, new: &Arc<Core>, hand_over: impl FnOnce(&mut Writer, &mut Writer)) {
        let thaw = {
            let mut from = old.writer.lock();
            let mut to = new.writer.lock();
            to.line = std::mem::take(&mut from.line);
            new.line_moved(&to);
            old.line_moved(&from);
            let shard_before = |at: usize| old.shards.iter().position(|shard| shard.name == new.shards[at].name);
            new.paces.take_over(&old.paces, shard_before);
            old.publisher.retire();
            hand_over(&mut from, &mut to);
            self.current.replace(Arc::clone(new));
            // Whoever waits for a sweep asks the new one.
            old.swept.advance(Position(i64::MAX.cast_unsigned()));
            self.space = None;
            // Before anybody can find the new one, to drop it: the old one goes with it.
            if let Some(core) = self.frozen.take() {
                let since = core.clock.monotonic();
                self.shared.retired.lock().push(Retired { core, since });
            }
            thaw(&mut from, Gate::Replaced(Arc::clone(new))).unwrap_or_default()
        };
        // Once the locks are free.
        thaw.advance(Position(1));
        self.shared.work.raise();
    }
}

fn thaw(writer: &mut Writer, gate: Gate) -> Option<Arc<Watermark>> {
    match std::mem::replace(&mut writer.gate, gate) {
        Gate::Frozen(thaw) => Some(thaw),
        _ => None,
    }
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        // First the new space, which a checkpoint may have finished meanwhile; only then may the old one go
        // on. If that fails the store takes no more writes, and the next open finds one of the two.
        if let Some(space) = self.space {
            drop(self.shared.store.drop_space(space));
        }
        if let Some(core) = self.frozen.take() {
            let thaw = thaw(&mut core.writer.lock(), Gate::Open);
            if let Some(thaw) = thaw {
                thaw.advance(Position(1));
            }
        }
        self.current.replacing.store(false, Ordering::Release);
    }
}
