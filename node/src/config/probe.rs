//! `[service.probe]`: how a workload's health is asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use toml::Value;

use super::limits::{
    EXEC_ARGUMENTS_MAX, GRPC_SERVICE_BYTES_MAX, PROBE_INTERVAL, PROBE_STREAK, PROBE_TIMEOUT,
};
use super::mistake::{Wrong, wrong};
use super::reader::Reader;
use super::section::{Given, Section, kind};
use super::value::{boolean, duration, number, text};

/// Visible ASCII after a slash.
const PROBE_PATH: &str = r"^/[!-~]*$";

/// `package.Service`.
const GRPC_SERVICE: &str = r"^[-._/a-zA-Z0-9]{1,255}$";

/// How often a workload without a probe of its own is connected to. Callers that cannot reach it
/// bring the next check forward, so this only bounds how long nobody notices that nobody calls.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The same after a refusal: the second, which makes it unhealthy, comes soon, and so does the end of
/// waiting when the workload starts. A refused connection on the same machine costs microseconds.
const CHECK_INTERVAL_DOWN: Duration = Duration::from_millis(250);

/// How long such a check may take; a kernel accepts without the workload's help.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// How a workload's health is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub question: ProbeQuestion,
    /// Between two probes.
    pub interval: Duration,
    /// The same after a failure.
    pub interval_down: Duration,
    /// How long one may take; at most the interval.
    pub timeout: Duration,
    /// Successes in a row before it counts as healthy again.
    pub healthy_after: u32,
    /// Failures in a row before it counts as unhealthy.
    pub unhealthy_after: u32,
}

/// What a probe asks the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeQuestion {
    /// `GET` of this path; any 2xx or 3xx answer is good.
    Http {
        /// Starts with a slash.
        path: String,
    },
    /// Whether it accepts a connection.
    Tcp,
    /// `grpc.health.v1.Health/Check`; SERVING is good.
    Grpc {
        /// Of one service; empty asks about the whole server.
        service: String,
    },
    /// Runs a program; exit code 0 is good.
    Exec {
        /// Absolute, or a bare name to be found on `PATH`.
        program: PathBuf,
        /// What it is given.
        arguments: Vec<String>,
    },
}

impl Probe {
    /// For a workload without a probe of its own: it is healthy while it accepts connections. Two
    /// refusals, so that one full backlog moves nobody.
    pub(crate) fn of_accepting() -> Self {
        Self {
            question: ProbeQuestion::Tcp,
            interval: CHECK_INTERVAL,
            interval_down: CHECK_INTERVAL_DOWN,
            timeout: CHECK_TIMEOUT,
            healthy_after: 1,
            unhealthy_after: 2,
        }
    }
}

/// `None` when it is off: the workload counts as healthy. Relative programs start at `base`.
pub(super) fn read(mut section: Section<'_>, base: &Path) -> Option<Probe> {
    let asked = asked(&section);
    let path = section.optional("http", Reader::text(PROBE_PATH, probe_path));
    section.optional("tcp", boolean());
    let grpc = section.optional("grpc", grpc_service()).flatten();
    let exec = read_exec(&mut section, base);
    let off = section.optional("off", boolean()) == Some(true);
    let settings = ["interval", "timeout", "healthy_after", "unhealthy_after"];
    let setting = settings.into_iter().find(|key| section.has(key));
    if off && setting.is_none() && asked.len() == 1 {
        // Nothing else has a meaning, nor a default.
        section.finish();
        return None;
    }
    let interval = section.or("interval", Duration::from_secs(1), duration(PROBE_INTERVAL));
    let probe = Probe {
        question: match (path, grpc, exec) {
            (Some(path), ..) => ProbeQuestion::Http { path },
            (_, Some(service), _) => ProbeQuestion::Grpc { service },
            (_, _, Some((program, arguments))) => ProbeQuestion::Exec { program, arguments },
            _ => ProbeQuestion::Tcp,
        },
        interval,
        interval_down: interval,
        timeout: section.or("timeout", Duration::from_millis(500), duration(PROBE_TIMEOUT)),
        healthy_after: section.or("healthy_after", 2, number(PROBE_STREAK)),
        unhealthy_after: section.or("unhealthy_after", 3, number(PROBE_STREAK)),
    };
    check(&section, &asked, &probe, setting.filter(|_| off));
    section.finish();
    (!off).then_some(probe)
}

/// The questions that the section asks; `tcp = false` asks nothing.
fn asked(section: &Section<'_>) -> Vec<&'static str> {
    let keys = ["http", "tcp", "grpc", "exec", "off"];
    keys.into_iter()
        .filter(|key| section.given(key).is_some_and(|value| *value != Value::Boolean(false)))
        .collect()
}

fn check(section: &Section<'_>, asked: &[&str], probe: &Probe, useless: Option<&str>) {
    let report = section.report();
    let one = "write http = \"/path\", tcp = true, grpc = true, exec = [\"program\"], or off = true";
    match asked {
        [] => report.add(section.path(), "the probe asks nothing", one),
        [_] => {}
        [first, second, ..] => {
            let problem = format!("a probe asks one question, and this one asks {first} too");
            report.add(&section.path_of(second), problem, one);
        }
    }
    if let (Some(key), 1) = (useless, asked.len()) {
        let problem = format!("the probe is off, so {key} means nothing");
        report.add(&section.path_of(key), problem, format!("remove {key}, or off"));
    }
    if probe.timeout > probe.interval {
        let problem = "the timeout is longer than the interval, so probes would pile up";
        report.add(&section.path_of("timeout"), problem, "make timeout at most interval");
    }
}

fn probe_path(given: Given<'_>) -> Result<String, Wrong> {
    let path = text(given)?;
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        let bare = path.trim_start_matches('/').replace(' ', "%20");
        return wrong(
            format!("{path:?} is not a path"),
            format!("write \"/{bare}\", without host or spaces"),
        );
    }
    Ok(path.to_owned())
}

/// `true` for the whole server, or the name of one service; `None` for `false`.
fn grpc_service() -> Reader<Option<String>> {
    let schema = json!({ "anyOf": [{ "type": "boolean" }, { "type": "string", "pattern": GRPC_SERVICE }] });
    let show = |service: &Option<String>| match service.as_deref() {
        None => json!(false),
        Some("") => json!(true),
        Some(name) => json!(name),
    };
    Reader::new(schema, show, judge_grpc_service)
}

fn judge_grpc_service(given: Given<'_>) -> Result<Option<String>, Wrong> {
    let how = "write grpc = true for the whole server, or grpc = \"package.Service\" for one service";
    match given.value {
        Value::Boolean(asked) => Ok(asked.then(String::new)),
        Value::String(name) if name.is_empty() => wrong("the service has no name", how),
        Value::String(name) => {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
            if name.len() > GRPC_SERVICE_BYTES_MAX || !name.bytes().all(good) {
                return wrong(format!("{name:?} is not a gRPC service"), how);
            }
            Ok(Some(name.clone()))
        }
        other => wrong(format!("it should be true or a text, not {}", kind(other)), how),
    }
}

fn read_exec(section: &mut Section<'_>, base: &Path) -> Option<(PathBuf, Vec<String>)> {
    let words = section.optional_list("exec", word());
    let has_exec = words.is_some();
    let words = words.unwrap_or_default();
    let (report, path) = (section.report(), section.path_of("exec"));
    let how = "write the program and its arguments: exec = [\"/usr/bin/check\", \"--fast\"]";
    let Some((program, arguments)) = words.split_first() else {
        // A list whose items are all wrong has been reported already.
        if has_exec && !report.has_mistake_within(&path) {
            report.add(&path, "it names no program", how);
        }
        return None;
    };
    if program.is_empty() {
        report.add(&format!("{path}[0]"), "it names no program", how);
    }
    if arguments.len() > EXEC_ARGUMENTS_MAX {
        let most = format!("give at most {EXEC_ARGUMENTS_MAX}, or put them into a script");
        report.add(&path, format!("{} arguments", arguments.len()), most);
    }
    // As a shell does: a bare name is looked up on PATH, a path is a path.
    let program = if program.contains('/') { base.join(program) } else { PathBuf::from(program) };
    let whole = [program.to_string_lossy().into_owned()].into_iter().chain(arguments.iter().cloned());
    section.counts_as("exec", whole.collect());
    Some((program, arguments.to_vec()))
}

fn word() -> Reader<String> {
    Reader::new(
        json!({ "type": "string" }),
        |word: &String| json!(word),
        |given| match given.value {
            Value::String(word) if !word.contains('\0') => Ok(word.clone()),
            Value::String(_) => wrong("no program can be given a zero byte", "remove it"),
            other => wrong(
                format!("it should be a text, not {}", kind(other)),
                format!("write it in quotes: \"{other}\""),
            ),
        },
    )
}
