//! `starling check`: everything that `starling run` would refuse, found without starting anything.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use starling_gossip::clock::{Clock, WallTime};

use super::environment;
use super::output::{Failure, Output};
use crate::authz::{Allow, IdentityPattern};
use crate::config::files::Files;
use crate::config::{Config, Mistake, Mistakes, ProbeQuestion, Service};
use crate::store;

/// Callers that one line names; programs get all of them.
const CALLERS_SHOWN_MAX: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let config = Config::load(&arguments.config, environment())?;
    let wall = Clock::System.wall();
    let loaded = Files::load(&config, wall);
    let mut mistakes: Vec<Mistake> =
        loaded.as_ref().err().into_iter().flat_map(Mistakes::iter).cloned().collect();
    mistakes.extend(data_dir_mistake(&config));
    Mistakes::none_of(mistakes)?;
    let files = loaded?;
    output.print(&text(&config, &files, wall), &json(&config, &files));
    Ok(())
}

/// A node would start without its store and say so; whoever checks wants to know before.
fn data_dir_mistake(config: &Config) -> Option<Mistake> {
    let problem = store::check(config.node.data_dir.as_ref()?).err()?;
    let suggestion = "name a directory that this user may write, or may make; or remove the key";
    Some(config.sources.mistake("node.data_dir", problem, suggestion))
}

fn text(config: &Config, files: &Files, wall: WallTime) -> String {
    let id = files.svid.id();
    let mut text = format!(
        "config ok: node {} ({id}), {}, {}, {}",
        config.node.name,
        count(config.services.len(), "service"),
        count(config.outbounds.len(), "outbound"),
        count(config.mesh.seeds.len(), "seed"),
    );
    let left = files.svid.not_after().unix_seconds().saturating_sub(wall.unix_seconds());
    let _ = write!(text, "\n  the certificate is valid for another {}", about(left));
    let _ = match &config.node.data_dir {
        Some(directory) => write!(text, "\n  remembers peers and records in {}", directory.display()),
        None => write!(text, "\n  remembers nothing over a restart: node.data_dir is not set"),
    };
    for service in &config.services {
        let _ = write!(text, "\n  {}", describe(service, files));
    }
    for note in notes(config) {
        let _ = write!(text, "\n  note: {note}");
    }
    text
}

/// What is right, and probably not what was meant.
fn notes(config: &Config) -> Vec<String> {
    let of_one = |service: &Service| {
        let covered = service.allow.covered();
        let say = |(narrow, wide)| {
            format!("service {}: {narrow} in allow changes nothing, {wide} covers it", service.name)
        };
        covered.map(say).collect::<Vec<_>>()
    };
    config.services.iter().flat_map(of_one).collect()
}

/// One line for one service.
fn describe(service: &Service, files: &Files) -> String {
    let probe = match service.probe.as_ref().map(|probe| &probe.question) {
        None => "not probed".to_owned(),
        Some(ProbeQuestion::Tcp) => "probed by connecting".to_owned(),
        Some(ProbeQuestion::Http { path }) => format!("probed at {path}"),
        Some(ProbeQuestion::Grpc { service }) if service.is_empty() => "probed by gRPC".to_owned(),
        Some(ProbeQuestion::Grpc { service }) => format!("probed by gRPC for {service}"),
        Some(ProbeQuestion::Exec { program, .. }) => format!("probed by {}", program.display()),
    };
    let id = if service.id.as_str() == service.name.as_str() {
        String::new()
    } else {
        format!(" ({})", service.id)
    };
    format!(
        "service {}{id}: {} at {}, {probe}, accepts {}",
        service.name,
        service.protocol.as_str(),
        service.address,
        callers(&service.allow, files),
    )
}

/// Who may call, in a few words.
fn callers(allow: &Allow, files: &Files) -> String {
    let patterns = allow.patterns();
    match (allow, patterns.len()) {
        (Allow::Anybody, _) => format!("any identity of {}", files.trust_bundle.domain()),
        (Allow::Listed(_), 0) => "nobody (allow is empty)".to_owned(),
        (Allow::Listed(_), 1..=CALLERS_SHOWN_MAX) => join(patterns),
        (Allow::Listed(_), count) => {
            format!("{} and {} more", join(&patterns[..CALLERS_SHOWN_MAX]), count - CALLERS_SHOWN_MAX)
        }
    }
}

fn join(patterns: &[IdentityPattern]) -> String {
    patterns.iter().map(IdentityPattern::as_str).collect::<Vec<_>>().join(", ")
}

/// Seconds in the largest unit that leaves at least two of it.
fn about(seconds: u64) -> String {
    for (noun, each) in [("day", 86_400), ("hour", 3_600), ("minute", 60)] {
        if seconds >= 2 * each {
            return format!("{} {noun}s", seconds / each);
        }
    }
    format!("{seconds} seconds")
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn json(config: &Config, files: &Files) -> Value {
    let services = config.services.iter().map(|service| {
        json!({
            "id": service.id,
            "name": service.name,
            "address": service.address.to_string(),
            "tls_server_name": service.tls.as_ref().map(|tls| tls.server_name.to_str()),
            "protocol": service.protocol,
            "accepts": match &service.allow {
                Allow::Anybody => "any",
                Allow::Listed(patterns) if patterns.is_empty() => "nobody",
                Allow::Listed(_) => "listed",
            },
            "allow": service.allow.patterns().iter().map(IdentityPattern::as_str).collect::<Vec<_>>(),
        })
    });
    json!({
        "ok": true,
        "node": config.node.name,
        "identity": files.svid.id(),
        "not_after_unix_millis": files.svid.not_after().unix_millis,
        "services": services.collect::<Vec<_>>(),
        "outbounds": config.outbounds.len(),
        "seeds": config.mesh.seeds.len(),
        "data_dir": config.node.data_dir,
        "notes": notes(config),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_in_a_unit_one_can_feel() {
        for (seconds, told) in [
            (10 * 365 * 86_400, "3650 days"),
            (86_399, "23 hours"),
            (7_199, "119 minutes"),
            (61, "61 seconds"),
        ] {
            assert_eq!(about(seconds), told);
        }
    }
}
