//! A pair of sidecars: how it is started, what it costs, how it ends.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use starling_gossip::clock::Clock;
use starling_tests::process::{peak_bytes, processor_time, resident_bytes};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::ground::Ground;
use crate::load;
use crate::table::Protocol;

/// Until a pair's ports are open and a first request has come through.
const START_MAX: Duration = Duration::from_secs(20);

/// Between two looks at a pair that starts.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// How long a pair may take to end before it is killed.
const END_MAX: Duration = Duration::from_secs(5);

/// How a pair is started and reached.
#[derive(Clone, Debug, Default)]
pub struct Pair {
    pub name: String,
    /// Program and arguments of each process, the caller's sidecar first.
    pub commands: Vec<Vec<String>>,
    /// Where the caller's sidecar takes plaintext.
    pub http: Option<u16>,
    pub tcp: Option<u16>,
    pub h2: Option<u16>,
}

/// A pair that runs. It is killed when this is dropped.
pub struct Running {
    processes: Vec<Child>,
    /// Memory of each process before any load.
    pub idle_bytes: Vec<u64>,
}

/// Processor time and peak memory so far.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub processor_seconds: f64,
    /// Of the process that had most since the last look.
    pub peak_bytes: u64,
}

impl Pair {
    /// Reads what `tests/bench/pair` prints.
    pub fn parse(line: &str) -> Result<Self, String> {
        let wrong =
            |part: &str| format!("--add: {part:?} is none of http=PORT, tcp=PORT, h2=PORT, A=COMMAND");
        let mut parts = line.split('|');
        let mut pair = Self { name: parts.next().unwrap_or_default().to_owned(), ..Self::default() };
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| wrong(part))?;
            let port = || value.parse().map(Some).map_err(|_| wrong(part));
            match key {
                "http" => pair.http = port()?,
                "tcp" => pair.tcp = port()?,
                "h2" => pair.h2 = port()?,
                "A" | "B" | "C" | "D" => {
                    pair.commands.push(value.split_whitespace().map(str::to_owned).collect());
                }
                _ => return Err(wrong(part)),
            }
        }
        Ok(pair)
    }

    /// Its port for `protocol`, if it has one.
    pub fn port(&self, protocol: Protocol) -> Option<u16> {
        match protocol {
            Protocol::Http => self.http,
            Protocol::Tcp => self.tcp,
            Protocol::H2 => self.h2,
        }
    }

    /// Where the output of its process with this index goes.
    fn log(&self, ground: &Ground, index: usize) -> PathBuf {
        ground.path().join(format!("{}-{index}.log", self.name))
    }

    /// What its processes have printed.
    fn said(&self, ground: &Ground) -> String {
        let logs = (0..self.commands.len()).map(|index| self.log(ground, index));
        logs.filter_map(|log| fs::read_to_string(log).ok()).collect()
    }

    /// Starts it, the callees first, and waits until requests come through.
    pub async fn start(&self, ground: &Ground) -> Result<Running, String> {
        let mut processes = Vec::new();
        let ports = [self.http, self.tcp, self.h2].into_iter().flatten();
        if !self.commands.is_empty()
            && let Some(taken) = ports.clone().find(|port| std::net::TcpStream::connect(local(*port)).is_ok())
        {
            return Err(format!("{}: port {taken} is taken by another process", self.name));
        }
        for (index, command) in self.commands.iter().enumerate().rev() {
            let log =
                fs::File::create(self.log(ground, index)).map_err(|error| format!("no log: {error}"))?;
            let [program, arguments @ ..] = &command[..] else {
                return Err(format!("{}: a command without a program", self.name));
            };
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null());
            command.stdout(log.try_clone().expect("a file")).stderr(log).kill_on_drop(true);
            processes.push(command.spawn().map_err(|error| format!("{program}: {error}"))?);
        }
        processes.reverse();
        let mut running = Running { processes, idle_bytes: Vec::new() };
        let came_through = tokio::time::timeout(START_MAX, async {
            for port in ports {
                while TcpStream::connect(local(port)).await.is_err() {
                    tokio::time::sleep(LOOK_PERIOD).await;
                }
            }
            for port in [self.http, self.tcp].into_iter().flatten() {
                while !load::comes_through(port).await {
                    tokio::time::sleep(LOOK_PERIOD).await;
                }
            }
        });
        if came_through.await.is_err() {
            running.end().await;
            return Err(format!("{}: no request came through; it said: {}", self.name, self.said(ground)));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        running.idle_bytes =
            running.each().map(|pid| tree(pid).into_iter().map(resident_bytes).sum()).collect();
        Ok(running)
    }
}

impl Running {
    fn each(&self) -> impl Iterator<Item = Pid> {
        self.processes.iter().filter_map(|process| Pid::from_raw(i32::try_from(process.id()?).ok()?))
    }

    /// Forgets the peaks so far.
    pub fn forget_peaks(&self) {
        for pid in self.each().flat_map(tree) {
            let _ = fs::write(format!("/proc/{}/clear_refs", pid.as_raw_nonzero()), "5");
        }
    }

    /// What it has cost so far.
    pub fn cost(&self) -> Cost {
        Cost {
            processor_seconds: self.each().flat_map(tree).map(processor_time).sum::<Duration>().as_secs_f64(),
            peak_bytes: self
                .each()
                .map(|pid| tree(pid).into_iter().map(peak_bytes).sum())
                .max()
                .unwrap_or_default(),
        }
    }

    /// Ends it in good order, or kills it.
    pub async fn end(mut self) {
        for pid in self.each() {
            let _ = kill_process(pid, Signal::TERM);
        }
        let began = Clock::System.now();
        for process in &mut self.processes {
            let left = END_MAX.saturating_sub(Clock::System.now() - began);
            if tokio::time::timeout(left, process.wait()).await.is_err() {
                let _ = process.kill().await;
            }
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A process and its descendants: some makers' programs are several.
fn tree(pid: Pid) -> Vec<Pid> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next).map(|pid| pid.as_raw_nonzero()) {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)));
        next += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_prints_is_read() {
        let pair = Pair::parse("ours|http=1|tcp=2|A=/x run --config a|B=/x run").expect("a pair");
        assert_eq!((pair.name.as_str(), pair.http, pair.tcp, pair.h2), ("ours", Some(1), Some(2), None));
        assert_eq!(pair.commands[0], ["/x", "run", "--config", "a"]);
        assert!(Pair::parse("ours|http=x").is_err() && Pair::parse("ours|E=/x").is_err());
    }
}
