//! What a gossip message is for, told from its head: for counting, never for judging.

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// Repair: "this is what I know of", to begin.
    Syn,
    /// Repair: "this is what I know of, and what you lack."
    SynAck,
    /// Repair: "and this is what you lacked."
    Ack,
    /// News, renewals, and questions about them.
    Talk,
    /// "Are you there?"
    Ping,
    /// "I am."
    Pong,
    /// A newcomer asks for everything.
    Join,
    /// A part of everything.
    Welcome,
    /// Anything else.
    Other,
}

/// Where a message's kind stands, in chitchat's format and in this crate's.
pub(crate) const KIND_AT: usize = 3;

impl MessageKind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Syn,
        Self::SynAck,
        Self::Ack,
        Self::Talk,
        Self::Ping,
        Self::Pong,
        Self::Join,
        Self::Welcome,
        Self::Other,
    ];

    /// Of a message as a link carries it. chitchat's own kinds are small numbers; packed by this crate they
    /// are 16 more.
    pub fn of(message: &[u8]) -> Self {
        match message.get(KIND_AT) {
            Some(0 | 16) => Self::Syn,
            Some(1 | 17) => Self::SynAck,
            Some(2 | 18) => Self::Ack,
            Some(32) => Self::Talk,
            Some(33) => Self::Ping,
            Some(34) => Self::Pong,
            Some(35) => Self::Join,
            Some(36) => Self::Welcome,
            _ => Self::Other,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::SynAck => "syn-ack",
            Self::Ack => "ack",
            Self::Talk => "talk",
            Self::Ping => "ping",
            Self::Pong => "pong",
            Self::Join => "join",
            Self::Welcome => "welcome",
            Self::Other => "other",
        }
    }
}
