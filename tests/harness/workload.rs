//! Servers behind the nodes: small, honest, and able to say what reached them.

mod http;
mod tcp;

pub use http::Http;
pub use tcp::{Tcp, read_to_end, sized_bytes};
