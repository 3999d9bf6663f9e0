//! Names of records in shared data.

/// The key of a record in shared data that belongs to `namespace`.
///
/// Everything is prefixed, because plugins of one VM share the map, and Istio runs all of them in one.
pub fn record_key(namespace: &str, record: &str) -> String {
    ["rate_limiter/", namespace, "/", record].concat()
}

/// The key of the bucket named `bucket`.
pub fn keyed_bucket_key(namespace: &str, bucket: &str) -> String {
    ["rate_limiter/", namespace, "/key/", bucket].concat()
}
