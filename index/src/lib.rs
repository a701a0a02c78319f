//! An ordered in-memory index from keys to their revisions.
#![forbid(unsafe_code)]
