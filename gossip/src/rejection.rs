//! Why a record or renewal is refused. A refusal changes nothing in the catalogue.

use crate::record::BoundError;
use crate::signature::UnsealError;
use crate::svid::ChainError;

/// Why a record or renewal is refused; the catalogue is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not a sealed record, or one of another format.
    #[error(transparent)]
    Unreadable(#[from] UnsealError),
    /// Breaks a bound.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// The chain proves nothing.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The chain proves somebody else, or the record was filed under another owner's name.
    #[error("the record's owner is not the one its chain or its place names")]
    WrongName,
    /// The identity may not announce the service.
    #[error("the identity may not announce this service")]
    MayNotAnnounce,
    /// Somebody else's signature, or altered bytes.
    #[error("the signature is not the owner's over these bytes")]
    BadSignature,
    /// A link that does not lead to the owner's anchor.
    #[error("the renewal is not the owner's")]
    BadRenewal,
    /// A word about somebody whom its speaker does not watch.
    #[error("the speaker does not watch whom it speaks of")]
    NotAWatcher,
    /// A renewal that leaps further than time explains; one such is checked now and then.
    #[error("the renewal is further ahead than the time that has passed")]
    Implausible,
    /// Known already, or older than what is known.
    #[error("nothing newer than what is known")]
    Stale,
    /// A renewal of somebody not known yet.
    #[error("the owner is not known")]
    UnknownOwner,
    /// A table is full.
    #[error("the catalogue holds as many as it may")]
    Full,
}

impl Rejected {
    /// A word for metrics; there are as many as there are variants.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Bound(_) => "bound",
            Self::Chain(ChainError::NotValidNow(_)) => "expired",
            Self::Chain(ChainError::Revoked(_)) => "revoked",
            Self::Chain(_) => "chain",
            Self::WrongName => "wrong_name",
            Self::MayNotAnnounce => "may_not_announce",
            Self::BadSignature => "bad_signature",
            Self::BadRenewal => "bad_renewal",
            Self::NotAWatcher => "not_a_watcher",
            Self::Implausible => "implausible",
            Self::Stale => "stale",
            Self::UnknownOwner => "unknown_owner",
            Self::Full => "full",
        }
    }
}
