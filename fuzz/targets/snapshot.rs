//! A snapshot's stream with bytes changed, and its checksums put right again: it is refused and the keyspace stays
//! as it was, or it is installed and everything is sound, also after a restart.
//!
//! Input: flags, then the stream.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use polybolt::disk::sim::{SimDisk, Survive};
use polybolt::{Error, Keyspace, Older, RangeRequest, RangeResponse, Routes, Severity, Span};
use polybolt_fuzz::drive::{self, Driven, STORE};
use polybolt_fuzz::{fixture, repair};
use std::sync::{Arc, LazyLock};

const AS_IT_IS: u8 = 1;
const RESTORE: u8 = 2;
const OLDER: u8 = 4;
const AS_IT_WAS_SPLIT: u8 = 8;

static RECEIVER: LazyLock<SimDisk> = LazyLock::new(fixture::receiver);

type Tables = Vec<(bytes::Bytes, bytes::Bytes)>;

/// What anybody can see, but for the lease times.
fn picture(driven: &Driven, ks: &Keyspace) -> Result<(i64, i64, RangeResponse, Vec<i64>, Tables, u128), Error> {
    let mut leases = ks.leases();
    leases.sort_unstable();
    let all = ks.range(&RangeRequest::new(Span::prefix("")))?;
    let tables = driven.blocking(|| ks.table_list("t"))?;
    Ok((ks.revision(), ks.compact_revision(), all, leases, tables, ks.history_hash()))
}

fn check(disk: &SimDisk) {
    let report = polybolt::check_on(Arc::new(disk.clone()), STORE.as_ref(), &mut |_| ()).expect("it can be checked");
    let wrong = report.findings.list.iter().find(|finding| finding.severity != Severity::Note);
    assert!(wrong.is_none(), "{wrong:?}");
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&flags, stream)) = input.split_first() else { return Corpus::Reject };
    let mut stream = stream.to_vec();
    if flags & AS_IT_IS == 0 {
        repair::snapshot(&mut stream);
    }
    let disk = RECEIVER.fork();
    let driven = Driven::open(&disk, STORE, drive::options(), 5).expect("it is sound");
    let ks = driven.engine.keyspace("ks").expect("it is there");
    let before = picture(&driven, &ks).expect("it is sound");
    let older = if flags & OLDER == 0 { Older::Refuse } else { Older::Install };
    let restored = flags & RESTORE != 0;
    let outcome = if restored {
        let routes = if flags & AS_IT_WAS_SPLIT == 0 { Some(Routes::single()) } else { None };
        driven.blocking(|| driven.engine.restore("copy", routes, &stream[..], &mut |_| ())).map(|copy| copy.revision())
    } else {
        fixture::install(&driven, "ks", &stream, older)
    };
    let name = if restored { "copy" } else { "ks" };
    match &outcome {
        Ok(revision) => {
            let installed = driven.engine.keyspace(name).expect("it was just made");
            assert_eq!(installed.revision(), *revision);
            driven.engine.verify(&mut |_| ()).expect("what was installed is sound");
            picture(&driven, &installed).expect("what was installed can be read");
        }
        Err(error) => {
            assert!(matches!(error, Error::Storage(_) | Error::Refused(_)), "{error}");
            assert!(driven.engine.failure().is_none(), "a stream stopped the store: {:?}", driven.engine.failure());
            assert_eq!(driven.engine.keyspaces(), ["ks"]);
            assert_eq!(picture(&driven, &ks).expect("it is sound"), before);
        }
    }
    let now = driven.engine.keyspace(name).ok().map(|ks| picture(&driven, &ks).expect("it is sound"));
    drop(ks);
    driven.close().expect("it closes");
    let disk = disk.after_crash(Survive::Nothing);
    check(&disk.fork());
    let driven = Driven::open(&disk, STORE, drive::options(), 6).expect("it opens again");
    if let Some(now) = now {
        let ks = driven.engine.keyspace(name).expect("it was there");
        assert_eq!(picture(&driven, &ks).expect("it is sound"), now);
    }
    Corpus::Keep
});
