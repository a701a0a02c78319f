//! polybolt.
