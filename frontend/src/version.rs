//! The versions that clients are told.

/// The version of etcd whose API this is, for clients that look (K8S-13).
pub const ETCD_VERSION: &str = "3.6.5";
/// The version of the cluster, and of what it stores.
pub const CLUSTER_VERSION: &str = "3.6.0";
