//! Key prefixes to shards, and spans to segments.
//!
//! The longest prefix wins; what no prefix takes goes to the shard `default`. Routes cut the ordered
//! key space into contiguous segments, so that a range is a concatenation over segments.

use crate::request::{Span, SpanEnd};
use bytes::Bytes;
use polybolt_engine::codec::{Reader, put_bytes};
use polybolt_engine::{Damage, TreeClass, TreeSpec, limits};
use std::path::PathBuf;

const CONFIG_VERSION: u8 = 1;
/// The shard that takes the rest.
pub const DEFAULT_SHARD: &str = "default";

/// One shard of a keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOptions {
    /// Its name: letters, digits, `-`, `_`.
    pub name: String,
    /// The key prefixes it takes; none for the shard that takes the rest.
    pub prefixes: Vec<Bytes>,
    /// Bytes of a page: a power of two from 4096 to 65536.
    pub page_bytes: usize,
    /// Not journaled nor synced: empty after an unclean stop (R4).
    pub volatile: bool,
    /// Another directory for its file.
    pub dir: Option<PathBuf>,
}

impl ShardOptions {
    /// A durable shard with the default page size.
    pub fn new(name: impl Into<String>) -> Self {
        ShardOptions {
            name: name.into(),
            prefixes: Vec::new(),
            page_bytes: limits::PAGE_BYTES_DEFAULT,
            volatile: false,
            dir: None,
        }
    }

    /// Takes keys with this prefix too.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<Bytes>) -> Self {
        self.prefixes.push(prefix.into());
        self
    }

    /// Makes it Volatile.
    #[must_use]
    pub fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }
}

/// How a keyspace is split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    shards: Vec<ShardOptions>,
    /// The start of each segment and its shard; the first starts at the empty key.
    segments: Vec<(Bytes, usize)>,
}

/// A part of a span that lies in one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) shard: usize,
    pub(crate) start: Bytes,
    /// None is no bound.
    pub(crate) end: Option<Bytes>,
}

impl Segment {
    /// The key, if it is a segment of one.
    pub(crate) fn single(&self) -> Option<&Bytes> {
        let (last, before) = self.end.as_ref()?.split_last()?;
        (*last == 0 && *before == *self.start).then_some(&self.start)
    }
}

impl Routes {
    /// One shard for everything.
    pub fn single() -> Self {
        Routes::build(vec![ShardOptions::new(DEFAULT_SHARD)])
    }

    /// Events, leases, pods, nodes, secrets and configmaps apart, as large Kubernetes clusters split them.
    pub fn kubernetes() -> Self {
        let shard = |name: &str, prefix: &'static str| ShardOptions::new(name).prefix(prefix);
        Routes::build(vec![
            shard("events", "/registry/events/"),
            shard("leases", "/registry/leases/"),
            shard("pods", "/registry/pods/"),
            shard("nodes", "/registry/minions/"),
            shard("config", "/registry/configmaps/").prefix("/registry/secrets/"),
            ShardOptions::new(DEFAULT_SHARD),
        ])
    }

    /// Routes of your own.
    ///
    /// # Errors
    /// In words, if two shards share a name or a prefix, a prefix is empty, or not exactly one shard
    /// has no prefix.
    pub fn new(shards: Vec<ShardOptions>) -> Result<Self, String> {
        let rest = shards.iter().filter(|shard| shard.prefixes.is_empty()).count();
        if rest != 1 {
            return Err(format!("exactly one shard has to take the rest (no prefix), not {rest}"));
        }
        let mut prefixes: Vec<&Bytes> = shards.iter().flat_map(|shard| &shard.prefixes).collect();
        prefixes.sort_unstable();
        if let Some(pair) = prefixes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("two shards take the prefix {:?}", String::from_utf8_lossy(pair[0])));
        }
        if prefixes.first().is_some_and(|prefix| prefix.is_empty()) {
            return Err("an empty prefix would take everything: leave it out".to_owned());
        }
        for (at, shard) in shards.iter().enumerate() {
            if shards[..at].iter().any(|other| other.name == shard.name) {
                return Err(format!("two shards are named {:?}", shard.name));
            }
            if shard.name == META_TREE {
                return Err(format!("{META_TREE:?} is the name of the keyspace's own tree"));
            }
        }
        Ok(Routes::build(shards))
    }

    /// From text: `kubernetes`, `single`, or `name=prefix,name=prefix,...`; the rest goes to `default`.
    /// `name:volatile=prefix` makes a shard Volatile.
    ///
    /// # Errors
    /// In words, what cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "kubernetes" => return Ok(Routes::kubernetes()),
            "single" => return Ok(Routes::single()),
            _ => {}
        }
        let mut shards: Vec<ShardOptions> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty() && *part != DEFAULT_SHARD) {
            let (name, prefix) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} is not name=prefix (nor kubernetes, nor single)"))?;
            let (name, volatile) = match name.split_once(':') {
                Some((name, "volatile")) => (name, true),
                Some((_, what)) => return Err(format!("{what:?} is nothing that a shard can be; try volatile")),
                None => (name, false),
            };
            let prefix = Bytes::copy_from_slice(prefix.as_bytes());
            match shards.iter_mut().find(|shard| shard.name == name) {
                Some(shard) => {
                    shard.prefixes.push(prefix);
                    shard.volatile |= volatile;
                }
                None => shards.push(ShardOptions { volatile, ..ShardOptions::new(name).prefix(prefix) }),
            }
        }
        shards.push(ShardOptions::new(DEFAULT_SHARD));
        Routes::new(shards)
    }

    /// Floors of the shards of other routes as floors of these: of each the highest of those that its keys had.
    pub(crate) fn floors_from(&self, other: &Routes, floors: &[u64]) -> Vec<u64> {
        let mut found = vec![0; self.shards.len()];
        for segment in self.cut(&Span::prefix("")) {
            let span = Span { key: segment.start, end: segment.end.map_or(SpanEnd::Open, SpanEnd::Before) };
            let before = other.cut(&span).into_iter().map(|segment| floors[segment.shard]);
            found[segment.shard] = before.fold(found[segment.shard], u64::max);
        }
        found
    }

    /// The shards, in the order given.
    pub fn shards(&self) -> &[ShardOptions] {
        &self.shards
    }

    /// Makes one shard Volatile; false if there is none of that name.
    pub fn set_volatile(&mut self, name: &str) -> bool {
        match self.shards.iter_mut().find(|shard| shard.name == name) {
            Some(shard) => {
                shard.volatile = true;
                true
            }
            None => false,
        }
    }

    /// True if a shard is Volatile.
    pub(crate) fn any_volatile(&self) -> bool {
        self.shards.iter().any(|shard| shard.volatile)
    }

    fn build(shards: Vec<ShardOptions>) -> Self {
        let mut starts = vec![Bytes::new()];
        for prefix in shards.iter().flat_map(|shard| &shard.prefixes) {
            starts.push(prefix.clone());
            if let SpanEnd::Before(end) = Span::prefix(prefix.clone()).end {
                starts.push(end);
            }
        }
        starts.sort_unstable();
        starts.dedup();
        let rest = shards.iter().position(|shard| shard.prefixes.is_empty()).unwrap_or(0);
        let owner = |key: &Bytes| {
            let matching = shards.iter().enumerate().flat_map(|(at, shard)| {
                shard.prefixes.iter().filter(|prefix| key.starts_with(prefix)).map(move |prefix| (prefix.len(), at))
            });
            matching.max().map_or(rest, |(_, at)| at)
        };
        let mut segments: Vec<(Bytes, usize)> = Vec::new();
        for start in starts {
            let shard = owner(&start);
            if segments.last().is_none_or(|(_, last)| *last != shard) {
                segments.push((start, shard));
            }
        }
        Routes { shards, segments }
    }

    /// The shard of a key. O(log of the number of segments).
    pub(crate) fn shard_of(&self, key: &[u8]) -> usize {
        let at = self.segments.partition_point(|(start, _)| start[..] <= *key);
        self.segments[at.saturating_sub(1)].1
    }

    /// The parts of a span, ascending.
    pub(crate) fn cut(&self, span: &Span) -> Vec<Segment> {
        let (start, end) = match &span.end {
            SpanEnd::Single => {
                let mut next = span.key.to_vec();
                next.push(0);
                (span.key.clone(), Some(Bytes::from(next)))
            }
            SpanEnd::Before(end) => (span.key.clone(), Some(end.clone())),
            SpanEnd::Open => (span.key.clone(), None),
        };
        if end.as_ref().is_some_and(|end| *end <= start) {
            return Vec::new();
        }
        let first = self.segments.partition_point(|(from, _)| *from <= start).saturating_sub(1);
        let mut parts = Vec::new();
        for (at, (from, shard)) in self.segments.iter().enumerate().skip(first) {
            if end.as_ref().is_some_and(|end| from >= end) {
                break;
            }
            let next = self.segments.get(at + 1).map(|(next, _)| next.clone());
            let part_end = match (&end, next) {
                (Some(end), Some(next)) => Some(end.clone().min(next)),
                (Some(end), None) => Some(end.clone()),
                (None, next) => next,
            };
            parts.push(Segment { shard: *shard, start: start.clone().max(from.clone()), end: part_end });
        }
        parts
    }

    /// The trees of a keyspace: its shards, then its meta tree.
    pub(crate) fn trees(&self) -> Vec<TreeSpec> {
        let mut trees: Vec<TreeSpec> = self
            .shards
            .iter()
            .map(|shard| TreeSpec {
                name: shard.name.clone(),
                page_bytes: shard.page_bytes,
                class: if shard.volatile { TreeClass::Volatile } else { TreeClass::Durable },
                dir: shard.dir.clone(),
            })
            .collect();
        trees.push(TreeSpec { page_bytes: limits::PAGE_BYTES_MIN, ..TreeSpec::new(META_TREE) });
        trees
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![CONFIG_VERSION];
        out.extend_from_slice(&u32::try_from(self.shards.len()).expect("few shards").to_le_bytes());
        for shard in &self.shards {
            put_bytes(&mut out, shard.name.as_bytes());
            out.extend_from_slice(&u32::try_from(shard.prefixes.len()).expect("few prefixes").to_le_bytes());
            shard.prefixes.iter().for_each(|prefix| put_bytes(&mut out, prefix));
        }
        out.into()
    }

    /// The routes of a stored keyspace: names and prefixes from its config, the rest from its trees.
    pub(crate) fn decode(config: &[u8], trees: &[TreeSpec]) -> Result<Self, Damage> {
        let mut routes = Routes::decode_plain(config)?;
        for (at, shard) in routes.shards.iter_mut().enumerate() {
            let tree = trees.get(at).filter(|tree| tree.name == shard.name);
            let tree = tree.ok_or(Damage::Malformed { what: "routes name a shard that has no tree" })?;
            shard.page_bytes = tree.page_bytes;
            shard.volatile = tree.class == TreeClass::Volatile;
            shard.dir.clone_from(&tree.dir);
        }
        Ok(routes)
    }

    /// Names and prefixes only; every shard with the defaults.
    pub(crate) fn decode_plain(config: &[u8]) -> Result<Self, Damage> {
        let mut reader = Reader::new(config);
        if reader.u8()? != CONFIG_VERSION {
            return Err(Damage::Malformed { what: "keyspace routes of an unknown version" });
        }
        let mut shards = Vec::new();
        for _ in 0..reader.u32()? {
            let mut shard = ShardOptions::new(reader.string()?);
            for _ in 0..reader.u32()? {
                shard.prefixes.push(Bytes::copy_from_slice(reader.bytes()?));
            }
            shards.push(shard);
        }
        reader.finish()?;
        Routes::new(shards).map_err(|_| Damage::Malformed { what: "keyspace routes contradict themselves" })
    }
}

/// The keyspace's own tree.
pub(crate) const META_TREE: &str = "meta";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_longest_prefix_wins() {
        let routes = Routes::parse("a=/a/,ab=/a/b/,c=/c").unwrap();
        let name = |key: &str| routes.shards()[routes.shard_of(key.as_bytes())].name.clone();
        assert_eq!(name("/a/x"), "a");
        assert_eq!(name("/a/b/x"), "ab");
        assert_eq!(name("/a/c"), "a");
        assert_eq!(name("/a"), "default");
        assert_eq!(name("/cc"), "c");
        assert_eq!(name("\u{ff}"), "default");
        assert_eq!(name(""), "default");
    }

    proptest! {
        #[test]
        fn segments_are_the_span_in_order(start in "[/acb]{0,4}", end in "[/acb]{0,4}", probe in "[/abc]{0,5}") {
            let routes = Routes::parse("a=/a/,ab=/a/b/,c=/c").unwrap();
            for span in [Span::range(start.clone(), end.clone()), Span::from_key(start.clone()), Span::key(start.clone())] {
                let parts = routes.cut(&span);
                let inside = |part: &Segment| probe.as_bytes() >= &part.start[..] && part.end.as_ref().is_none_or(|end| probe.as_bytes() < &end[..]);
                let holders: Vec<_> = parts.iter().filter(|part| inside(part)).collect();
                prop_assert_eq!(holders.len(), usize::from(span.contains(probe.as_bytes())));
                prop_assert!(holders.iter().all(|part| part.shard == routes.shard_of(probe.as_bytes())));
                prop_assert!(parts.windows(2).all(|pair| pair[0].end.as_ref() == Some(&pair[1].start)));
            }
        }
    }

    #[test]
    fn routes_survive_and_bad_ones_are_refused() {
        let routes = Routes::kubernetes();
        assert_eq!(Routes::decode(&routes.encode(), &routes.trees()).unwrap(), routes);
        assert!(Routes::parse("a=x,b=x").is_err());
        assert!(Routes::parse("a").is_err());
        assert!(Routes::parse("a=").is_err());
        assert!(Routes::parse("meta=/m").is_err());
        assert!(Routes::parse("e:volatile=/e").unwrap().shards()[0].volatile);
    }
}
