//! Messages as they are sent on a stream.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::Reason;
use http_body::{Body, Frame};
use starling_transport::stream::SendHalf;

use crate::messages::frame::{CODE_BYTES, Kind, Place, Preamble};
use crate::messages::head;

/// Shorter data are copied beside what goes with them: a piece of its own would keep all that it came in with until the
/// peer has acknowledged it.
pub(super) const COPIED_BYTES_MAX: usize = 2 * 1024;

/// So much is gathered, while there is more at once, before it is sent.
const GATHERED_BYTES_MAX: usize = 16 * 1024;

/// Why a message was not sent to its end.
#[derive(Debug)]
pub(crate) enum Unsent<E> {
    /// The peer takes no more of it, or the stream is lost.
    Stream(io::Error),
    /// The body broke.
    Body(E),
}

/// Sends a message: `head` is its first frame, and not its last. What there is of `body` at once goes with it; the last
/// frame says whether the stream takes another exchange, which is asked then.
pub(crate) async fn message<B>(
    stream: &mut SendHalf,
    head: BytesMut,
    mut body: B,
    mut keeps: impl FnMut() -> bool,
) -> Result<(), Unsent<B::Error>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut gathered = head;
    loop {
        let next = poll_fn(|context| match Pin::new(&mut body).poll_frame(context) {
            // Nothing is held back while the next is waited for.
            Poll::Pending if !gathered.is_empty() => Poll::Ready(Next::Nothing),
            polled => polled.map(Next::Frame),
        });
        let is_last = match next.await {
            Next::Nothing => {
                write(stream, &mut gathered, Bytes::new()).await?;
                continue;
            }
            Next::Frame(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    let is_last = body.is_end_stream();
                    let place = if is_last { Place::Last { keeps: keeps() } } else { Place::Inside };
                    gather(stream, &mut gathered, data, place).await?;
                    is_last
                }
                Err(frame) => {
                    gathered.unsplit(trailers(frame, keeps()));
                    true
                }
            },
            Next::Frame(Some(Err(error))) => {
                write(stream, &mut gathered, Bytes::new()).await?;
                return Err(Unsent::Body(error));
            }
            Next::Frame(None) => {
                put_preamble(&mut gathered, 0, Place::Last { keeps: keeps() });
                true
            }
        };
        if is_last {
            return write(stream, &mut gathered, Bytes::new()).await;
        }
    }
}

/// Ends a message that is not at its end.
pub(crate) async fn broken(stream: &mut SendHalf, reason: Reason) -> io::Result<()> {
    let preamble =
        Preamble { kind: Kind::Broken, place: Place::Last { keeps: false }, bytes: CODE_BYTES as u32 };
    let frame = [&preamble.encode()[..], &u32::from(reason).to_be_bytes()].concat();
    stream.write_chunk(frame.into()).await
}

enum Next<E> {
    /// Not yet.
    Nothing,
    Frame(Option<Result<Frame<Bytes>, E>>),
}

async fn gather<E>(
    stream: &mut SendHalf,
    gathered: &mut BytesMut,
    mut data: Bytes,
    place: Place,
) -> Result<(), Unsent<E>> {
    if data.is_empty() && !place.is_last() {
        return Ok(());
    }
    // What no frame can say the length of is several.
    while data.len() > u32::MAX as usize {
        let first = data.split_to(u32::MAX as usize);
        put_preamble(gathered, u32::MAX, Place::Inside);
        write(stream, gathered, first).await?;
    }
    put_preamble(gathered, data.len() as u32, place);
    if data.len() <= COPIED_BYTES_MAX {
        gathered.put_slice(&data);
        if gathered.len() < GATHERED_BYTES_MAX {
            return Ok(());
        }
        data = Bytes::new();
    }
    write(stream, gathered, data).await
}

async fn write<E>(stream: &mut SendHalf, gathered: &mut BytesMut, data: Bytes) -> Result<(), Unsent<E>> {
    let first = std::mem::take(gathered).freeze();
    let written = match (first.is_empty(), data.is_empty()) {
        (true, true) => Ok(()),
        (false, true) => stream.write_chunk(first).await,
        _ => stream.write_chunks(&mut [first, data]).await,
    };
    written.map_err(Unsent::Stream)
}

fn put_preamble(gathered: &mut BytesMut, bytes: u32, place: Place) {
    gathered.put_slice(&Preamble { kind: Kind::Data, place, bytes }.encode());
}

fn trailers(frame: Frame<Bytes>, keeps: bool) -> BytesMut {
    // There are no others, and none that are empty say nothing.
    head::encode_trailers(&frame.into_trailers().unwrap_or_default(), Place::Last { keeps })
}
