//! Carries traffic: outbound from local programs into the mesh, inbound from the mesh to the
//! local workload.
//!
//! It decides nothing about routes; it asks [`crate::live`]. Failures become answers in
//! [`failure`] alone.

pub(crate) mod access;
pub(crate) mod affinity;
pub(crate) mod arrival;
mod aside;
pub(crate) mod attempt;
pub(crate) mod body;
pub(crate) mod calling;
pub(crate) mod carry;
pub(crate) mod denials;
pub(crate) mod expectation;
pub(crate) mod failure;
pub(crate) mod forward;
pub(crate) mod gate;
pub(crate) mod gathered;
pub(crate) mod headers;
pub(crate) mod heads;
mod hexadecimal;
pub(crate) mod hops;
pub(crate) mod inbound;
pub(crate) mod intake;
pub(crate) mod journey;
pub(crate) mod kept;
pub(crate) mod listener;
pub(crate) mod listeners;
pub(crate) mod local_socket;
pub(crate) mod messages;
pub(crate) mod name;
pub(crate) mod normal;
pub(crate) mod one_piece;
pub(crate) mod outbound;
pub(crate) mod outbound_tcp;
pub(crate) mod overdue;
pub(crate) mod own_headers;
pub(crate) mod proxy_protocol;
pub(crate) mod refusal;
pub(crate) mod reported_load;
pub(crate) mod request_id;
pub(crate) mod spare;
pub(crate) mod spoken;
pub(crate) mod strict;
pub(crate) mod timer;
pub(crate) mod translate;
pub(crate) mod tunnel;
pub(crate) mod websocket;
pub(crate) mod workload;
pub(crate) mod workload_tls;
