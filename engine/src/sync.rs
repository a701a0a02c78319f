//! Locks, atomics and threads as everything here takes them: those of parking_lot and the standard library.
//!
//! With the feature `loom` or `shuttle` they are those of a schedule explorer, so that the models in
//! `tests/` run the real code in orders that a machine rarely takes. Not here: `Arc`, which the explorers
//! leave to the standard library, and scoped threads, which share no more than a list of work.

#[cfg(any(feature = "loom", feature = "shuttle"))]
pub use explored::{Condvar, ManyReaders, Mutex, MutexGuard, RwLock, atomic, thread};
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub use readers::ManyReaders;
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub use std::{sync::atomic, thread};

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod readers {
    use crossbeam::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
    use std::sync::PoisonError;

    /// A lock for what all threads read all the time: each of them has its part of it, and writes to no memory that
    /// others read. A writer takes all parts, which costs it some hundred nanoseconds.
    #[derive(Debug, Default)]
    pub struct ManyReaders<T>(ShardedLock<T>);

    impl<T> ManyReaders<T> {
        /// A lock of `value`.
        pub fn new(value: T) -> Self {
            ManyReaders(ShardedLock::new(value))
        }

        /// As `parking_lot::RwLock::read`.
        pub fn read(&self) -> ShardedLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        /// As `parking_lot::RwLock::write`.
        pub fn write(&self) -> ShardedLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

#[cfg(any(feature = "loom", feature = "shuttle"))]
mod explored {
    //! The faces of parking_lot over locks of an explorer, whose faces are those of the standard library.

    #[cfg(feature = "loom")]
    use loom::sync;
    #[cfg(not(feature = "loom"))]
    use shuttle::sync;

    #[cfg(feature = "loom")]
    pub use loom::{sync::atomic, thread};
    #[cfg(not(feature = "loom"))]
    pub use shuttle::{sync::atomic, thread};

    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;
    use std::time::Duration;

    /// As `parking_lot::Mutex`.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(sync::Mutex<T>);

    /// As `parking_lot::MutexGuard`. Empty only while a [`Condvar`] has it.
    #[derive(Debug)]
    pub struct MutexGuard<'a, T>(&'a Mutex<T>, Option<sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        /// As `parking_lot::Mutex::new`.
        pub fn new(value: T) -> Self {
            Mutex(sync::Mutex::new(value))
        }

        /// As `parking_lot::Mutex::lock`.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(self, Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }

        /// As `parking_lot::Mutex::try_lock`.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok().map(|held| MutexGuard(self, Some(held)))
        }

        /// As `parking_lot::Mutex::into_inner`.
        pub fn into_inner(self) -> T {
            self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.1.as_ref().expect("nobody else sees it while a condition is waited for")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.1.as_mut().expect("nobody else sees it while a condition is waited for")
        }
    }

    /// As `parking_lot::Condvar`.
    #[derive(Debug, Default)]
    pub struct Condvar(sync::Condvar);

    impl Condvar {
        /// As `parking_lot::Condvar::notify_all`.
        pub fn notify_all(&self) {
            self.0.notify_all();
        }

        /// As `parking_lot::Condvar::wait`.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            guard.1 = guard.1.take().map(|held| self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        }

        /// As `parking_lot::Condvar::wait_for`, with the time always over as soon as others had a turn:
        /// explorers know no time.
        pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) {
            drop(guard.1.take());
            thread::yield_now();
            guard.1 = guard.0.lock().1;
        }
    }

    /// As `parking_lot::RwLock`.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        /// As `parking_lot::RwLock::new`.
        pub fn new(value: T) -> Self {
            RwLock(sync::RwLock::new(value))
        }

        /// As `parking_lot::RwLock::read`.
        pub fn read(&self) -> sync::RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        /// As `parking_lot::RwLock::write`.
        pub fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// As `readers::ManyReaders`.
    pub type ManyReaders<T> = RwLock<T>;
}
