//! Who makes segments ahead, and gives back those that a burst has left: a job beside the one that writes, so that no
//! group waits for the zeros of a new segment to be synced.

use super::segment::{Segment, file_name};
use super::{Journal, data_bytes};
use crate::defect::{Defect, is_on};
use crate::disk::{DiskFile, OpenMode};
use crate::error::{Error, Result};
use crate::run::{Job, Next, Signal};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// New segments are zeroed by writes of this size, so that no step is long.
const ZEROS_PER_STEP: u64 = 1 << 20;
/// How long nothing has to be written until segments are given back.
const QUIET: Duration = Duration::from_secs(10);
/// How long to wait after a segment could not be made.
const RETRY: Duration = Duration::from_millis(500);

/// Makes segments and gives them back. One per journal.
#[derive(Debug)]
pub struct SegmentJob {
    journal: Arc<Journal>,
    making: Option<Making>,
    retry_at: Option<Duration>,
    /// Since when nothing is written, as far as was looked at, and how many groups there were.
    quiet_since: Option<(Duration, u64)>,
}

/// A segment on its way to being ready.
#[derive(Debug)]
struct Making {
    fresh: PathBuf,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    zeroed: u64,
    synced: bool,
    renamed: bool,
}

impl SegmentJob {
    /// The job of `journal`.
    pub fn new(journal: Arc<Journal>) -> Self {
        SegmentJob { journal, making: None, retry_at: None, quiet_since: None }
    }

    /// Gives back, one by one, segments that a burst has left once it is quiet.
    fn shrink(&mut self, now: Duration) -> Next {
        let journal = &self.journal;
        if !journal.has_surplus() {
            self.quiet_since = None;
            return Next::Idle;
        }
        let groups = journal.groups();
        let since = self.quiet_since.filter(|(_, then)| *then == groups).map_or(now, |(since, _)| since);
        self.quiet_since = Some((since, groups));
        if now < since + QUIET {
            return Next::At(since + QUIET);
        }
        match journal.take_surplus() {
            None => Next::At(now + QUIET),
            Some(segment) => {
                // If that fails the next open takes it for a ready one.
                drop(journal.disk.remove(segment.file.path()));
                Next::Again
            }
        }
    }

    /// One step of making a segment. A full disk is no disaster here: nobody was promised this room.
    fn make(&mut self, now: Duration) {
        match self.make_step() {
            Ok(()) => self.retry_at = None,
            Err(error) => {
                if let Some(making) = self.making.take() {
                    // Best effort: what stays is removed at the next open.
                    drop(self.journal.disk.remove(&making.fresh));
                }
                self.journal.room.lock().failed = Some(error);
                self.journal.room_grew();
                self.retry_at = Some(now + RETRY);
            }
        }
    }

    fn make_step(&mut self) -> Result<()> {
        let journal = &self.journal;
        let Some(making) = &mut self.making else {
            let index = journal.room.lock().next_file;
            let path = journal.options.dir.join(file_name(index));
            let fresh = path.with_extension("new");
            let file = match journal.disk.open(&fresh, OpenMode::CreateNew) {
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                    journal.disk.open(&fresh, OpenMode::Write)?
                }
                other => other?,
            };
            self.making = Some(Making { fresh, path, file, zeroed: 0, synced: false, renamed: false });
            return Ok(());
        };
        let bytes = journal.options.segment_bytes;
        if making.zeroed == 0 {
            making.file.preallocate(bytes)?;
        }
        if making.zeroed < bytes {
            let step = (bytes - making.zeroed).min(ZEROS_PER_STEP);
            let zeros = vec![0; usize::try_from(step).expect("at most a MiB")];
            making.file.write_at(&zeros, making.zeroed)?;
            making.zeroed += step;
        } else if !making.synced {
            making.file.sync_data()?;
            making.synced = true;
        } else if !making.renamed {
            journal.disk.rename(&making.fresh, &making.path)?;
            // By its name: errors say it.
            making.file = journal.disk.open(&making.path, OpenMode::Write)?;
            making.renamed = true;
        } else {
            if !is_on(Defect::SkipDirectorySync) {
                journal.disk.sync_dir(&journal.options.dir)?;
            }
            let segment = Segment { file: Arc::clone(&making.file), bytes, head: None };
            self.making = None;
            let mut room = journal.room.lock();
            room.next_file += 1;
            room.total += bytes;
            room.data += data_bytes(&segment);
            room.free += data_bytes(&segment);
            room.failed = None;
            room.ready.push_back(segment);
            drop(room);
            journal.room_grew();
        }
        Ok(())
    }
}

impl Job for SegmentJob {
    fn name(&self) -> &'static str {
        "segments"
    }

    fn signal(&self) -> Signal {
        self.journal.segments.clone()
    }

    fn step(&mut self, now: Duration) -> Next {
        if self.journal.poison.check().is_err() {
            return Next::Idle;
        }
        let wanted = self.journal.wants_segment();
        if let Some(at) = self.retry_at.filter(|at| wanted && now < *at) {
            return Next::At(at);
        }
        if self.making.is_some() || wanted {
            self.make(now);
            return Next::Again;
        }
        self.shrink(now)
    }
}
