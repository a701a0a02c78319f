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
use crate::reopen::{self, Retired, Rows, Shared};
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
#[must_use = "it does nothing unless waited for"]
pub struct Install<'a> {
    work: Pin<Box<dyn Future<Output = Result<i64>> + Send + 'a>>,
}

impl std::fmt::Debug for Install<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Install").finish_non_exhaustive()
    }
}

impl Install<'_> {
    /// Blocks until it is durable and in place.
    ///
    /// # Errors
    /// `OlderSnapshot`, damage of the stream, or if the disk fails; the keyspace is as it was then.
    pub fn wait(self) -> Result<i64> {
        block_on(self.work)
    }
}

impl Future for Install<'_> {
    type Output = Result<i64>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<i64>> {
        self.work.as_mut().poll(cx)
    }
}

pub(crate) fn install<'a>(
    shared: Shared,
    current: Arc<Current>,
    stream: impl Read + Send + 'a,
    older: Older,
) -> Install<'a> {
    Install { work: Box::pin(run(shared, current, stream, older)) }
}

async fn run(shared: Shared, current: Arc<Current>, stream: impl Read + Send, older: Older) -> Result<i64> {
    if current.installing.swap(true, Ordering::AcqRel) {
        return Err(
            Refusal::Invalid { why: format!("a snapshot of {:?} is being installed already", current.name) }.into()
        );
    }
    // From here its end lets the next one in, and takes back what is not whole.
    let mut half = Half { shared: &shared, current: &current, space: None, frozen: None };
    let old = Arc::clone(&current.core());
    let (reader, head) = SnapshotReader::new(stream)?;
    old.check_open()?;
    check_age(&old.writer.lock(), &head.state, older)?;
    let routes = &current.routes;
    let mut state = State { floors: head.floors_for(routes), unfinished: true, reserve: 0, ..head.state };
    let info = shared.store.create_space(SpaceSpec {
        name: reopen::next_space(&shared.store, &current.name),
        config: routes.encode(),
        state: state.encode(),
        trees: routes.trees(),
    })?;
    half.space = Some(info.id);
    let filling = Filling { shared: &shared, info: &info, routes };
    filling.fill(&state, reader, |_| ()).await?;
    shared.store.flush().await?;
    state.unfinished = false;
    state.reserve = reopen::first_reserve(&shared.options, routes.any_volatile(), state.main);
    let finished = polybolt_engine::SpaceInfo { state: state.encode(), ..info.clone() };
    let opened = reopen::open_keyspaces(&shared, &[finished], Rows::Foreign, 1, Some(&old.hub))?.pop();
    let new = opened.ok_or(Refusal::Closed)?;
    half.frozen = Some(freeze(&old, &state, older)?);
    filling.finish(&state).await?;
    let thaw = swap(&old, &new, &current);
    half.whole();
    drop(old);
    thaw.advance(Position(1));
    shared.work.raise();
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

/// From here on writes wait for what becomes of it.
fn freeze(old: &Arc<Core>, snapshot: &State, older: Older) -> Result<Arc<Core>> {
    let mut writer = old.writer.lock();
    old.check_open()?;
    check_age(&writer, snapshot, older)?;
    writer.gate = Gate::Frozen(Arc::default());
    Ok(Arc::clone(old))
}

fn thaw(writer: &mut Writer, gate: Gate) -> Option<Arc<Watermark>> {
    match std::mem::replace(&mut writer.gate, gate) {
        Gate::Frozen(thaw) => Some(thaw),
        _ => None,
    }
}

/// The new core in the place of the old one; what is to be told once the locks are free.
fn swap(old: &Arc<Core>, new: &Arc<Core>, current: &Current) -> Arc<Watermark> {
    let mut from = old.writer.lock();
    let mut to = new.writer.lock();
    to.line = std::mem::take(&mut from.line);
    new.line_moved(&to);
    old.line_moved(&from);
    if old.lessor.lock().is_primary() {
        let now = new.clock.monotonic();
        new.lessor.lock().promote(now, new.options.lease_extend);
    }
    old.publisher.retire();
    new.hub.reset(to.state.main);
    current.replace(Arc::clone(new));
    // Nothing of the old one is left to sweep, whoever waits for that.
    old.swept.advance(Position(i64::MAX.cast_unsigned()));
    thaw(&mut from, Gate::Replaced(Arc::clone(new))).unwrap_or_default()
}

/// An install that is not whole.
struct Half<'a> {
    shared: &'a Shared,
    current: &'a Current,
    space: Option<SpaceId>,
    frozen: Option<Arc<Core>>,
}

impl Half<'_> {
    /// The new space is the keyspace now, and the old one goes when it can.
    fn whole(&mut self) {
        self.space = None;
        if let Some(core) = self.frozen.take() {
            let since = core.clock.monotonic();
            self.shared.retired.lock().push(Retired { core, since });
        }
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
        self.current.installing.store(false, Ordering::Release);
    }
}
