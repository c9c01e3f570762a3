//! What may happen to a mesh.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;

/// One thing that happens, once or repeatedly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// When: counted from the end of the quiet time after the mesh first converged.
    pub at: Span,
    /// What.
    #[serde(rename = "do")]
    pub what: Do,
    /// Which nodes: a number or a share (`"25%"`) that chance chooses among those that are up, or
    /// names (`["node-0"]`).
    #[serde(default)]
    pub nodes: Pick,
    /// Chooses only among this site's nodes.
    pub site: Option<String>,
    /// The time between one node and the next, where several are chosen; `"0s"` takes all at once.
    #[serde(default)]
    pub apart: Span,
    /// How often it happens.
    #[serde(default = "once")]
    pub times: u32,
    /// The time from one to the next.
    #[serde(default)]
    pub every: Span,
    /// How long it lasts, for what ends again: a pause, a partition, time down, an attack.
    #[serde(rename = "for", default)]
    pub lasts: Span,
    /// `restart`: what the node still knows.
    #[serde(default)]
    pub memory: Memory,
    /// `restart`: it comes back at another address.
    #[serde(default)]
    pub moved: bool,
    /// `partition`: the parts, each a list of sites. Without any, chance splits the nodes in two.
    #[serde(default)]
    pub parts: Vec<Vec<String>>,
    /// `partition`: into how many parts chance splits the nodes.
    #[serde(default = "two")]
    pub ways: usize,
    /// `partition`: only messages from an earlier part to a later one are lost.
    #[serde(default)]
    pub one_way: bool,
    /// `degrade`: the share of packets lost of what these nodes receive.
    #[serde(default)]
    pub loss_in: f64,
    /// `degrade`: and of what they send.
    #[serde(default)]
    pub loss_out: f64,
    /// `degrade`: what each message costs these nodes before they take the next: a slow machine.
    #[serde(default)]
    pub slow: Span,
    /// `calendar`: how far it is set, seconds; negative is back.
    #[serde(default)]
    pub seconds: i64,
    /// `attack`: what the hostile member does.
    #[serde(default)]
    pub attack: Attack,
    /// `attack`: how many hostile messages it sends a second.
    #[serde(default = "ten")]
    pub rate: u32,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Do {
    /// A node says something new of its instance; until others know it is `known_ms`.
    Change,
    /// A node's instance becomes unhealthy, and after `for` healthy again; both are measured.
    Flap,
    /// A node withdraws its instance, and after `for` announces it again.
    Withdraw,
    /// New nodes come; `nodes` says how many. `apart` 0 is a flash crowd.
    Join,
    /// Nodes leave gracefully.
    Leave,
    /// Each node leaves gracefully, and a new one under a new name takes its place: a rolling deployment.
    Replace,
    /// Nodes go down without a word, for good.
    Crash,
    /// Nodes go down without a word and come back after `for`.
    Restart,
    /// Nodes stop in their tracks (SIGSTOP), and go on after `for`.
    Pause,
    /// The network falls into parts, and heals after `for`.
    Partition,
    /// Nodes' own links lose packets, or the nodes are slow, until `for` is over.
    Degrade,
    /// Nodes' calendars are set by `seconds`, and set back after `for` if that is given.
    Calendar,
    /// Nodes that hold a good certificate attack the others, until `for` is over.
    Attack,
}

/// What a restarted node still knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// What its disk holds, if nodes have disks.
    #[default]
    Kept,
    /// Nothing: an empty disk.
    Lost,
    /// What the disk held when the mesh first converged: an old image was restored.
    Old,
}

/// What a hostile member does, besides taking part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Attack {
    /// Says altered records and renewals of others: other weights, other addresses.
    #[default]
    Forge,
    /// Says others' old records again, as if they were new, and whole messages as they came.
    Replay,
    /// Answers, and passes nothing on.
    Withhold,
    /// Signs two different records of one version, and tells each half of the mesh another.
    Equivocate,
    /// Says, offers and asks for more than anybody can hold: maps, keys, records that are nobody's.
    Flood,
    /// Invents members of its own identity, rightly signed, which nobody ever started.
    Invent,
    /// Says that others have left or died: forged withdrawals, deleted values, sightings true and false.
    Accuse,
    /// Keeps dead nodes alive by their old renewals, and says of leases that they are young or old.
    Resurrect,
    /// Raises others' heartbeats, so that their true ones count no more.
    Outrun,
    /// Makes others' maps begin anew, with nothing in them, behind later versions.
    Reset,
    /// Says that it knows something else than everybody does, so that they exchange with it in vain.
    Lie,
    /// Sends one other more messages than it may.
    Overrun,
}

/// Which nodes an event is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Pick {
    /// So many, by chance.
    Count(usize),
    /// Such a share, by chance: `"25%"`; at least one.
    Share(String),
    /// These, by name.
    Named(Vec<String>),
}

/// A pick that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no share: write a whole number of per cent, as in \"25%\"")]
pub struct PickError(String);

impl Pick {
    /// How many that is of `all`; names are as many as there are.
    pub fn count_of(&self, all: usize) -> Result<usize, PickError> {
        match self {
            Self::Count(count) => Ok(*count),
            Self::Named(names) => Ok(names.len()),
            Self::Share(share) => {
                let percent = share.strip_suffix('%').and_then(|number| number.trim().parse::<usize>().ok());
                let percent = percent.filter(|percent| *percent <= 100);
                let percent = percent.ok_or_else(|| PickError(share.clone()))?;
                Ok((all * percent).div_ceil(100).max(1))
            }
        }
    }
}

impl Default for Pick {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl fmt::Display for Do {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Change => "change",
            Self::Flap => "flap",
            Self::Withdraw => "withdraw",
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Replace => "replace",
            Self::Crash => "crash",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::Degrade => "degrade",
            Self::Calendar => "calendar",
            Self::Attack => "attack",
        })
    }
}

fn once() -> u32 {
    1
}

fn two() -> usize {
    2
}

fn ten() -> u32 {
    10
}
