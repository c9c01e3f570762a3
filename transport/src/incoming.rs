//! A stream a peer opened to us, waiting for its one answer.

use quinn::{RecvStream, SendStream};

use crate::connection::{PeerIdentity, WorkGuard};
use crate::header::{Answer, Refusal, RefusalReason, StreamHeader};
use crate::stream::{BeginError, MeshStream};
use crate::telemetry;

/// A stream a peer opened, its header read. Dropped without an answer, it is reset.
pub struct IncomingStream {
    /// Who opened it, as proved in the handshake.
    pub peer: PeerIdentity,
    /// What it is to carry.
    pub header: StreamHeader,
    /// The stream itself, to be accepted or refused.
    pub stream: UnansweredStream,
}

/// The callee's end before its answer.
pub struct UnansweredStream {
    stream: MeshStream,
}

impl UnansweredStream {
    pub(crate) fn new(send: SendStream, recv: RecvStream, work: WorkGuard) -> Self {
        Self { stream: MeshStream::called(send, recv, work) }
    }

    /// Tells the caller that it is connected. Fails if the caller is gone, or takes no answer for
    /// [`crate::limits::FIRST_WRITE_TIMEOUT`]; then the stream is reset.
    pub async fn accept(mut self) -> Result<MeshStream, BeginError> {
        self.stream.write_first(&Answer::Accepted.encode()).await?;
        Ok(self.stream)
    }

    /// Tells the caller why it is not connected, within the same bound. Only the first 256 bytes of `detail` are sent.
    pub async fn refuse(self, reason: RefusalReason, detail: impl Into<String>) {
        self.answer(Refusal::new(reason, detail)).await;
    }

    pub(crate) async fn answer(mut self, refusal: Refusal) {
        telemetry::stream_refused(refusal.reason);
        let answer = Answer::Refused(refusal).encode();
        // A caller that does not take the answer hears the reset instead.
        if self.stream.write_first(&answer).await.is_ok() {
            self.stream.end_refused();
        }
    }
}
