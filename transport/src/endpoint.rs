//! The node's one UDP port: gossip and traffic, dialled and accepted, all share it.
//!
//! It binds the socket, sets QUIC's parameters, and closes in good order. Everything else is the
//! pool's and the acceptor's.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rand::Rng as _;
use rand::rngs::StdRng;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::mpsc;

use starling_gossip::link::Received;

use crate::accept::{Acceptor, UnderWay};
use crate::credentials::Credentials;
use crate::dial::Dialler;
use crate::incoming::IncomingStream;
use crate::limits::{
    CALLS_PER_CONNECTION_AT_FIRST, CLOSE_FLUSH, DATAGRAM_RECEIVE_BUFFER_BYTES, DATAGRAM_SEND_BUFFER_BYTES,
    GOSSIP_RECEIVED_MAX, HALF_OPEN_BYTES_MAX, HALF_OPEN_MAX, HALF_OPEN_TOTAL_BYTES_MAX, IDLE_TIMEOUT,
    INCOMING_STREAMS_MAX, INITIAL_RTT, KEEP_ALIVE, MESSAGES_PER_CONNECTION_MAX, SOCKET_BUFFER_BYTES, Windows,
};
use crate::packet_size;
use crate::pool::Pool;
use crate::serve::Inbox;
use crate::supervise::close_code;
use crate::tls::{self, ResetKeys};
use crate::waiting::Waiting;

/// A bound port and the connections over it. Cheap to clone. It lives until it is closed, not until
/// handles drop: the tasks behind it hold it too.
#[derive(Clone, Debug)]
pub struct Endpoint {
    quinn: quinn::Endpoint,
    local_addr: SocketAddr,
    pool: Pool,
}

/// What peers send us. Both queues are bounded; what does not fit is refused or dropped.
pub struct Incoming {
    /// Calls whose header was read; each wants an answer.
    pub streams: mpsc::Receiver<IncomingStream>,
    /// Gossip messages, for [`crate::gossip_link::GossipLink`].
    pub gossip: mpsc::Receiver<Received>,
}

/// Why the port cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on UDP {listen}: {why}; is another node running there?")]
pub struct BindError {
    /// The address asked for.
    pub listen: SocketAddr,
    /// What the system says.
    pub why: io::Error,
}

impl Endpoint {
    /// Binds `listen` and starts to accept. `[::]` takes IPv4 as well. Connections hold what `windows`
    /// allow. Must run in a tokio
    /// runtime; `rng` is seeded by the caller and used for nothing secret.
    pub fn bind(
        listen: SocketAddr,
        credentials: Credentials,
        windows: Windows,
        rng: StdRng,
    ) -> Result<(Self, Incoming), BindError> {
        let socket = bind_socket(listen).map_err(|why| BindError { listen, why })?;
        Self::on_socket(socket, credentials, windows, rng).map_err(|why| BindError { listen, why })
    }

    /// As [`Endpoint::bind`], with a UDP socket that is bound already.
    pub fn on_socket(
        socket: UdpSocket,
        credentials: Credentials,
        windows: Windows,
        mut rng: StdRng,
    ) -> io::Result<(Self, Incoming)> {
        enlarge_buffers(SockRef::from(&socket));
        let provider = Arc::new(tls::crypto_provider());
        let listen = socket.local_addr()?;
        let transport = Transport { windows };
        let config = server_config(&provider, &credentials, transport.to(listen));
        let quinn = quinn::Endpoint::new(
            endpoint_config(&credentials, &mut rng)?,
            Some(config.clone()),
            socket,
            Arc::new(Waiting),
        )?;
        let local_addr = quinn.local_addr()?;

        let (streams_in, streams) = mpsc::channel(INCOMING_STREAMS_MAX);
        let (gossip_in, gossip) = mpsc::channel(GOSSIP_RECEIVED_MAX);
        let inbox = Inbox { streams: streams_in, gossip: gossip_in, calls_max: windows.calls_max };
        let dialler = Dialler { endpoint: quinn.clone(), provider: provider.clone(), transport };
        let pool = Pool::new(dialler, credentials.clone(), inbox, rng);
        tokio::spawn(pool.close_revoked());
        let under_way = UnderWay::default();
        let acceptor = Acceptor { pool: pool.clone(), credentials, provider, config, transport, under_way };
        tokio::spawn(acceptor.run(quinn.clone()));
        Ok((Self { quinn, local_addr, pool }, Incoming { streams, gossip }))
    }

    /// Where it listens; the port is the one the system chose if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The connections, dialled and accepted.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Closes. Dialling and accepting end at once; up to `grace` passes while streams are open or
    /// anything written is not acknowledged. Then every connection is closed.
    pub async fn close(&self, grace: Duration) {
        self.pool.stop_dialling();
        self.quinn.set_server_config(None);
        let _ = tokio::time::timeout(grace, self.idle()).await;
        self.quinn.close(VarInt::from_u32(close_code::SHUTDOWN), b"the node stops");
        let _ = tokio::time::timeout(CLOSE_FLUSH, self.quinn.wait_idle()).await;
    }

    async fn idle(&self) {
        // Once in a node's life; not worth a notification from every stream.
        while self.pool.is_busy() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn bind_socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// The system caps both (net.core.rmem_max); less is slower and not wrong.
fn enlarge_buffers(socket: SockRef<'_>) {
    for result in
        [socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES), socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)]
    {
        if let Err(error) = result {
            tracing::debug!(%error, "socket buffers stay as they are");
        }
    }
}

fn endpoint_config(credentials: &Credentials, rng: &mut StdRng) -> io::Result<EndpointConfig> {
    let keys = ResetKeys::derive(credentials.current().svid().private_key().secret_der());
    let mut config = EndpointConfig::new(Arc::new(keys.token));
    // quinn answers only ids it could have made, so these must outlive a restart as well.
    let mark = keys.connection_id;
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(mark)));
    config.rng_seed(Some(rng.random()));
    config.max_udp_payload_size(packet_size::PAYLOAD_BYTES_MAX).map_err(io::Error::other)?;
    Ok(config)
}

fn server_config(
    provider: &Arc<rustls::crypto::CryptoProvider>,
    credentials: &Credentials,
    transport: Arc<TransportConfig>,
) -> ServerConfig {
    let (crypto, _) = tls::quic_server(provider, credentials);
    let mut config = ServerConfig::with_crypto(crypto);
    config
        .transport_config(transport)
        .max_incoming(HALF_OPEN_MAX)
        .incoming_buffer_size(HALF_OPEN_BYTES_MAX)
        .incoming_buffer_size_total(HALF_OPEN_TOTAL_BYTES_MAX);
    config
}

/// What all connections have in common.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    windows: Windows,
}

impl Transport {
    /// QUIC's parameters for a connection with `peer`.
    pub(crate) fn to(self, peer: SocketAddr) -> Arc<TransportConfig> {
        let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("half a minute is a valid idle timeout");
        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(CALLS_PER_CONNECTION_AT_FIRST))
            .max_concurrent_uni_streams(VarInt::from_u32(MESSAGES_PER_CONNECTION_MAX))
            .stream_receive_window(VarInt::from_u32(self.windows.stream_bytes))
            .receive_window(VarInt::from_u32(self.windows.connection_bytes))
            .send_window(self.windows.send_bytes)
            .max_idle_timeout(Some(idle))
            .keep_alive_interval(Some(KEEP_ALIVE))
            .initial_rtt(INITIAL_RTT)
            .mtu_discovery_config(Some(packet_size::discovery(peer)))
            .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER_BYTES))
            .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER_BYTES);
        Arc::new(config)
    }
}
