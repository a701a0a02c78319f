//! What is asked of a keyspace: random commands and reads.

use crate::setup::PREFIXES;
use crate::world::World;
use bytes::Bytes;
use polybolt::{
    Command, Compare, CompareOp, CompareTarget, DeleteRequest, Op, PutRequest, RangeRequest, SortOrder, SortTarget,
    Span, TableEdit, TxnRequest,
};

impl World {
    /// Hands in a random command.
    pub(crate) fn write(&mut self, at: usize) {
        let command = self.command(at);
        self.say(|| format!("write {at} {command:?}").chars().take(300).collect());
        self.ask(at, command, false);
    }

    pub(crate) fn command(&mut self, at: usize) -> Command {
        let main = self.spaces[at].model.now.main;
        match self.rng.below(100) {
            0..=39 => Command::Op(Op::Put(self.put(at))),
            40..=49 => Command::Op(Op::Delete(self.delete())),
            50..=77 => Command::Op(Op::Txn(self.txn(at, 2))),
            78..=81 => Command::Compact(main - self.rng.below(12).cast_signed() + 1),
            82 | 83 => {
                let shards = self.setup.shards;
                let revision = main - self.rng.below(12).cast_signed() + 1;
                let shard = self.setup.routes().shards()[self.rng.below(shards as u64) as usize].name.clone();
                Command::CompactShard { shard, revision }
            }
            84..=88 => Command::LeaseGrant { id: self.lease_id(), ttl: self.rng.below(20).cast_signed() },
            89..=91 => Command::LeaseRevoke(self.lease_id()),
            92..=97 => Command::Table(self.tables()),
            _ => Command::Nothing,
        }
    }

    fn lease_id(&mut self) -> i64 {
        1 + self.rng.below(6).cast_signed()
    }

    fn tables(&mut self) -> Vec<TableEdit> {
        (0..1 + self.rng.below(3))
            .map(|_| TableEdit {
                table: ["users", "roles"][self.rng.below(2) as usize].to_owned(),
                key: format!("t{}", self.rng.below(5)).into(),
                value: (!self.rng.one_in(3)).then(|| self.value()),
            })
            .collect()
    }

    fn value(&mut self) -> Bytes {
        let quarter = self.setup.page_bytes as u64 / 4;
        let len = match self.rng.below(10) {
            0 => 0,
            1..=5 => self.rng.below(120),
            6..=8 => self.rng.below(quarter * self.setup.values + 1),
            // Overflows.
            _ => self.rng.below(self.setup.page_bytes as u64 * 3),
        };
        let seed = self.rng.next_u64();
        (0..len).map(|at| (seed >> (at % 8 * 8)) as u8 ^ at as u8).collect()
    }

    fn put(&mut self, at: usize) -> PutRequest {
        let key = self.key();
        let mut put = PutRequest::new(key, self.value());
        if self.rng.one_in(5) {
            put.lease = self.lease_id();
            if !self.rng.one_in(8) && !self.spaces[at].model.now.leases.contains_key(&put.lease) {
                put.lease = 0;
            }
        }
        put.prev_kv = self.rng.one_in(4);
        if self.rng.one_in(12) {
            put.ignore_value = true;
            put.value = Bytes::new();
        } else if self.rng.one_in(12) {
            put.ignore_lease = true;
            put.lease = 0;
        }
        put
    }

    pub(crate) fn span(&mut self) -> Span {
        match self.rng.below(7) {
            0 | 1 => Span::key(self.key()),
            2 | 3 => Span::prefix(PREFIXES[self.rng.below(5) as usize]),
            4 => Span::prefix(""),
            5 => Span::from_key(self.key()),
            _ => {
                let (a, b) = (self.key(), self.key());
                if a < b { Span::range(a, b) } else { Span::key(a) }
            }
        }
    }

    fn delete(&mut self) -> DeleteRequest {
        let span = if self.rng.one_in(4) { self.span() } else { Span::key(self.key()) };
        DeleteRequest { span, prev_kv: self.rng.one_in(3) }
    }

    fn guard(&mut self, at: usize) -> Compare {
        let main = self.spaces[at].model.now.main;
        let span = if self.rng.one_in(4) { self.span() } else { Span::key(self.key()) };
        let known = self.spaces[at].model.live().get(&span.key).cloned().unwrap_or_default();
        let exact = self.rng.one_in(2);
        let near = main - self.rng.below(20).cast_signed();
        let target = match self.rng.below(5) {
            0 => CompareTarget::Version(if exact { known.version } else { self.rng.below(4).cast_signed() }),
            1 => CompareTarget::Create(if exact { known.create_revision } else { near }),
            2 => CompareTarget::Mod(if exact { known.mod_revision } else { near }),
            3 => CompareTarget::Value(if exact { known.value } else { Bytes::new() }),
            _ => CompareTarget::Lease(if exact { known.lease } else { self.lease_id() }),
        };
        let ops = [CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual];
        Compare { span, target, op: ops[self.rng.below(4) as usize] }
    }

    /// A txn that may write, over several shards.
    fn txn(&mut self, at: usize, depth: u32) -> TxnRequest {
        let mut txn = TxnRequest::default();
        for _ in 0..self.rng.below(3) {
            let compare = self.guard(at);
            txn.compare.push(compare);
        }
        for _ in 0..1 + self.rng.below(4) {
            let op = self.op(at, depth);
            txn.success.push(op);
        }
        for _ in 0..self.rng.below(3) {
            let op = self.op(at, depth);
            txn.failure.push(op);
        }
        if txn.success.iter().chain(&txn.failure).all(|op| matches!(op, Op::Range(_))) {
            let put = self.put(at);
            txn.success.push(Op::Put(put));
        }
        txn
    }

    fn op(&mut self, at: usize, depth: u32) -> Op {
        match self.rng.below(12) {
            0..=6 => Op::Put(self.put(at)),
            7 | 8 => Op::Delete(self.delete()),
            9 | 10 if depth > 0 => Op::Txn(self.txn(at, depth - 1)),
            _ => {
                let main = self.spaces[at].model.now.main;
                Op::Range(self.range(main))
            }
        }
    }

    /// A txn that only reads.
    pub(crate) fn read_only_txn(&mut self, at: usize) -> TxnRequest {
        let visible = self.spaces[at].shown;
        let compare = (0..self.rng.below(2)).map(|_| self.guard(at)).collect();
        let success = (0..1 + self.rng.below(3)).map(|_| Op::Range(self.range(visible))).collect();
        TxnRequest { compare, success, failure: Vec::new() }
    }

    /// A range at now or some revision about `newest`.
    pub(crate) fn range(&mut self, newest: i64) -> RangeRequest {
        let mut request = RangeRequest::new(self.span());
        if self.rng.one_in(2) {
            request.revision = (newest + 1 - self.rng.below(20).cast_signed()).max(0);
        }
        if self.rng.one_in(3) {
            request.limit = self.rng.below(6).cast_signed();
        }
        let orders = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
        let targets = [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
        if self.rng.one_in(3) {
            request.sort_order = orders[self.rng.below(3) as usize];
            request.sort_target = targets[self.rng.below(5) as usize];
        }
        request.keys_only = self.rng.one_in(6);
        request.count_only = self.rng.one_in(6);
        if self.rng.one_in(8) {
            request.min_mod_revision = newest - self.rng.below(10).cast_signed();
        }
        if self.rng.one_in(8) {
            request.max_create_revision = newest - self.rng.below(10).cast_signed();
        }
        request
    }
}
