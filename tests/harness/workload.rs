//! Servers behind the nodes: small, honest, and able to say what reached them.

mod http;
mod tcp;
mod tls;

pub use http::Http;
pub use tcp::{Tcp, read_to_end, sized_bytes};
pub use tls::{AppAuthority, ServerTls};
