//! What the demo says: lines as it goes, and the result as words or as one JSON object.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::{Value, json};

use super::stage::{Node, Stage};
use super::traffic::Tally;

/// Tells the audience what happens. Says nothing where a program listens.
pub(super) struct Narrator {
    is_silent: bool,
    is_terminal: bool,
    /// What stands on the terminal's last line, to be replaced.
    passing: Option<String>,
}

/// What was measured.
#[derive(Default)]
pub(super) struct Measured {
    /// From the first process's start until every node saw all.
    pub(super) converged: Duration,
    /// All calls.
    pub(super) tally: Tally,
    /// Calls a second.
    pub(super) rate: u64,
    /// What the crash did; none without traffic.
    pub(super) crash: Option<Crash>,
}

/// What the crash of one node did to its caller.
pub(super) struct Crash {
    /// Who crashed.
    pub(super) name: String,
    /// After the first call.
    pub(super) at: Duration,
    /// From SIGKILL to the start of the last request that was sent there.
    pub(super) reroute: Duration,
    /// Requests that were sent there and never answered.
    pub(super) unanswered: u64,
}

impl Narrator {
    /// Tells nothing if `is_silent`.
    pub(super) fn new(is_silent: bool) -> Self {
        Self { is_silent, is_terminal: io::stdout().is_terminal(), passing: None }
    }

    /// Something to stay.
    pub(super) fn say(&mut self, text: impl AsRef<str>) {
        if !self.is_silent {
            // A reader that stops reading (`| head`) is no failure.
            let _ = writeln!(io::stdout(), "{}{}", self.wiped(), text.as_ref());
        }
    }

    /// How things stand `after` the start: replaced by the next such line on a terminal, and
    /// elsewhere told only when it changes.
    pub(super) fn mention(&mut self, after: Duration, text: String) {
        let is_old = !self.is_terminal && self.passing.as_ref() == Some(&text);
        if self.is_silent || is_old {
            return;
        }
        let mut out = io::stdout();
        let _ = match self.is_terminal {
            true => write!(out, "{}  {:>6}  {text}", self.wiped(), time(after)).and_then(|()| out.flush()),
            false => writeln!(out, "  {:>6}  {text}", time(after)),
        };
        self.passing = Some(text);
    }

    /// Lets what was mentioned last stand.
    pub(super) fn settle(&mut self) {
        if self.passing.take().is_some() && self.is_terminal && !self.is_silent {
            let _ = writeln!(io::stdout());
        }
    }

    /// What makes room on a terminal for the next line.
    fn wiped(&mut self) -> &'static str {
        if self.passing.take().is_some() && self.is_terminal { "\r\x1b[2K" } else { "" }
    }
}

/// The result for programs.
pub(super) fn json(stage: &Stage, measured: &Measured) -> Value {
    let node = |node: &Node| {
        json!({
            "name": node.plan.name,
            "pid": node.sidecar.pid(),
            "workload_pid": node.workload.as_ref().map(|workload| workload.pid()),
            "listen": node.at.listen,
            "admin": node.at.admin,
            "http_proxy": node.at.http_proxy,
            "services": node.plan.service.iter().collect::<Vec<_>>(),
        })
    };
    let micros = |percent| measured.tally.percentile(percent).map(|took| took.as_micros() as u64);
    let crash = measured.crash.as_ref();
    json!({
        "nodes": stage.nodes.iter().map(node).collect::<Vec<_>>(),
        "converged_ms": measured.converged.as_millis() as u64,
        "requests": measured.tally.requests(),
        "failed_requests": measured.tally.failed,
        "killed": crash.map(|crash| &crash.name),
        "reroute_ms": crash.map(|crash| crash.reroute.as_millis() as u64),
        "p50_us": micros(50.0),
        "p99_us": micros(99.0),
    })
}

/// The result for people.
pub(super) fn summary(stage: &Stage, measured: &Measured) -> String {
    let (tally, workloads) = (&measured.tally, stage.nodes.iter().filter(|node| node.workload.is_some()));
    let mut text = format!(
        "Summary\n  mesh      {} sidecars and {} workloads; every sidecar knew all after {}",
        stage.nodes.len(),
        workloads.count(),
        time(measured.converged)
    );
    let Some(crash) = &measured.crash else { return text };
    let at = |percent| time(tally.percentile(percent).unwrap_or_default());
    let _ = write!(
        text,
        "\n  requests  {} at {}/s, {} failed\n  latency   p50 {}, p99 {}, slowest {}\n  \
         crash     {} was killed {} into the traffic; the last request was sent there {} later\n            \
         {}",
        tally.requests(),
        measured.rate,
        tally.failed,
        at(50.0),
        at(99.0),
        at(100.0),
        crash.name,
        time(crash.at),
        time(crash.reroute),
        unanswered(crash.unanswered, tally.failed),
    );
    text
}

/// What somebody can do with a mesh that stays up; every line works when pasted.
pub(super) fn invitation(stage: &Stage) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "starling".to_owned());
    let (Some(caller), Some(other)) = (stage.nodes.first(), stage.nodes.get(1)) else {
        return String::new();
    };
    let pids = other.workload.as_ref().map_or(String::new(), |workload| format!(" {}", workload.pid()));
    format!(
        "The mesh stays up until Ctrl-C. Paste, in another terminal:\n  \
         curl -H 'Host: web.mesh' http://{proxy}/\n  \
         curl -x http://{proxy} http://web.mesh/\n  \
         curl http://{admin}/v1/members\n  \
         curl http://{admin}/metrics\n  \
         {program} members --admin {admin}\n  \
         {program} routes web --admin {admin}\n  \
         kill -9 {sidecar}{pids}    # {name} crashes: its sidecar and its workload\n\
         Configurations and logs are in {directory}",
        proxy = caller.at.http_proxy,
        admin = caller.at.admin,
        sidecar = other.sidecar.pid(),
        name = other.plan.name,
        directory = stage.directory().display(),
    )
}

/// A time for people: `1.4ms`, `312ms`, `12.3s`.
pub(super) fn time(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1_000.0;
    match millis {
        ..9.95 => format!("{millis:.1}ms"),
        9.95..999.5 => format!("{millis:.0}ms"),
        _ => format!("{:.1}s", millis / 1_000.0),
    }
}

fn unanswered(requests: u64, failed: u64) -> String {
    let what = match requests {
        0 => return "no request was on its way there".to_owned(),
        1 => "1 request that it never answered was".to_owned(),
        _ => format!("{requests} requests that it never answered were"),
    };
    if failed == 0 {
        format!("{what} answered by another instance")
    } else {
        format!("{what} lost, or repeated where that is safe")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let shown = [1_449, 9_990, 312_400, 12_340_000].map(|micros| time(Duration::from_micros(micros)));
        assert_eq!(shown, ["1.4ms", "10ms", "312ms", "12.3s"]);
    }
}
