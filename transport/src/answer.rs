//! Reading the callee's answer, byte by byte as it arrives, at the head of a dialled stream.

use std::io;
use std::task::{Context, Poll, ready};

use quinn::RecvStream;

use crate::header::{Answer, HeaderError, PREAMBLE_BYTES, Preamble, Refusal};
use crate::stream::read_error;

/// Why a dialled stream is not connected.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The callee refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The callee answered what is no answer.
    #[error("the peer's answer cannot be read: {0}")]
    Malformed(#[from] HeaderError),
    /// The stream or the connection was lost before the answer; `UnexpectedEof` if the callee
    /// ended it without one.
    #[error("no answer from the peer: {0}")]
    Lost(#[from] io::Error),
}

/// An answer half read. Keeps its place across polls, so it may be cancelled and resumed.
#[derive(Debug)]
pub(crate) struct AnswerReader {
    bytes: Vec<u8>,
    filled: usize,
    preamble: Option<Preamble>,
}

impl Default for AnswerReader {
    fn default() -> Self {
        Self { bytes: vec![0; PREAMBLE_BYTES], filled: 0, preamble: None }
    }
}

impl AnswerReader {
    /// `Ok` once the callee accepted.
    pub(crate) fn poll(
        &mut self,
        stream: &mut RecvStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), AnswerError>> {
        loop {
            while self.filled < self.bytes.len() {
                let read =
                    ready!(stream.poll_read(cx, &mut self.bytes[self.filled..])).map_err(read_error)?;
                if read == 0 {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
                }
                self.filled += read;
            }
            let Some(preamble) = self.preamble else {
                self.begin_body()?;
                continue;
            };
            return Poll::Ready(match Answer::decode(preamble, &self.bytes[PREAMBLE_BYTES..])? {
                Answer::Accepted => Ok(()),
                Answer::Refused(refusal) => Err(refusal.into()),
            });
        }
    }

    fn begin_body(&mut self) -> Result<(), HeaderError> {
        let first = self.bytes.first_chunk().expect("the preamble's bytes are here");
        let preamble = Preamble::decode(*first)?;
        self.bytes.resize(PREAMBLE_BYTES + preamble.body_bytes(), 0);
        self.preamble = Some(preamble);
        Ok(())
    }
}

impl From<AnswerError> for io::Error {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Refused(refusal) => Self::new(io::ErrorKind::ConnectionRefused, refusal),
            AnswerError::Malformed(error) => Self::new(io::ErrorKind::InvalidData, error),
            AnswerError::Lost(error) => error,
        }
    }
}
