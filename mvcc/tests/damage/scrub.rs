//! The scrub finds what nobody reads, at its rate, and the engine goes on.

use crate::store::{Driven, bytes_of, file_of, open_with, options, routes};
use polybolt::disk::Disk;
use polybolt::disk::sim::SimDisk;
use polybolt::{Options, Place, PutRequest, RangeRequest, Span};
use std::time::Duration;

const UNIT: usize = 4096;
const RATE: u64 = 1 << 20;

fn filled(disk: &SimDisk, rate: u64) -> Driven {
    disk.create_dir("/data".as_ref()).unwrap();
    let options = Options { scrub_bytes_per_second: rate, open_files_max: 2, ..options() };
    let mut driven = open_with(disk, "/data/store", options).unwrap();
    for name in ["ks", "other"] {
        let ks = driven.engine.create_keyspace(name, routes()).unwrap();
        for n in 0..300u64 {
            let key = format!("{}{n}", ["a", "m", "x"][(n % 3) as usize]);
            let value = vec![n as u8; if n % 20 == 4 { 9000 } else { 500 }];
            driven.finish(ks.put(PutRequest::new(key, value))).unwrap();
        }
    }
    driven.settle();
    driven
}

fn run(driven: &mut Driven, time: Duration) {
    let step = Duration::from_millis(20);
    for _ in 0..time.as_millis() / step.as_millis() {
        driven.jobs.run_until_idle(1000);
        driven.jobs.advance(step);
    }
}

#[test]
fn a_flipped_page_that_nobody_reads_is_found_and_the_engine_goes_on() {
    // Leaf, branch, extent.
    for kind in [2, 3, 4] {
        let disk = SimDisk::new(kind.into());
        let mut driven = filled(&disk, RATE);
        run(&mut driven, Duration::from_secs(5));
        let before = driven.engine.scrubbed();
        assert_eq!((before.rounds, &before.damage[..]), (1, &[][..]));
        let file = file_of(&disk, "ks.mid.");
        let bytes = bytes_of(&disk, &file);
        // Not one that the trees have left behind: the scrub is not to look at those.
        let spoilt: Vec<usize> = (1..bytes.len() / UNIT)
            .filter(|unit| bytes[unit * UNIT + 4] == kind && bytes[unit * UNIT + 12] as usize == *unit)
            .filter(|unit| {
                let copy = disk.after_crash(polybolt::disk::sim::Survive::All);
                copy.flip_bit(&file, (unit * UNIT + 70) as u64, 1);
                !crate::store::check(&copy).unwrap().findings.is_clean()
            })
            .collect();
        let at = (spoilt[spoilt.len() / 2] * UNIT + 70) as u64;
        assert!(disk.flip_bit(&file, at, 1));
        run(&mut driven, Duration::from_secs(5));
        assert_eq!(driven.engine.scrubbed().rounds, 1, "a round is not begun at once");
        driven.jobs.advance(Duration::from_secs(3600));
        run(&mut driven, Duration::from_secs(5));
        let found = driven.engine.scrubbed();
        assert_eq!(found.rounds, 2);
        let damage: Vec<_> = found.damage.iter().map(|damage| (damage.file.clone(), damage.place)).collect();
        assert_eq!(damage, [(file.clone(), Place::Unit((at / UNIT as u64) as u32))]);
        assert_eq!(driven.engine.stats().scrub_damage, 1);
        // It is said of the keyspace that has it, and everything else goes on.
        let (ks, other) = (driven.engine.keyspace("ks").unwrap(), driven.engine.keyspace("other").unwrap());
        assert_eq!(ks.status().damage, found.damage);
        assert_eq!(other.status().damage, []);
        assert!(driven.engine.failure().is_none());
        driven.finish(ks.put(PutRequest::new("a-new", "1"))).unwrap();
        assert_eq!(ks.range(&RangeRequest::new(Span::prefix("a"))).unwrap().kvs.len(), 101);
        // A place that is whole again is no longer listed after the next round.
        disk.flip_bit(&file, at, 1);
        driven.jobs.advance(Duration::from_secs(3600));
        run(&mut driven, Duration::from_secs(5));
        assert_eq!(driven.engine.scrubbed().damage, []);
    }
}

#[test]
fn the_scrub_keeps_to_its_rate_and_passes_over_what_is_dropped() {
    let disk = SimDisk::new(1);
    let mut driven = filled(&disk, 100_000);
    while driven.engine.scrubbed().rounds == 0 {
        run(&mut driven, Duration::from_secs(1));
    }
    driven.jobs.advance(Duration::from_secs(3600));
    let begun = driven.engine.scrubbed();
    let mut most = 0;
    for second in 1..=3 {
        run(&mut driven, Duration::from_secs(1));
        let read = driven.engine.scrubbed().bytes - begun.bytes;
        assert!(read <= second * 100_000 + 2 * (140 << 10), "{read} bytes in {second} s");
        most = read;
        let now = driven.engine.stats();
        assert_eq!(now.scrub_round_bytes, read, "of the round under way");
        // 30 values of three units, 570 rows of 500 bytes.
        assert!((680_000..900_000).contains(&now.scrub_round_of), "{now:?}");
    }
    assert!(most > 200_000, "{most}");
    driven.engine.drop_keyspace("ks").unwrap();
    run(&mut driven, Duration::from_secs(30));
    let scrubbed = driven.engine.scrubbed();
    assert_eq!((scrubbed.rounds, scrubbed.damage.len()), (begun.rounds + 1, 0));
    assert_eq!((scrubbed.round_bytes, scrubbed.round_of), (0, 0), "between rounds");
}

#[test]
fn no_rate_is_no_scrub() {
    let disk = SimDisk::new(1);
    let mut driven = filled(&disk, 0);
    run(&mut driven, Duration::from_secs(5));
    assert_eq!(driven.engine.scrubbed(), polybolt::Scrubbed::default());
}
