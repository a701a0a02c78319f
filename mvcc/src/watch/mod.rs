//! Who wants which key, feeding them, and catching up from history.

mod ranges;
mod hub;

pub(crate) use hub::{Feed, Hub, Take};
