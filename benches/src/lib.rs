//! Workloads over polybolt.
