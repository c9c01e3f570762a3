//! How large the head of a message may be: one rule for every hop, so that what the first one takes in is
//! not refused by the second.
//!
//! Too large a head is refused by whoever reads it first: 431 for a request.

/// What a client or a workload may send, in HTTP/1.1 as bytes of the head, in HTTP/2 as RFC 9113,
/// section 6.5.2, counts. Envoy stops at 60 KiB, nginx at 32.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How many headers they may send in HTTP/1.1. Between sidecars there may be a hundred, as many as hyper reads without
/// allocating; those that sidecars and hyper add are eight at most.
pub(crate) const HEADERS_MAX: usize = 100 - 8;

/// What sidecars add to it: the caller's identity (2,048 bytes at most by SPIFFE-ID, section 2.3), a trace,
/// a length or an authority, and flags; with what HTTP/2 counts for each of them.
const ADDED_BYTES_MAX: usize = 4 * 1024;

/// What one sidecar may send another.
pub(crate) const PASSED_HEAD_BYTES_MAX: usize = HEAD_BYTES_MAX + ADDED_BYTES_MAX;
