//! This node's identity while it changes: the current SVID and trust bundle.
//!
//! Whoever holds [`Credentials`] sees a rotation at once: new handshakes use the new pair, live
//! connections go on. A pair that would not be accepted by others is refused, and the old one
//! stays. Reading files is [`crate::credential_files`]' work.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use starling_gossip::clock::{Clock, WallTime};
use starling_gossip::identity::SpiffeId;
use starling_gossip::svid::{ChainError, Svid, TrustBundle, Usage, VerifiedIdentity};

/// The current identity and the clock that judges others. Cheap to clone; all clones see a
/// rotation.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

struct Shared {
    id: SpiffeId,
    current: ArcSwap<CurrentIdentity>,
    rotations: watch::Sender<u64>,
    clock: Clock,
}

/// One SVID and the bundle that goes with it.
#[derive(Debug)]
pub struct CurrentIdentity {
    svid: Arc<Svid>,
    bundle: Arc<TrustBundle>,
    certified_key: Arc<CertifiedKey>,
}

/// How strictly our own chain is judged.
type Verify =
    fn(&TrustBundle, &[CertificateDer<'_>], Usage, WallTime) -> Result<VerifiedIdentity, ChainError>;

/// Why an SVID and bundle cannot be this node's. The ones before stay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// The bundle that others have would refuse us.
    #[error("our own certificate is not accepted by our own trust bundle: {0}")]
    Unaccepted(#[from] ChainError),
    /// A node's records are its identity's; another identity is another node.
    #[error(
        "the SPIFFE ID changed from {old} to {new}; a node keeps its identity, restart it to give it another"
    )]
    IdentityChanged {
        /// Who we are.
        old: SpiffeId,
        /// Who the new certificate says.
        new: SpiffeId,
    },
    /// A key TLS cannot sign with.
    #[error("the private key cannot be used for TLS: {0}")]
    Key(String),
}

impl Credentials {
    /// Checks the pair as peers will: the SVID must lead to the bundle, for both ends of a call.
    pub fn new(svid: Svid, bundle: TrustBundle, clock: Clock) -> Result<Self, RotationError> {
        let current = CurrentIdentity::new(svid, bundle, TrustBundle::verify, &clock)?;
        let id = current.svid.id().clone();
        let shared =
            Shared { id, current: ArcSwap::from_pointee(current), rotations: watch::Sender::new(0), clock };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Replaces the pair. The identity must stay the same; a refused pair changes nothing. Our own
    /// chain must be valid now unless it stays as it is.
    pub fn replace(&self, svid: Svid, bundle: TrustBundle) -> Result<(), RotationError> {
        if *svid.id() != self.shared.id {
            let (old, new) = (self.shared.id.clone(), svid.id().clone());
            return Err(RotationError::IdentityChanged { old, new });
        }
        // While only whom we believe changes, a calendar by which our own certificate is not valid
        // must not hold up a revocation.
        let is_held = self.current().svid.chain() == svid.chain();
        let verify = if is_held { TrustBundle::verify_apart_from_time } else { TrustBundle::verify };
        let current = CurrentIdentity::new(svid, bundle, verify, &self.shared.clock)?;
        self.shared.current.store(Arc::new(current));
        self.shared.rotations.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Who we are. Never changes.
    pub fn id(&self) -> &SpiffeId {
        &self.shared.id
    }

    /// What new handshakes use.
    pub fn current(&self) -> Arc<CurrentIdentity> {
        self.shared.current.load_full()
    }

    /// Counts rotations, and so tells of each.
    pub fn rotations(&self) -> watch::Receiver<u64> {
        self.shared.rotations.subscribe()
    }

    /// The clock certificates are judged by.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl CurrentIdentity {
    fn new(svid: Svid, bundle: TrustBundle, verify: Verify, clock: &Clock) -> Result<Self, RotationError> {
        let wall = clock.wall();
        verify(&bundle, svid.chain(), Usage::Server, wall)?;
        verify(&bundle, svid.chain(), Usage::Client, wall)?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(svid.private_key())
            .map_err(|error| RotationError::Key(error.to_string()))?;
        let certified_key = Arc::new(CertifiedKey::new(svid.chain().to_vec(), key));
        Ok(Self { svid: Arc::new(svid), bundle: Arc::new(bundle), certified_key })
    }

    /// Our chain and key.
    pub fn svid(&self) -> &Arc<Svid> {
        &self.svid
    }

    /// Whom we believe.
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// The chain and key in rustls' form.
    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified_key.clone()
    }
}
