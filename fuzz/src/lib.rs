//! What the targets and the program that writes their seeds share.

pub mod calls;
pub mod drive;
pub mod fixture;
pub mod repair;
