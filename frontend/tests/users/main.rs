//! Users and roles: a lockstep with etcd, and what no reference says.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod lockstep;
mod ours;
mod rules;
mod side;
