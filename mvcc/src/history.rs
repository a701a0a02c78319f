//! Catching up: what a watcher has missed, out of what is stored.
//!
//! There are two ways to the same events. Rows lie in the order of revisions, so where much of a shard is
//! watched they are read one after the other. Where little is, the index tells which revisions of the
//! watched keys there are, and only their rows are read. The caller has pinned the revision before the
//! first one it needs and looked at the floor after, so what is needed stays, but for rows that the
//! compaction at exactly that revision takes out.

use crate::core::{Core, Found, KEYS_PER_RUN};
use crate::error::Result;
use crate::event::{Event, EventKind};
use crate::request::KeyValue;
use crate::routes::Segment;
use crate::rows::{Rows, StoredRow};
use crate::watch::Feed;
use polybolt_engine::Damage;
use polybolt_index::{KeyRange, Revision};
use std::collections::BinaryHeap;

/// Up to where everything was looked at, and the events.
pub(crate) type Piece = (u64, Vec<Event>);

/// Revisions that one piece looks at (WCH-19), and rows that are found ahead in the index.
const MAINS_MAX: u64 = 1000;
/// The fewest, where each has much to tell.
const MAINS_MIN: u64 = 16;
/// Bytes of events after which a piece ends at the next revision.
const PIECE_BYTES: usize = 1 << 20;
/// Rows read at a time when they are read one by one: each may be as large as a request.
const ROWS_PER_READ: usize = 32;
/// The index is asked where at most one in this many of a shard's keys is watched.
const SHARE: u64 = 4;
/// Keys that are few in any shard.
const FEW: u64 = 16;
/// How much of the index one piece may look at: an eighth of the revisions that it stands for, within these.
const LOOKS: std::ops::RangeInclusive<u64> = 1 << 14..=1 << 18;

/// How a watcher reads what it has missed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Up to here without a look at the index, which had too much to tell.
    by_rows_to: u64,
    /// Revisions that the next piece looks at: fewer where they are large, so that little is read in vain.
    mains: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { by_rows_to: 0, mains: MAINS_MAX }
    }
}

/// Matching events from `next` on, whole revisions, a bounded piece of them.
pub(crate) fn read(core: &Core, feed: &Feed, next: u64, visible: u64, pace: &mut Pace) -> Result<Piece> {
    let segments = core.routes.cut(&feed.request.span);
    if next > pace.by_rows_to && is_little(core, &segments) {
        let looks = ((visible - next) / 8).clamp(*LOOKS.start(), *LOOKS.end());
        match plan(core, &segments, (next, visible), looks as usize) {
            Some(plan) => return by_index(core, feed, &segments, plan),
            None => pace.by_rows_to = visible,
        }
    }
    by_rows(core, feed, next, visible, pace)
}

/// True if few of the keys in the touched shards are watched. O(log n).
fn is_little(core: &Core, segments: &[Segment]) -> bool {
    let watched = core.count(segments, u64::MAX);
    let mut shards: Vec<usize> = segments.iter().map(|segment| segment.shard).collect();
    shards.sort_unstable();
    shards.dedup();
    let all: u64 = shards.into_iter().map(|shard| core.shards[shard].keys.read().stats().live).sum();
    watched <= FEW.max(all / SHARE)
}

/// Rows to read, in order of revisions, and up to where these are all.
struct Plan {
    rows: Vec<(Revision, usize)>,
    upto: u64,
}

/// What the index knows of the segments from `next` on; None if that takes more than `budget` looks.
fn plan(core: &Core, segments: &[Segment], (next, visible): (u64, u64), mut budget: usize) -> Option<Plan> {
    let max = MAINS_MAX as usize;
    // The lowest so far, highest on top.
    let mut lowest: BinaryHeap<(Revision, usize)> = BinaryHeap::with_capacity(max + 1);
    let mut all = true;
    for segment in segments {
        let range = KeyRange { start: &segment.start, end: segment.end.as_deref() };
        let mut visit = |at| {
            lowest.push((at, segment.shard));
            if lowest.len() > max {
                lowest.pop();
                all = false;
            }
        };
        let mut resume = None;
        loop {
            // In runs, so that the lock is never held for long.
            let run = budget.min(KEYS_PER_RUN);
            let mut left = run;
            resume =
                core.shards[segment.shard].keys.read().changes(range, resume, (next, visible), &mut left, &mut visit);
            budget -= run - left;
            if resume.is_none() {
                break;
            }
            if budget == 0 {
                return None;
            }
        }
    }
    let mut rows = lowest.into_sorted_vec();
    if all {
        return Some(Plan { rows, upto: visible });
    }
    // Of the highest revision some rows may be missing.
    let cut = rows.last()?.0.main;
    rows.retain(|(at, _)| at.main < cut);
    (!rows.is_empty()).then_some(Plan { rows, upto: cut - 1 })
}

fn by_index(core: &Core, feed: &Feed, segments: &[Segment], plan: Plan) -> Result<Piece> {
    let mut events = Events::new(core, feed);
    let mut begin = 0;
    while begin < plan.rows.len() {
        let mut end = plan.rows.len().min(begin + ROWS_PER_READ);
        while end < plan.rows.len() && plan.rows[end].0.main == plan.rows[end - 1].0.main {
            end += 1;
        }
        let wanted = &plan.rows[begin..end];
        for (row, (at, shard)) in core.rows_at(wanted)?.into_iter().zip(wanted) {
            match row {
                Some(row) => events.add(row)?,
                // Taken out by the compaction at exactly this revision, or the pin was let go.
                None if at.main.cast_signed() <= core.floor(segments) => {}
                None => {
                    let damage = Damage::Malformed { what: "a row that the index names is not there" };
                    return Err(core.damaged(&core.shards[*shard], damage).into());
                }
            }
        }
        if events.bytes >= PIECE_BYTES && end < plan.rows.len() {
            return Ok((plan.rows[end - 1].0.main, events.finish()?));
        }
        begin = end;
    }
    Ok((plan.upto, events.finish()?))
}

fn by_rows(core: &Core, feed: &Feed, next: u64, visible: u64, pace: &mut Pace) -> Result<Piece> {
    let to = visible.min(next.saturating_add(pace.mains - 1));
    let mut rows = Rows::of_span(core, &feed.request.span, next, to);
    let mut events = Events::new(core, feed);
    let mut last = next;
    while let Some(row) = rows.next_row()? {
        if row.at.main != last && events.bytes >= PIECE_BYTES {
            let upto = row.at.main - 1;
            pace.mains = (upto - next + 1).clamp(MAINS_MIN, MAINS_MAX);
            return Ok((upto, events.finish()?));
        }
        last = row.at.main;
        events.add(row)?;
    }
    if events.bytes < PIECE_BYTES / 2 {
        pace.mains = (pace.mains * 2).min(MAINS_MAX);
    }
    // Mains may jump: what lies between was looked at.
    let upto = rows.beyond().map_or(visible, |beyond| visible.min(beyond - 1));
    Ok((upto, events.finish()?))
}

/// Events made of rows in order.
struct Events<'a> {
    core: &'a Core,
    feed: &'a Feed,
    found: Vec<Event>,
    /// Rows whose versions before are yet to be read, together.
    open: Vec<StoredRow>,
    bytes: usize,
}

impl<'a> Events<'a> {
    fn new(core: &'a Core, feed: &'a Feed) -> Self {
        Events { core, feed, found: Vec::new(), open: Vec::new(), bytes: 0 }
    }

    fn add(&mut self, row: StoredRow) -> Result<()> {
        if !self.feed.wants(kind(&row)) {
            return Ok(());
        }
        self.bytes += row.kv.key.len() + row.kv.value.len();
        if self.feed.request.prev_kv {
            self.open.push(row);
            return if self.open.len() < ROWS_PER_READ { Ok(()) } else { self.close() };
        }
        self.found.push(event(row, None));
        Ok(())
    }

    /// Makes events of the open rows.
    fn close(&mut self) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        let (mut found, mut has) = (Vec::with_capacity(open.len()), Vec::with_capacity(open.len()));
        for row in &open {
            let before = before(self.core, row);
            has.push(before.is_some());
            found.extend(before);
        }
        let mut versions = self.core.fetch(found, false)?.into_iter();
        for (row, has) in open.into_iter().zip(has) {
            let prev = if has { versions.next().map(KeyValue::detached) } else { None };
            self.bytes += prev.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
            self.found.push(event(row, prev));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Event>> {
        self.close()?;
        Ok(self.found)
    }
}

fn kind(row: &StoredRow) -> EventKind {
    if row.tombstone { EventKind::Delete } else { EventKind::Put }
}

/// The event of a row. Its key and value stay parts of the block that the row was read in, which holds little
/// but what is handed out together.
fn event(row: StoredRow, prev_kv: Option<KeyValue>) -> Event {
    let (kind, kv) = (kind(&row), row.kv);
    match kind {
        EventKind::Put => Event::new(kind, kv, prev_kv),
        EventKind::Delete => {
            let kv = KeyValue { key: kv.key, mod_revision: kv.mod_revision, ..KeyValue::default() };
            Event::new(kind, kv, prev_kv)
        }
    }
}

/// The version of a key before a row, if there was one and compaction has left it.
fn before(core: &Core, row: &StoredRow) -> Option<Found> {
    let (kv, at) = (&row.kv, row.at.main - 1);
    let created = !row.tombstone && kv.create_revision == kv.mod_revision;
    let shard = core.routes.shard_of(&kv.key);
    if created || at.cast_signed() < core.floor_of(shard) {
        return None;
    }
    core.key_in(shard, &kv.key, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, Runtime};
    use crate::keyspace::Keyspace;
    use crate::options::Options;
    use crate::request::{DeleteRequest, Op, PutRequest, Span, TxnRequest, WatchRequest};
    use crate::routes::Routes;
    use polybolt_engine::disk::Disk;
    use polybolt_engine::disk::sim::SimDisk;
    use polybolt_engine::run::ManualClock;
    use polybolt_engine::run::seeded::{Rng, Seeded};
    use std::sync::Arc;
    use std::time::Duration;

    fn open(seed: u64) -> (Keyspace, Engine, Seeded) {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(seed));
        let clock = ManualClock::default();
        let options = Options {
            compaction_pace: crate::pace::CompactionPace { batch_limit: 3, ..Default::default() },
            checkpoint_interval: Duration::from_millis(20),
            ..Options::default()
        };
        let runtime = Runtime { disk, clock: Arc::new(clock.clone()), threads: false };
        let engine = Engine::open_with("/data", options, runtime).unwrap();
        let jobs = Seeded::new(engine.take_jobs(), clock, seed);
        let routes = Routes::parse("low=a,mid=m").unwrap();
        (engine.create_keyspace("ks", routes).unwrap(), engine, jobs)
    }

    fn feed(ks: &Keyspace, span: Span, rng: &mut Rng) -> Arc<Feed> {
        let (no_put, no_delete, prev_kv) = (rng.one_in(5), rng.one_in(5), !rng.one_in(3));
        let request = WatchRequest { span, start_revision: 1, no_put, no_delete, prev_kv };
        ks.core().hub.register(request, 1, 1, 1 << 20).1
    }

    fn main(event: &Event) -> u64 {
        event.kv().mod_revision.cast_unsigned()
    }

    /// Everything from `next` on, piece by piece.
    fn whole(mut read: impl FnMut(u64) -> Piece, next: u64, visible: u64) -> Vec<Event> {
        let (mut next, mut all) = (next, Vec::new());
        while next <= visible {
            let (upto, events) = read(next);
            assert!(upto >= next && events.iter().all(|event| (next..=upto).contains(&main(event))));
            all.extend(events);
            next = upto + 1;
        }
        all
    }

    fn spans() -> Vec<Span> {
        let of = |key: &str| Span::key(key.to_owned());
        let prefix = |prefix: &str| Span::prefix(prefix.to_owned());
        vec![of("a1"), of("m3"), of("x"), of("never"), prefix("a"), prefix("m1"), prefix(""), Span::range("a5", "m2")]
    }

    #[test]
    fn both_ways_of_catching_up_find_the_same_events_wch_29() {
        let (mut compared, mut found) = (0, 0);
        for seed in 1..=20 {
            let (ks, _engine, mut jobs) = open(seed);
            let mut rng = Rng::new(seed);
            let feeds: Vec<_> = spans().into_iter().map(|span| feed(&ks, span, &mut rng)).collect();
            for _ in 0..120 {
                let key = |rng: &mut Rng| format!("{}{}", ["a", "m", "x"][rng.below(3) as usize], rng.below(9));
                let mut ops = Vec::new();
                if rng.one_in(3) {
                    let span = Span::prefix(key(&mut rng));
                    ops.push(Op::Delete(DeleteRequest { span, prev_kv: false }));
                }
                for _ in 0..rng.below(4) {
                    ops.push(Op::Put(PutRequest::new(key(&mut rng), vec![b'v'; rng.below(300) as usize])));
                }
                // Also twice the same key: that is refused.
                drop(ks.txn(TxnRequest { success: ops, ..TxnRequest::default() }));
                if rng.one_in(12) {
                    drop(ks.compact(ks.revision() - i64::try_from(rng.below(12)).unwrap(), false));
                }
                // A sweep that is half done, too.
                jobs.run_some(12);
                if rng.one_in(4) {
                    jobs.advance(Duration::from_millis(rng.below(30)));
                }
                let (core, visible) = (&ks.core(), ks.revision().cast_unsigned());
                let next = visible - rng.below(visible.min(40));
                for feed in &feeds {
                    let segments = core.routes.cut(&feed.request.span);
                    if next.cast_signed() < core.floor(&segments) {
                        continue;
                    }
                    let mut pace = Pace { mains: 1 + rng.below(40), ..Pace::default() };
                    let rows = whole(|next| by_rows(core, feed, next, visible, &mut pace).unwrap(), next, visible);
                    let plan = |next| plan(core, &segments, (next, visible), 1 << 20).unwrap();
                    let index = |next| by_index(core, feed, &segments, plan(next)).unwrap();
                    assert_eq!(whole(index, next, visible), rows, "seed {seed}, {:?} from {next}", feed.request);
                    compared += 1;
                    found += rows.len();
                }
            }
        }
        assert!(compared > 5000 && found > 10_000, "{compared} comparisons of {found} events");
    }

    #[test]
    fn one_key_among_many_is_caught_up_without_reading_the_others_bad_6() {
        let (ks, engine, mut jobs) = open(1);
        let mut rng = Rng::new(1);
        for n in 0..3000u64 {
            let key = if n % 100 == 7 { "m-one".to_owned() } else { format!("m{n}") };
            drop(ks.put(PutRequest::new(key, "v")));
            jobs.run_some(4);
        }
        jobs.run_until_idle(10_000);
        let core = &ks.core();
        let visible = ks.revision().cast_unsigned();
        let one = feed(&ks, Span::key("m-one"), &mut Rng::new(3));
        let segments = core.routes.cut(&one.request.span);
        assert!(is_little(core, &segments));
        let found = plan(core, &segments, (2, visible), 100).unwrap();
        assert_eq!((found.rows.len(), found.upto), (30, visible), "its own rows, all in one piece");
        let all = feed(&ks, Span::prefix(""), &mut rng);
        assert!(!is_little(core, &core.routes.cut(&all.request.span)));
        drop(engine);
    }

    #[test]
    fn a_long_history_of_one_key_comes_in_whole_revisions_a_bounded_piece_at_a_time_wch_19() {
        let (ks, _engine, mut jobs) = open(2);
        for n in 0..2500u64 {
            let put = |key: &str| Op::Put(PutRequest::new(key.to_owned(), n.to_string()));
            drop(ks.txn(TxnRequest { success: vec![put("m1"), put("m2")], ..TxnRequest::default() }));
            jobs.run_some(4);
        }
        jobs.run_until_idle(10_000);
        let (core, visible) = (&ks.core(), ks.revision().cast_unsigned());
        let request =
            WatchRequest { span: Span::prefix("m"), start_revision: 1, no_put: false, no_delete: false, prev_kv: true };
        let feed = ks.core().hub.register(request, 1, 1, 1 << 20).1;
        let segments = core.routes.cut(&feed.request.span);
        let mut pieces = 0;
        let read = |next| {
            pieces += 1;
            let piece =
                by_index(core, &feed, &segments, plan(core, &segments, (next, visible), 1 << 20).unwrap()).unwrap();
            assert!(piece.1.len() as u64 <= 2 * MAINS_MAX);
            assert!(piece.1.chunks(2).all(|pair| main(&pair[0]) == main(&pair[1])));
            piece
        };
        assert_eq!(whole(read, 2, visible).len(), 5000);
        assert!(pieces >= 3);
        assert!(plan(core, &segments, (2, visible), 4000).is_none(), "too much to look at: row by row, then");
        assert!(plan(core, &segments, (visible - 900, visible), 4000).is_some());
    }
}
