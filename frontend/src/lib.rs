//! The etcd v3 services on polybolt.
