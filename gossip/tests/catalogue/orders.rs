//! Any order of the same words, with any repeats, ends in equal catalogues, and in what the
//! owners last said.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use starling_gossip::clock::Instant;
use starling_gossip::publisher::{Publisher, Said};
use starling_gossip::record::{Label, Owner};
use starling_gossip::svid::Svid;

use crate::authority::{Authority, KeyKind};
use crate::watched::{RENEW, Watched, instance, label, publisher};

/// What an owner may do next.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Set { id: u8, weight: u16 },
    Withdraw { id: u8 },
    Renew,
    Rotate,
    Restart,
    Leave,
}

/// Three owners: one alone, and two that share an identity.
struct Cast {
    authority: Authority,
    svids: [[Arc<Svid>; 2]; 3],
}

/// Each owner's identity and node name.
const OWNERS: [(&str, &str); 3] = [
    ("spiffe://acme/svc/pay", "pay-1"),
    ("spiffe://acme/svc/web", "web-1"),
    ("spiffe://acme/svc/web", "web-2"),
];

static CAST: LazyLock<Cast> = LazyLock::new(|| {
    let authority = Authority::new();
    let svids = OWNERS.map(|(id, _)| [KeyKind::P256, KeyKind::Ed25519].map(|kind| authority.svid(id, kind)));
    Cast { authority, svids }
});

/// One owner's life so far, and what should be visible of it.
struct Life {
    owner: usize,
    publisher: Publisher,
    clock: Instant,
    rotations: usize,
    expected: BTreeMap<Label, u16>,
    has_left: bool,
}

impl Life {
    fn new(owner: usize) -> Self {
        let clock = Instant::now();
        let publisher = publisher(CAST.svids[owner][0].clone(), OWNERS[owner].1, 1_000, clock);
        Self { owner, publisher, clock, rotations: 0, expected: BTreeMap::new(), has_left: false }
    }

    fn service(&self) -> &'static str {
        OWNERS[self.owner].0.rsplit('/').next().expect("a last segment")
    }

    fn perform(&mut self, deed: Deed) {
        match deed {
            Deed::Set { id, weight } => {
                self.publisher.set_instance(name(id), Some(instance(self.service(), weight)));
                if !self.has_left {
                    self.expected.insert(name(id), weight);
                }
            }
            Deed::Withdraw { id } => {
                self.publisher.set_instance(name(id), None);
                self.expected.remove(&name(id));
            }
            Deed::Renew => {
                self.clock += RENEW;
                self.publisher.handle_timeout(self.clock, || [9; 32]);
            }
            Deed::Rotate => {
                self.rotations += 1;
                let svid = CAST.svids[self.owner][self.rotations % 2].clone();
                let incarnation = self.publisher.incarnation();
                self.publisher.rotate(svid, incarnation, [incarnation as u8; 32]);
            }
            Deed::Restart => {
                let svid = CAST.svids[self.owner][self.rotations % 2].clone();
                let incarnation = self.publisher.incarnation() + 7;
                self.publisher = publisher(svid, OWNERS[self.owner].1, incarnation, self.clock);
                self.expected.clear();
                self.has_left = false;
            }
            Deed::Leave => {
                self.publisher.leave();
                self.expected.clear();
                self.has_left = true;
            }
        }
    }
}

fn name(id: u8) -> Label {
    label(&format!("i{id}"))
}

fn deeds() -> impl Strategy<Value = Vec<(usize, Deed)>> {
    let deed = prop_oneof![
        6 => (0..4_u8, 1..50_u16).prop_map(|(id, weight)| Deed::Set { id, weight }),
        2 => (0..4_u8).prop_map(|id| Deed::Withdraw { id }),
        2 => Just(Deed::Renew),
        2 => Just(Deed::Rotate),
        1 => Just(Deed::Restart),
        1 => Just(Deed::Leave),
    ];
    vec((0..OWNERS.len(), deed), 0..24)
}

/// What was said in order, and each visible instance's weight after it.
struct Play {
    words: Vec<(Owner, Said)>,
    expected: BTreeMap<(Owner, Label), u16>,
}

/// Everything the owners say while they do `deeds`, in order, and what must remain.
fn play(deeds: &[(usize, Deed)]) -> Play {
    let mut lives: Vec<_> = (0..OWNERS.len()).map(Life::new).collect();
    let mut words = Vec::new();
    let mut listen = |life: &mut Life| {
        while let Some(said) = life.publisher.poll_said() {
            words.push((life.publisher.owner().clone(), said));
        }
    };
    lives.iter_mut().for_each(&mut listen);
    for (owner, deed) in deeds {
        lives[*owner].perform(*deed);
        listen(&mut lives[*owner]);
    }
    let visible = |life: &Life| {
        let owner = life.publisher.owner().clone();
        life.expected.clone().into_iter().map(move |(id, weight)| ((owner.clone(), id), weight))
    };
    let expected = lives.iter().flat_map(visible).collect();
    Play { words, expected }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_with_repeats_ends_equal(deeds in deeds(), order in any::<u64>()) {
        let Play { words, expected } = play(&deeds);
        let mut spoken = Watched::new(CAST.authority.bundle());
        for (owner, said) in &words {
            let _ = spoken.hear(owner, said);
        }

        let mut rng = StdRng::seed_from_u64(order);
        let mut shuffled = words.clone();
        for _ in 0..words.len() / 2 {
            shuffled.push(words[rng.random_range(0..words.len())].clone());
        }
        shuffled.shuffle(&mut rng);
        let mut heard = Watched::new(CAST.authority.bundle());
        for (owner, said) in &shuffled {
            let _ = heard.hear(owner, said);
        }

        let view = spoken.view();
        prop_assert_eq!(&view, &heard.view());
        let offered: BTreeMap<_, _> =
            view.instances.iter().map(|(owner, id, it, _)| ((owner.clone(), id.clone()), it.weight)).collect();
        prop_assert_eq!(offered, expected);
    }
}
