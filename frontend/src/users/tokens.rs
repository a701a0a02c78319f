//! Tokens of those who are logged in: in memory only, so a restart ends them all, as in etcd.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// The random part of a token: 91 bits.
const LETTER_COUNT: usize = 16;

#[derive(Debug)]
pub(super) struct Tokens {
    ttl: Duration,
    live: Mutex<HashMap<String, Login>>,
}

#[derive(Debug)]
struct Login {
    user: Arc<str>,
    until: Instant,
}

impl Tokens {
    pub(super) fn new(ttl: Duration) -> Tokens {
        Tokens { ttl, live: Mutex::default() }
    }

    /// Whose token it is; using it makes it live on.
    pub(super) fn user(&self, token: &str, now: Instant) -> Option<Arc<str>> {
        let mut live = self.live.lock();
        let login = live.get_mut(token).filter(|login| login.until > now)?;
        login.until = now + self.ttl;
        Some(Arc::clone(&login.user))
    }

    /// A new token, if `still` says, while every other change of tokens waits, that the login is good.
    pub(super) fn assign(&self, user: &str, index: i64, now: Instant, still: impl FnOnce() -> bool) -> Option<String> {
        let token = format!("{}.{index}", letters());
        let mut live = self.live.lock();
        if !still() {
            return None;
        }
        // A login is slow because of its password: looking through all the others does not count.
        live.retain(|_, login| login.until > now);
        live.insert(token.clone(), Login { user: user.into(), until: now + self.ttl });
        Some(token)
    }

    pub(super) fn drop_user(&self, user: &str) {
        self.live.lock().retain(|_, login| &*login.user != user);
    }

    pub(super) fn drop_all(&self) {
        self.live.lock().clear();
    }
}

fn letters() -> String {
    let mut text = String::with_capacity(LETTER_COUNT);
    while text.len() < LETTER_COUNT {
        let mut bytes = [0; LETTER_COUNT];
        getrandom::fill(&mut bytes).expect("the system gives random bytes");
        // Each letter four times among 208 of the 256 values, so that none is likelier; the rest is thrown away.
        let even = bytes.iter().filter(|byte| usize::from(**byte) < LETTERS.len() * 4);
        text.extend(even.map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])));
    }
    text.truncate(LETTER_COUNT);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_as_long_as_it_is_used() {
        let tokens = Tokens::new(Duration::from_secs(10));
        let mut now = Instant::now();
        let token = tokens.assign("alice", 7, now, || true).unwrap();
        let (letters, index) = token.split_once('.').unwrap();
        assert!(letters.len() == 16 && letters.bytes().all(|byte| byte.is_ascii_alphabetic()));
        assert_eq!(index, "7");
        for _ in 0..5 {
            now += Duration::from_secs(9);
            assert_eq!(tokens.user(&token, now).as_deref(), Some("alice"));
        }
        now += Duration::from_secs(11);
        assert_eq!(tokens.user(&token, now), None);
        assert_eq!(tokens.user("guess.7", now), None);
        // The next login throws it away.
        let other = tokens.assign("bob", 8, now, || true).unwrap();
        assert_eq!(tokens.live.lock().len(), 1);
        assert_eq!(tokens.assign("bob", 8, now, || false), None);
        tokens.drop_user("alice");
        assert_eq!(tokens.user(&other, now).as_deref(), Some("bob"));
        tokens.drop_user("bob");
        assert_eq!(tokens.user(&other, now), None);
    }
}
