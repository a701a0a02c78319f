//! A writer thread that commits for many callers at once, as a user of an engine without group commit writes it.

use crate::peer::{Commit, MvccPeer, Next, Result};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

/// The most operations of one commit.
const GROUP: usize = 1024;

/// A put on its way.
pub struct Put {
    key: Vec<u8>,
    value: Vec<u8>,
    answer: Sender<u64>,
}

/// A caller's end.
pub struct Caller {
    puts: Sender<Put>,
    answer: (Sender<u64>, Receiver<u64>),
}

impl Caller {
    /// Puts a key; answers with its revision once it is as durable as the writer makes it.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<u64> {
        self.puts.send(Put { key: key.to_vec(), value: value.to_vec(), answer: self.answer.0.clone() })?;
        Ok(self.answer.1.recv()?)
    }
}

/// A way in, and what the writer takes puts from.
pub fn channel() -> (Sender<Put>, Receiver<Put>) {
    unbounded()
}

/// A caller of the writer.
pub fn caller(puts: &Sender<Put>) -> Caller {
    Caller { puts: puts.clone(), answer: bounded(1) }
}

/// The writer: takes what waits, commits it, answers; until there are no callers. In `Batch` it answers at once and
/// commits as the mode says.
pub fn write(peer: &dyn MvccPeer, puts: &Receiver<Put>, commit: Commit) -> Result<()> {
    if commit == Commit::Batch {
        return peer.session(commit, &mut |session| {
            let Ok(put) = puts.recv() else { return Ok(Next::Done) };
            put.answer.send(session.put(&put.key, &put.value)?)?;
            Ok(Next::More)
        });
    }
    let mut group: Vec<(Sender<u64>, u64)> = Vec::new();
    let mut committed = false;
    peer.session(Commit::Group, &mut |session| {
        if std::mem::take(&mut committed) {
            for (answer, revision) in group.drain(..) {
                answer.send(revision)?;
            }
        }
        let Ok(put) = puts.recv() else { return Ok(Next::Done) };
        let revision = session.put(&put.key, &put.value)?;
        group.push((put.answer, revision));
        committed = puts.is_empty() || group.len() == GROUP;
        Ok(if committed { Next::Commit } else { Next::More })
    })
}
