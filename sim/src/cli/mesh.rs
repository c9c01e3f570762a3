//! The mesh that a calculation is about, as arguments.

use anyhow::ensure;
use clap::Args;
use starling_sim::model::{NODES_MAX, NODES_MIN, Path, Settings};
use starling_sim::scenario::Span;

/// Losing every other packet, QUIC does not carry on either.
const LOSS_MAX: f64 = 0.5;

/// Which mesh.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Mesh {
    /// How many nodes.
    #[arg(long)]
    pub nodes: usize,
    /// The mean round trip between two nodes.
    #[arg(long, default_value = "20ms")]
    pub rtt: Span,
    /// The share of packets that are lost, 0 to 0.5.
    #[arg(long, default_value_t = 0.0)]
    pub loss: f64,
    /// For how long others believe in a silent node.
    #[arg(long, default_value = "120s")]
    pub lease: Span,
    /// How often a node renews its lease.
    #[arg(long, default_value = "30s")]
    pub renew: Span,
}

impl Mesh {
    /// The mesh with messages that differ by `jitter`, or what is wrong with it.
    pub(super) fn settings(&self, jitter: Span) -> anyhow::Result<Settings> {
        let Self { nodes, loss, .. } = *self;
        let (rtt, jitter) = (self.rtt.0, jitter.0);
        let (lease, renew) = (self.lease.0, self.renew.0);
        ensure!((NODES_MIN..=NODES_MAX).contains(&nodes), "--nodes must be {NODES_MIN} to {NODES_MAX}");
        ensure!((0.0..=LOSS_MAX).contains(&loss), "--loss is a share from 0 to {LOSS_MAX}, not {loss}");
        ensure!(!rtt.is_zero() && !renew.is_zero(), "--rtt and --renew must be more than 0");
        ensure!(jitter <= rtt, "--jitter must not be more than --rtt, which it is part of");
        ensure!(lease >= renew * 2, "--lease must be at least twice --renew");
        Ok(Settings { nodes, path: Path { rtt, jitter, loss }, lease, renew })
    }

    /// In one line.
    pub(super) fn headline(&self) -> String {
        let Self { nodes, rtt, loss, .. } = self;
        let percent = loss * 100.0;
        format!("{nodes} nodes, a round trip of {rtt}, {percent} % of packets lost")
    }
}
