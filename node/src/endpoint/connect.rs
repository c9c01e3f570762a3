//! Byte streams to one instance over the mesh.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use starling_gossip::identity::ServiceName;
use starling_transport::connection::{Connection, OpenError};
use starling_transport::header::{RefusalReason, StreamHeader, StreamKind};
use starling_transport::pool::{Pool, Target as Peer};
use starling_transport::stream::MeshStream;
use starling_transport::verify::Expected;

use crate::route::Target;
use crate::upstream::messages::{OpenMessages, Opened, accepted};
use crate::upstream::{Connect, ConnectFailure, HttpVersion, NextHop};

/// A request waits so long for a connection to a new peer (two round trips) before it looks
/// elsewhere; the dial goes on behind it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// Opens streams to an instance over the mesh.
pub(crate) struct MeshConnect {
    pool: Pool,
    peer: Peer,
    service: ServiceName,
    instance: String,
    connection: ArcSwapOption<Connection>,
}

impl MeshConnect {
    /// To `target`, which must prove to be it.
    pub(super) fn new(pool: Pool, service: ServiceName, target: &Target) -> Self {
        let expected = Expected::Exactly(target.owner.identity.clone());
        let peer = Peer { address: target.address, expected };
        let instance = target.instance.to_string();
        Self { pool, peer, service, instance, connection: ArcSwapOption::empty() }
    }

    /// Whether a connection to its node stands.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.load().as_ref().is_some_and(|connection| !connection.is_closed())
    }

    /// Whether its node has work outstanding, here or on another connection, and nothing has come of it.
    pub(super) fn is_silent(&self) -> bool {
        let connection = self.connection.load();
        connection.as_ref().is_some_and(|connection| !connection.is_closed() && !connection.is_answering())
    }

    /// Whether its node was silent until the connection was given up, and has not been reached since.
    pub(super) fn is_given_up(&self) -> bool {
        self.connection.load().as_ref().is_some_and(|connection| connection.is_given_up())
    }

    /// What is silent belongs to a life of its node that is over: the next work asks for a connection anew.
    pub(super) fn forget_silent(&self) {
        if self.is_silent() || self.is_given_up() {
            self.connection.store(None);
        }
    }

    /// A stream of opaque bytes.
    pub(super) async fn open_tcp(&self) -> Result<MeshStream, ConnectFailure> {
        let (service, instance) = (self.service.clone(), self.instance.clone());
        self.open(StreamKind::Tcp { service, instance }).await.map(|(stream, _)| stream)
    }

    /// A connection to its node, dialled where there is none.
    pub(super) async fn connection(&self) -> Result<Connection, ConnectFailure> {
        let dial = tokio::time::timeout(CONNECT_PATIENCE, self.pool.connect(&self.peer));
        match dial.await {
            Ok(Ok(connection)) => {
                self.connection.store(Some(Arc::new(connection.clone())));
                Ok(connection)
            }
            Ok(Err(error)) => Err(ConnectFailure::Unreachable(error.to_string())),
            Err(_elapsed) => Err(ConnectFailure::Unreachable(format!(
                "no connection to {} within {CONNECT_PATIENCE:?}",
                self.peer.address
            ))),
        }
    }

    /// A stream whose callee has accepted it.
    async fn open(&self, kind: StreamKind) -> Result<(MeshStream, Connection), ConnectFailure> {
        let Opened { mut stream, connection } = self.begin(kind).await?;
        accepted(stream.accepted(), &connection).await?;
        Ok((stream, connection))
    }

    /// A stream to which there is no answer yet.
    async fn begin(&self, kind: StreamKind) -> Result<Opened, ConnectFailure> {
        let connection = self.connection().await?;
        let opened = connection.open(&StreamHeader::new(kind)).await;
        let stream = opened.map_err(|error| match error {
            // It is there and has no room: nothing speaks against the streams it carries already.
            OpenError::TooManyStreams { .. } => {
                ConnectFailure::Refused(RefusalReason::Overloaded, error.to_string())
            }
            error => ConnectFailure::Unreachable(error.to_string()),
        })?;
        Ok(Opened { stream, connection })
    }
}

impl OpenMessages for MeshConnect {
    async fn open(&self, version: HttpVersion) -> Result<Opened, ConnectFailure> {
        let (service, instance) = (self.service.clone(), self.instance.clone());
        self.begin(match version {
            HttpVersion::Http1 => StreamKind::Http1Messages { service, instance },
            HttpVersion::Http2 => StreamKind::Http2Messages { service, instance },
        })
        .await
    }
}

impl Connect for MeshConnect {
    type Io = MeshStream;

    async fn connect(&self, version: HttpVersion) -> Result<(MeshStream, NextHop), ConnectFailure> {
        let (service, instance) = (self.service.clone(), self.instance.clone());
        let kind = match version {
            HttpVersion::Http1 => StreamKind::Http1 { service, instance },
            HttpVersion::Http2 => StreamKind::Http2 { service, instance },
        };
        let (stream, connection) = self.open(kind).await?;
        Ok((stream, NextHop::Peer(connection)))
    }
}
