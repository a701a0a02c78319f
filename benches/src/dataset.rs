//! Keys and values as a Kubernetes API server makes them, the same on every run and for every engine.
//!
//! 60 % pods, 20 % events, 5 % leases, 5 % nodes, the rest configmaps, secrets, service accounts and
//! replica sets; about 55 bytes a key. Values are 512 bytes of a pool that does
//! not compress, or as long and as compressible as objects are.

const APPS: [&str; 16] = [
    "frontend",
    "checkout",
    "payments",
    "inventory",
    "search",
    "catalog",
    "gateway",
    "accounts",
    "shipping",
    "ledger",
    "notifier",
    "reports",
    "sessions",
    "ranking",
    "mailer",
    "scheduler",
];
const ALPHANUMERIC: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What objects have in common.
const FIELDS: [&str; 16] = [
    "\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":",
    "\"creationTimestamp\":\"2026-01-01T00:00:00Z\",",
    "\"labels\":{\"app.kubernetes.io/name\":\"",
    "\"ownerReferences\":[{\"controller\":true,\"uid\":\"",
    "\"resourceVersion\":\"1000000\",\"generation\":1",
    "\"imagePullPolicy\":\"IfNotPresent\",\"image\":\"",
    "\"resources\":{\"requests\":{\"cpu\":\"100m\"}},",
    "\"terminationMessagePath\":\"/dev/termination\"",
    "\"restartPolicy\":\"Always\",\"dnsPolicy\":\"",
    "\"volumeMounts\":[{\"readOnly\":true,\"name\":\"",
    "\"serviceAccountName\":\"default\",\"nodeName\":",
    "\"conditions\":[{\"type\":\"Ready\",\"status\":\"T",
    "\"lastTransitionTime\":\"2026-01-01T00:00:00Z",
    "\"managedFields\":[{\"fieldsType\":\"FieldsV1\"",
    "\"containerStatuses\":[{\"restartCount\":0,\"id",
    "\"tolerations\":[{\"operator\":\"Exists\",\"key\":",
];

/// A small generator of numbers (splitmix64), so that runs are the same everywhere.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Numbers(seed)
    }

    /// The next one.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// A length of an object: lognormal, so that the median and the hundredth longest are what [`Data`] says.
    fn object_bytes(&mut self) -> usize {
        let mut share = || (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let (radius, turn) = ((-2.0 * (1.0 - share()).ln()).sqrt(), share() * std::f64::consts::TAU);
        let bytes = 2048.0 * (1.49 * radius * turn.cos()).exp();
        (bytes as usize).clamp(64, OBJECT_BYTES_MAX)
    }

    fn name(&mut self, len: usize) -> String {
        (0..len).map(|_| char::from(ALPHANUMERIC[self.below(ALPHANUMERIC.len())])).collect()
    }

    fn app(&mut self) -> &'static str {
        APPS[self.below(APPS.len())]
    }
}

/// Bytes of a value of [`Data::Flat`].
pub const VALUE_BYTES: usize = 512;
/// The longest value of [`Data::Objects`].
const OBJECT_BYTES_MAX: usize = 1 << 20;

/// What values are like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Data {
    /// 512 bytes that do not compress.
    #[default]
    Flat,
    /// As objects are: half of them up to 2 KiB, one in a hundred above 64 KiB, about 4 times compressible.
    Objects,
}

/// Values cut out of a pool of bytes.
#[derive(Debug)]
pub struct Values(Data, Vec<u8>);

impl Values {
    /// Of 512 bytes, the same on every run.
    pub fn new() -> Self {
        Values::like(Data::Flat)
    }

    /// The same on every run.
    pub fn like(data: Data) -> Self {
        let mut numbers = Numbers::new(42);
        let pool = match data {
            Data::Flat => (0..1 << 20).flat_map(|_| numbers.next_u64().to_le_bytes()).collect(),
            // A field that is everywhere, then what is an object's own.
            Data::Objects => (0..OBJECT_BYTES_MAX / 4)
                .flat_map(|_| {
                    let field = FIELDS[numbers.below(FIELDS.len())].bytes();
                    field.chain(numbers.next_u64().to_le_bytes()).collect::<Vec<u8>>()
                })
                .collect(),
        };
        Values(data, pool)
    }

    /// The value of a number.
    pub fn of(&self, number: u64) -> &[u8] {
        let mut numbers = Numbers::new(number);
        let bytes = match self.0 {
            Data::Flat => VALUE_BYTES,
            Data::Objects => numbers.object_bytes(),
        };
        let from = numbers.below(self.1.len() - bytes);
        &self.1[from..from + bytes]
    }
}

impl Default for Values {
    fn default() -> Self {
        Values::new()
    }
}

/// `count` different keys, in the order in which they are made.
pub fn keys(count: usize) -> Vec<String> {
    let mut numbers = Numbers::new(0x706f_6c79);
    let mut keys = Vec::with_capacity(count);
    let nodes = (count / 20).max(1);
    for at in 0..count {
        let (block, kind) = (at / 100, at % 100);
        // Counted within its kind: names that are not drawn long enough to differ carry it.
        let node = |base: usize| (block * 5 + kind - base) * 7919 % nodes + (block * 5 + kind - base) / nodes * nodes;
        let namespace = |numbers: &mut Numbers| 1 + numbers.below(200);
        keys.push(match kind {
            0..60 => {
                let namespace = 1 + (block * 60 + kind) % 200;
                let (app, set, pod) = (numbers.app(), numbers.name(10), numbers.name(5));
                format!("/registry/pods/namespace-{namespace:03}/{app}-{set}-{pod}")
            }
            60..80 => {
                let (space, app, set, pod) =
                    (namespace(&mut numbers), numbers.app(), numbers.name(10), numbers.name(5));
                format!("/registry/events/namespace-{space:03}/{app}-{set}-{pod}.{:016x}", numbers.next_u64())
            }
            80..85 => format!("/registry/leases/kube-node-lease/node-{:06}", node(80)),
            85..90 => format!("/registry/minions/node-{:06}", node(85)),
            kind => {
                let (what, infix) = match kind {
                    90..95 => ("configmaps", "config-"),
                    95..98 => ("secrets", "token-"),
                    98 => ("serviceaccounts", ""),
                    _ => ("replicasets", ""),
                };
                let (space, app) = (namespace(&mut numbers), numbers.app());
                format!("/registry/{what}/namespace-{space:03}/{app}-{infix}{}{at:x}", numbers.name(3))
            }
        });
    }
    keys
}

/// All numbers below `count`, each once, in an order that is neither rising nor falling.
pub fn scattered(count: usize) -> impl Iterator<Item = usize> {
    let step = (count as f64 * 0.618_034) as usize | 1;
    let step = (step..).find(|step| gcd(*step, count.max(1)) == 1).unwrap_or(1);
    let mut at = 0;
    (0..count).map(move |_| {
        at = (at + step) % count;
        at
    })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn keys_differ_and_are_about_55_bytes_long() {
        let keys = keys(50_000);
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        let mean = keys.iter().map(String::len).sum::<usize>() / keys.len();
        assert!((52..=58).contains(&mean), "{mean}");
        assert_eq!(scattered(50_000).collect::<BTreeSet<_>>().len(), 50_000);
    }

    #[test]
    fn objects_are_as_long_as_they_should_be() {
        let values = Values::like(Data::Objects);
        let mut lens: Vec<usize> = (0..20_000).map(|number| values.of(number).len()).collect();
        lens.sort_unstable();
        let (median, p99) = (lens[10_000], lens[19_800]);
        assert!((1900..2200).contains(&median), "{median}");
        assert!((56_000..76_000).contains(&p99), "{p99}");
    }
}
