//! What can go wrong, as values: damage names its file and place, a refused operation says what
//! to do, and a failed sync says that the outcome is unknown.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an engine operation failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a call.
    Io {
        /// The call, as a verb: "write", "sync", "open".
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The byte offset of a read or write.
        offset: Option<u64>,
        /// The system's own error.
        source: Arc<io::Error>,
    },
    /// Bytes on disk are not what was written there.
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it.
        place: Place,
        /// What is wrong there.
        damage: Damage,
    },
    /// Another process (or another handle of this one) has the directory open.
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote into it, usually `pid N`; empty if unknown.
        holder: String,
    },
    /// The directory holds something, but no store.
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// What was found or missing.
        why: String,
    },
    /// A file was written by a version or with features that this build cannot read.
    Unsupported {
        /// The file.
        file: PathBuf,
        /// What was found.
        found: String,
        /// What this build supports.
        supported: String,
    },
    /// A key, value or count is over its maximum (see `limits.rs`).
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The maximum.
        max: u64,
    },
    /// The disk is full where a file has to grow; nothing was written.
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// An earlier write or sync failed; the store reads, but takes no more writes until reopened.
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// An option or request cannot be used.
    Invalid {
        /// What and why.
        why: String,
    },
    /// The store was opened read-only.
    ReadOnly,
    /// The store is closed or closing.
    Closed,
}

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The whole file.
    File,
    /// A byte offset.
    Offset(u64),
    /// A page or extent, by its first 4 KiB unit.
    Unit(u32),
}

/// What is wrong with bytes on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// A checksum does not match its bytes.
    Checksum {
        /// The stored checksum.
        stored: u32,
        /// The checksum of the bytes found.
        computed: u32,
    },
    /// A field is not what the place or the pointer to it demands.
    Mismatch {
        /// The field.
        field: &'static str,
        /// What was expected.
        expected: u64,
        /// What was found.
        found: u64,
    },
    /// A structure cannot be decoded.
    Malformed {
        /// What and why.
        what: &'static str,
    },
    /// The file ends before the structure does.
    Truncated {
        /// Bytes needed.
        needed: u64,
        /// Bytes there.
        found: u64,
    },
}

impl Error {
    /// An [`Error::Io`], or [`Error::NoSpace`] where the system says that the disk is full.
    pub fn io(op: &'static str, path: &Path, offset: Option<u64>, source: io::Error) -> Self {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) && op != "sync" {
            return Error::NoSpace { path: path.to_owned() };
        }
        Error::Io { op, path: path.to_owned(), offset, source: Arc::new(source) }
    }

    /// An [`Error::Corrupt`].
    pub fn corrupt(file: &Path, place: Place, damage: Damage) -> Self {
        Error::Corrupt { file: file.to_owned(), place, damage }
    }

    /// An [`Error::Invalid`].
    pub fn invalid(why: impl Into<String>) -> Self {
        Error::Invalid { why: why.into() }
    }

    /// True if the file or its disk may only be read.
    pub fn is_read_only(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }

    /// True for a missing file or directory.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { op, path, offset: Some(at), source } => {
                write!(f, "cannot {op} {} at offset {at}: {source}", path.display())
            }
            Error::Io { op, path, offset: None, source } => write!(f, "cannot {op} {}: {source}", path.display()),
            Error::Corrupt { file, place, damage } => write!(f, "{}{place} is damaged: {damage}", file.display()),
            Error::Locked { path, holder } if holder.is_empty() => {
                write!(f, "{} is locked: another process has this data directory open", path.display())
            }
            Error::Locked { path, holder } => {
                write!(f, "{} is locked: another process ({holder}) has this data directory open", path.display())
            }
            Error::NotAStore { path, why } => write!(f, "{} is not a polybolt data directory: {why}", path.display()),
            Error::Unsupported { file, found, supported } => {
                write!(f, "{} has {found}, but this build supports {supported}", file.display())
            }
            Error::TooLarge { what, size, max } => write!(f, "{what} of {size} is over the maximum of {max}"),
            Error::NoSpace { path } => {
                write!(f, "no space left to grow {}: free some disk space and try again", path.display())
            }
            Error::Poisoned { cause } => {
                write!(
                    f,
                    "the store takes no more writes because an earlier one failed ({cause}); reopen it to recover"
                )
            }
            Error::Invalid { why } => f.write_str(why),
            Error::ReadOnly => f.write_str("the store was opened read-only"),
            Error::Closed => f.write_str("the store is closed"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File => Ok(()),
            Place::Offset(at) => write!(f, ", offset {at},"),
            Place::Unit(unit) => write!(f, ", unit {unit} (offset {}),", u64::from(*unit) * 4096),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Checksum { stored, computed } => {
                write!(f, "its checksum says {stored:08x}, its bytes say {computed:08x}")
            }
            Damage::Mismatch { field, expected, found } => write!(f, "{field} is {found}, expected {expected}"),
            Damage::Malformed { what } => f.write_str(what),
            Damage::Truncated { needed, found } => write!(f, "{needed} bytes are needed, {found} are there"),
        }
    }
}
