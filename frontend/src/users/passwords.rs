//! Hashing passwords, which is slow on purpose: on threads that may block, and never on all of them.

use super::AuthError;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::Status;

/// What bcrypt looks at.
const PASSWORD_BYTES_MAX: usize = 72;

#[derive(Debug)]
pub(super) struct Passwords {
    cost: u32,
    /// As many at once as there are cores: more would only take threads from long reads.
    turns: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new(cost: u32) -> Passwords {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Passwords { cost, turns: Arc::new(Semaphore::new(cores)) }
    }

    pub(super) async fn hash(&self, password: String) -> Result<Bytes, Status> {
        // More would be cut off unseen.
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(AuthError::PasswordTooLong.into());
        }
        let cost = self.cost;
        let hash = self.run(move || bcrypt::hash(password, cost)).await?;
        hash.map(Bytes::from).map_err(|error| Status::internal(error.to_string()))
    }

    /// True if it is the password; never for a hash that is none.
    pub(super) async fn matches(&self, password: String, hash: Bytes) -> Result<bool, Status> {
        let compare = move || str::from_utf8(&hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false));
        self.run(compare).await
    }

    async fn run<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.expect("it is never closed");
        // The turn ends with the work, also where the caller has gone.
        let work = tokio::task::spawn_blocking(move || {
            let result = run();
            drop(turn);
            result
        });
        work.await.map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_hash_alone() {
        let passwords = Passwords::new(4);
        let hash = passwords.hash("geheim".into()).await.unwrap();
        assert!(hash.starts_with(b"$2"));
        assert!(passwords.matches("geheim".into(), hash.clone()).await.unwrap());
        assert!(!passwords.matches("Geheim".into(), hash).await.unwrap());
        assert!(!passwords.matches(String::new(), Bytes::new()).await.unwrap());
        assert!(passwords.hash("x".repeat(72)).await.is_ok());
        let long = passwords.hash("x".repeat(73)).await.unwrap_err();
        assert_eq!(long.message(), "bcrypt: password length exceeds 72 bytes");
    }

    #[tokio::test]
    async fn hashes_that_etcd_made_are_understood() {
        // A test vector of crypt_blowfish, with the version that etcd writes.
        let hash = Bytes::from_static(b"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW");
        assert!(Passwords::new(4).matches("U*U".into(), hash).await.unwrap());
    }
}
