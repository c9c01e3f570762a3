//! PURE: the frames of a message: five bytes that say what follows, and how much.

use crate::messages::MessageError;
use crate::proxy::heads::PASSED_HEAD_BYTES_MAX;

/// What each frame begins with: its kind, and its length in big endian.
pub(crate) const PREAMBLE_BYTES: usize = 5;

const HEAD: u8 = 1;
const DATA: u8 = 2;
const TRAILERS: u8 = 3;
const BROKEN: u8 = 4;

/// What a message that is broken off says of that: a code of HTTP/2.
pub(crate) const CODE_BYTES: usize = 4;

/// With a kind: no frame of the message comes after this one.
const LAST: u8 = 0x80;

/// With the last frame of an answer: its sender has read the request to its end, and takes another on the stream.
const KEEPS: u8 = 0x40;

/// Whether a message goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It does.
    Inside,
    /// It ends with this frame.
    Last {
        /// Whether the stream takes another exchange. Of an answer only; in a request it means nothing.
        keeps: bool,
    },
}

impl Place {
    /// Whether it ends.
    pub(crate) fn is_last(self) -> bool {
        self != Self::Inside
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// See [`super::head`].
    Head,
    /// A part of the body, of any length: it is passed on as it comes.
    Data,
    /// Headers.
    Trailers,
    /// The message comes to no end, and why. A reset would say so too, and take away what has not been read before it.
    Broken,
}

/// A frame's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    /// Of what follows; of a head and of trailers at most [`PASSED_HEAD_BYTES_MAX`].
    pub(crate) bytes: u32,
}

impl Preamble {
    /// As it is sent.
    pub(crate) fn encode(self) -> [u8; PREAMBLE_BYTES] {
        let kind = match self.kind {
            Kind::Head => HEAD,
            Kind::Data => DATA,
            Kind::Trailers => TRAILERS,
            Kind::Broken => BROKEN,
        };
        let [a, b, c, d] = self.bytes.to_be_bytes();
        let place = match self.place {
            Place::Inside => 0,
            Place::Last { keeps: false } => LAST,
            Place::Last { keeps: true } => LAST | KEEPS,
        };
        [kind | place, a, b, c, d]
    }

    /// Reads it.
    pub(crate) fn decode(preamble: [u8; PREAMBLE_BYTES]) -> Result<Self, MessageError> {
        let [kind, bytes @ ..] = preamble;
        let bytes = u32::from_be_bytes(bytes);
        let place = match (kind & LAST != 0, kind & KEEPS != 0) {
            (true, keeps) => Place::Last { keeps },
            (false, false) => Place::Inside,
            (false, true) => return Err(MessageError::Malformed("an end of what goes on")),
        };
        let kind = match kind & !(LAST | KEEPS) {
            HEAD => Kind::Head,
            DATA => Kind::Data,
            TRAILERS => Kind::Trailers,
            BROKEN => Kind::Broken,
            _ => return Err(MessageError::Malformed("a frame of unknown kind")),
        };
        match kind {
            Kind::Head | Kind::Trailers if bytes as usize > PASSED_HEAD_BYTES_MAX => {
                Err(MessageError::Malformed("a head that is longer than any may be"))
            }
            Kind::Trailers if !place.is_last() => Err(MessageError::Malformed("trailers that end nothing")),
            Kind::Broken if place != (Place::Last { keeps: false }) || bytes as usize != CODE_BYTES => {
                Err(MessageError::Malformed("a broken end that says nothing"))
            }
            // It would cost its reader something, and its sender five bytes.
            Kind::Data if bytes == 0 && !place.is_last() => {
                Err(MessageError::Malformed("a frame of nothing"))
            }
            kind => Ok(Self { kind, place, bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: Place = Place::Last { keeps: false };

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        for kind in [Kind::Head, Kind::Data, Kind::Trailers] {
            for keeps in [false, true] {
                let place = Place::Last { keeps };
                let preamble = Preamble { kind, place, bytes: PASSED_HEAD_BYTES_MAX as u32 };
                assert_eq!(Preamble::decode(preamble.encode()).expect("ours"), preamble);
            }
        }
        let long = |kind| Preamble { kind, place: END, bytes: PASSED_HEAD_BYTES_MAX as u32 + 1 }.encode();
        assert!(Preamble::decode(long(Kind::Data)).is_ok(), "data are passed on as they come");
        for wrong in [
            long(Kind::Head),
            long(Kind::Trailers),
            [TRAILERS, 0, 0, 0, 0],
            [0; 5],
            [5, 0, 0, 0, 0],
            [DATA | KEEPS, 0, 0, 0, 1],
            [DATA, 0, 0, 0, 0],
            [BROKEN, 0, 0, 0, 4],
            [BROKEN | LAST, 0, 0, 0, 3],
            [BROKEN | LAST | KEEPS, 0, 0, 0, 4],
        ] {
            assert!(matches!(Preamble::decode(wrong), Err(MessageError::Malformed(_))), "{wrong:?}");
        }
    }
}
