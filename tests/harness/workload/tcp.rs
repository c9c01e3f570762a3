//! A TCP server that runs one test's conversation on every connection.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::wait::within;

/// A running server; dropped, it stops, and its connections with it.
pub struct Tcp {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Tcp {
    /// Starts one at a port of `ip` that the kernel chooses.
    pub async fn start<F>(ip: Ipv4Addr, talk: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(talk(stream));
            }
        });
        Self { address, accepting }
    }

    /// Starts one that says what it hears.
    pub async fn echo(ip: Ipv4Addr) -> Self {
        Self::start(ip, async |mut stream| {
            let (mut reader, mut writer) = stream.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        })
        .await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads until the end, or an error, and says which.
pub async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    within("the end of a stream", stream.read_to_end(&mut bytes)).await?;
    Ok(bytes)
}

/// Bytes that differ from place to place, so that what is lost, doubled or moved is seen.
pub fn sized_bytes(count: usize) -> Vec<u8> {
    // The Weyl sequence: cheap, and without short periods.
    let words = (0..count.div_ceil(8) as u64).map(|index| index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes = Vec::with_capacity(count + 8);
    words.for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    bytes.truncate(count);
    bytes
}
