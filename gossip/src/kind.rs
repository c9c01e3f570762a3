//! What a gossip message is for, told from its head: for counting, never for judging.

/// The step of an exchange that a message takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// "This is what I know of", to begin.
    Syn,
    /// "This is what I know of, and what you lack."
    SynAck,
    /// "And this is what you lacked."
    Ack,
    /// Anything else.
    Other,
}

impl MessageKind {
    /// Of a message as a link carries it; the format is described in the wire check.
    pub fn of(message: &[u8]) -> Self {
        match message.get(3) {
            Some(0) => Self::Syn,
            Some(1) => Self::SynAck,
            Some(2) => Self::Ack,
            _ => Self::Other,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::SynAck => "syn-ack",
            Self::Ack => "ack",
            Self::Other => "other",
        }
    }
}
