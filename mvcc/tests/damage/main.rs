//! Damaged files of every kind: what is answered is right, or an error that names the file (R6, R10, R11);
//! `check` finds it, `salvage` takes what is left, and the scrub meets it while the engine runs.
#![expect(clippy::unwrap_used, reason = "tests")]

mod flips;
mod salvage;
mod scrub;
mod whole;
mod sound;
mod store;
