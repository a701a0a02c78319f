//! Users, their roles, and what they may do (AUTH-1..8).
//!
//! [`Users`] keeps one immutable [`State`] that a change replaces as a whole, after its edits of the
//! metadata tables are durable. A request takes the state that is current when it comes, together with who
//! asks, as a [`Caller`], and is judged by that state alone. A change is answered only once no request that
//! is judged by an older state is running: nothing that a change forbids happens after its answer.
//!
//! With authentication off, a request costs one atomic load.
//!
//! Not here: which call needs which right. That is in `caller` for keys and leases, which etcd judges as a
//! whole request, and in each service for the rest.

mod error;
mod ranges;
mod state;
mod tokens;
mod passwords;
mod caller;
mod store;

pub(crate) use caller::Caller;
pub(crate) use error::AuthError;
pub(crate) use state::{Change, State};
pub(crate) use store::Users;
