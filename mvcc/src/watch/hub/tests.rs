use super::*;
use crate::request::{KeyValue, Span};

fn request(span: Span) -> WatchRequest {
    WatchRequest { span, start_revision: 0, no_put: false, no_delete: false, prev_kv: false }
}

fn event(key: &'static str, main: u64) -> Event {
    let kv =
        KeyValue { key: Bytes::from_static(key.as_bytes()), mod_revision: main.cast_signed(), ..KeyValue::default() };
    Event::new(EventKind::Put, kv, None)
}

fn mains(take: Take) -> Vec<i64> {
    match take {
        Take::Events { events, .. } => events.iter().map(|event| event.kv().mod_revision).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn events_wait_until_they_are_visible_and_reach_those_who_match() {
    let hub = Hub::default();
    let (_, one) = hub.register(request(Span::key("a")), 3, 2, 1 << 20);
    let (_, all) = hub.register(request(Span::prefix("")), 3, 2, 1 << 20);
    assert!(hub.interest(b"a").any && hub.interest(b"b").any);
    hub.queue(3, vec![event("a", 3), event("b", 3)], 0);
    hub.queue(4, vec![event("b", 4)], 0);
    assert_eq!(one.take(), Take::Nothing);
    hub.publish(3);
    assert_eq!(mains(one.take()), [3]);
    assert_eq!(mains(all.take()), [3, 3]);
    hub.publish(4);
    assert_eq!(one.take(), Take::Nothing);
    assert_eq!(mains(all.take()), [4]);
}

#[test]
fn a_full_queue_lags_from_the_first_revision_that_did_not_fit() {
    let hub = Hub::default();
    let (id, feed) = hub.register(request(Span::key("a")), 3, 2, 1);
    for main in 3..6 {
        hub.queue(main, vec![event("a", main)], 0);
    }
    hub.publish(5);
    assert_eq!(hub.counts(), (1, 1, 0));
    assert_eq!(mains(feed.take()), [3]);
    assert_eq!(hub.counts(), (1, 0, 1));
    assert_eq!(feed.take(), Take::Behind(4));
    assert!(!hub.sync(&feed));
    assert!(!hub.is_watched() && !hub.interest(b"a").any, "a writer has nothing to do with it");
    feed.caught_up(5, vec![event("a", 4), event("a", 5)]);
    assert!(!hub.sync(&feed), "the next revision may be on its way without its events");
    hub.enlist(&feed, 5);
    assert!(hub.sync(&feed) && hub.interest(b"a").any);
    assert_eq!(mains(feed.take()), [4, 5]);
    hub.queue(6, vec![event("a", 6)], 0);
    hub.publish(6);
    assert_eq!(mains(feed.take()), [6]);
    // What is queued when it ends is nobody's; ending it again changes nothing (WCH-33).
    hub.queue(7, vec![event("a", 7)], 0);
    hub.publish(7);
    assert_eq!(hub.counts(), (0, 1, 4));
    hub.close();
    hub.cancel(id);
    hub.cancel(id);
    assert_eq!(hub.counts(), (0, 0, 4));
    assert_eq!(feed.take(), Take::Ended);
    assert_eq!((hub.len(), hub.is_watched()), (0, false));
}

#[test]
fn a_watcher_is_synced_only_from_revisions_on_that_were_begun_after_it_was_enlisted() {
    let hub = Hub::default();
    // Up to 7 is applied, up to 4 published: nobody knew of it when 5, 6 and 7 were encoded.
    hub.publish(4);
    let (_, feed) = hub.register(request(Span::key("a")), 2, 7, 1 << 20);
    feed.caught_up(4, vec![event("a", 3)]);
    assert_eq!(mains(feed.take()), [3]);
    assert!(feed.is_to_be_enlisted(4) && !feed.is_to_be_enlisted(5));
    hub.enlist(&feed, 7);
    assert!(!hub.sync(&feed));
    hub.queue(8, vec![event("a", 8)], 0);
    hub.publish(7);
    assert_eq!(feed.take(), Take::Behind(5));
    feed.caught_up(7, vec![event("a", 5)]);
    assert!(hub.sync(&feed));
    hub.publish(8);
    assert_eq!(mains(feed.take()), [5, 8]);
}

#[test]
fn one_that_stops_reading_while_it_catches_up_is_struck_off() {
    let hub = Hub::default();
    let (id, feed) = hub.register(request(Span::prefix("")), 2, 9, 1 << 20);
    hub.enlist(&feed, 9);
    for main in 10..10 + u64::from(MISSED_MAX) {
        assert!(hub.is_watched());
        hub.queue(main, vec![event("a", main)], 0);
        hub.publish(main);
    }
    assert!(!hub.is_watched());
    assert_eq!(feed.take(), Take::Behind(2), "it misses nothing by that");
    hub.cancel(id);
    assert!(!hub.is_watched());
}

#[test]
fn what_a_queued_event_keeps_alive_is_counted_not_what_it_shows() {
    let hub = Hub::default();
    let small = event("a", 0).kept_bytes();
    let (_, feed) = hub.register(request(Span::key("a")), 3, 2, 10 * small);
    hub.queue(3, vec![event("a", 3)], 0);
    // A small change of a large txn.
    hub.queue(4, vec![event("a", 4), event("b", 4)], 10 * small);
    hub.queue(5, vec![event("a", 5)], 0);
    hub.publish(5);
    assert_eq!(mains(feed.take()), [3]);
    assert_eq!(feed.take(), Take::Behind(4));
    assert_eq!(feed.state.lock().bytes, 0, "what was taken is not counted");
}
