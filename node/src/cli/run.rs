//! `starling run`: one node, in this process, until it is told to stop.

use std::path::PathBuf;

use anyhow::Context as _;
use starling_gossip::clock::Clock;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::demo::Parent;
use super::environment;
use super::output::Failure;
use crate::allocator;
use crate::app::Node;
use crate::config::Config;
use crate::config::files::Files;
use crate::descriptors;
use crate::notify::ServiceManager;
use crate::reload::ConfigFile;
use crate::sockets::Sockets;
use crate::telemetry::{self, Metrics};

/// Connections that are looked at before what they brought is sent on. A turn of the runtime writes to a peer when it
/// has served everybody it woke, and until then the peer, the workload and the client have nothing to do: with 64
/// requests in one turn a quarter of the machine's time was idle under full load, with 16 a sixth.
const EVENTS_PER_TURN: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    parent: Parent,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sockets = Sockets::from_environment()?;
    let manager = ServiceManager::from_environment(|name| std::env::var(name).ok())?;
    arguments.parent.follow()?;
    descriptors::raise_limit();
    let clock = Clock::System;
    let variables: Vec<_> = environment().collect();
    let config = Config::load(&arguments.config, variables.iter().cloned())?;
    let files = Files::load(&config, clock.wall())?;
    let log_level = telemetry::init_logs(&config.log, config.access_log.as_ref())?;
    let metrics = Metrics::install()?;
    let runtime = runtime(config.node.workers).context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let file = ConfigFile::follow(arguments.config.clone(), variables, log_level)
            .context("cannot listen for SIGHUP")?;
        let node = Node::bind(config, files, sockets, clock, metrics).await?;
        node.run(file, &manager, async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
        Ok::<_, anyhow::Error>(())
    })?;
    // Blocking tasks (a resolver that hangs) must not hold up the exit.
    runtime.shutdown_background();
    Ok(())
}

/// One thread by default: a proxy's work is short and ordered, and handing it from thread to thread costs
/// more than it gains while that thread has time left.
fn runtime(workers: u16) -> std::io::Result<Runtime> {
    let mut builder = match workers {
        0 | 1 => {
            allocator::keep();
            Builder::new_current_thread()
        }
        several => {
            let mut builder = Builder::new_multi_thread();
            builder
                .worker_threads(several.into())
                // Only workers park: threads that block serve something once in a while.
                .on_thread_park(allocator::keep)
                .on_thread_stop(allocator::let_go);
            builder
        }
    };
    builder.max_io_events_per_tick(EVENTS_PER_TURN).enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_carry_traffic_keep_blocks_and_those_who_block_do_not() {
        for workers in [1, 2] {
            let runtime = runtime(workers).expect("it starts");
            let (worker, blocking) = runtime.block_on(async {
                let worker = tokio::spawn(async {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    allocator::keeps()
                });
                (worker.await, tokio::task::spawn_blocking(allocator::keeps).await)
            });
            assert!(worker.expect("it ends"), "{workers}");
            assert!(!blocking.expect("it ends"), "{workers}");
        }
        allocator::let_go();
    }
}
