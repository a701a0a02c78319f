//! Why a load could not be run, or is no measurement.

use std::error::Error as _;
use std::fmt;
use tonic::Status;

/// Why a load could not be run. A request that fails while it runs is counted in the report instead.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for makes no sense; what to change.
    Options(String),
    /// There is no such address.
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers there.
    Unreachable {
        /// As it was given.
        endpoint: String,
        /// What the system says.
        why: String,
    },
    /// The server refused something that the load needs before it begins.
    Refused {
        /// Who refused.
        endpoint: String,
        /// What it was for.
        doing: &'static str,
        /// What it said.
        status: Box<Status>,
    },
    /// There are other keys among those of the load.
    Foreign {
        /// Who has them.
        endpoint: String,
        /// Where the load's keys are.
        prefix: String,
        /// How many the load has.
        expected: u64,
        /// How many are there.
        found: i64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Options(what) => f.write_str(what),
            Error::Endpoint { endpoint, why } => {
                write!(f, "--endpoints: {endpoint} is not an address like 127.0.0.1:2379 or http://host:2379: {why}")
            }
            Error::Unreachable { endpoint, why } => {
                write!(f, "no server answers at {endpoint} ({why}): start one there, or name others with --endpoints")
            }
            Error::Refused { endpoint, doing, status } => {
                let hint = match status.code() {
                    tonic::Code::Unauthenticated | tonic::Code::PermissionDenied | tonic::Code::InvalidArgument => {
                        "; if it has users, --user name:password needs one that may read and write under --prefix"
                    }
                    tonic::Code::Unimplemented => "; is it a server of the etcd v3 API?",
                    _ => "",
                };
                write!(f, "{endpoint} refused {doing}: {}{hint}", message(status))
            }
            Error::Foreign { endpoint, prefix, expected, found } => write!(
                f,
                "{endpoint} has {found} keys where the load's {expected} under {prefix} are: other keys are among \
                 them, so choose another --prefix, or delete what is under this one"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// What a status says, with what is behind it.
pub(super) fn message(status: &Status) -> String {
    match status.source() {
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => status.message().to_owned(),
    }
}

/// An error and its causes in one line, none twice.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
        next = cause.source();
    }
    words.join(": ")
}
