//! What a node offers on its own machine: `[http_proxy]`, `[admin]`, `[access_log]` and `[log]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use tracing_subscriber::filter::Targets;

use super::limits::UNIX_PATH_BYTES_MAX;
use super::listen::{ListenAddress, local_listen_address};
use super::mistake::{Wrong, wrong};
use super::reader::Reader;
use super::relations::Claims;
use super::section::{Given, Section};
use super::timeouts::{self, Timeouts};
use super::value::{NOT_EMPTY, listen_address, one_of, path, path_that, text};

/// `[http_proxy]`: HTTP to services by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProxy {
    /// Where local callers ask for `payments.mesh`; `127.0.0.1:7401` by default.
    pub listen: ListenAddress,
    /// How long calls may take.
    pub timeouts: Timeouts,
}

/// `[admin]`: reading for everybody on this machine, actions for the socket's owner or a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Loopback, unless there is a token.
    pub listen: SocketAddr,
    /// A Unix socket whose owner may act.
    pub socket: Option<PathBuf>,
    /// Holds the token that callers from elsewhere must show.
    pub token_file: Option<PathBuf>,
}

/// `[access_log]`: one line per request or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// How a line looks.
    pub format: LogFormat,
    /// Where lines go; `None` is standard output.
    pub path: Option<PathBuf>,
}

/// `[log]`: what the node says about itself, on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// What is worth a line: a level, or `tracing` directives that parse.
    pub level: String,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

pub(super) fn read_http_proxy(mut section: Section<'_>, claims: &mut Claims) -> HttpProxy {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 7401));
    let listen = section.or("listen", default.into(), local_listen_address());
    claims.local(&section, &listen);
    let timeouts = timeouts::read(&mut section);
    section.finish();
    HttpProxy { listen, timeouts }
}

pub(super) fn read_admin(mut section: Section<'_>, base: &Path, claims: &mut Claims) -> Admin {
    let has_token = section.has("token_file");
    let listen = section.or("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 7402)), listen_address());
    claims.streams(&section, listen);
    let admin = Admin {
        listen,
        socket: section.optional("socket", socket_path(base)),
        token_file: section.optional("token_file", path(base)),
    };
    admin.socket.iter().for_each(|path| claims.socket(&section, path));
    if !listen.ip().is_loopback() && !has_token {
        section.report().add(
            &section.path_of("listen"),
            format!("{listen} can be reached from other machines, and no token protects it"),
            format!("listen on \"127.0.0.1:{}\", or add token_file", listen.port()),
        );
    }
    section.finish();
    admin
}

fn socket_path(base: &Path) -> Reader<PathBuf> {
    let base = base.to_owned();
    path_that(move |given| {
        let path = base.join(text(given)?);
        match path.as_os_str().len() {
            0..=UNIX_PATH_BYTES_MAX => Ok(path),
            bytes => wrong(
                format!("{} has {bytes} bytes, too many for a socket", path.display()),
                format!("use a path of at most {UNIX_PATH_BYTES_MAX} bytes"),
            ),
        }
    })
}

pub(super) fn read_access_log(mut section: Section<'_>, base: &Path) -> Option<AccessLog> {
    let formats = [("off", None), ("text", Some(LogFormat::Text)), ("json", Some(LogFormat::Json))];
    let was_given = section.has("format");
    let format = section.or("format", None, one_of(formats));
    let path = section.optional("path", path(base));
    if path.is_some() && !was_given {
        let problem = "a path without a format: nothing would be written there";
        section.report().add(&section.path_of("path"), problem, "add format = \"text\" or \"json\"");
    }
    section.finish();
    Some(AccessLog { format: format?, path })
}

pub(super) fn read_log(mut section: Section<'_>) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = Log {
        format: section.or("format", LogFormat::Text, one_of(formats)),
        level: section.or("level", "info".to_owned(), Reader::text(NOT_EMPTY, log_level)),
    };
    section.finish();
    log
}

/// A level, or directives such as `info,starling::route=debug`.
fn log_level(given: Given<'_>) -> Result<String, Wrong> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = text(given)?;
    // tracing takes any bare word for a target and shows all of it, so "inof" would mean trace.
    let is_known = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    let sound = level.split(',').all(|part| part.contains('=') || is_known(part.trim()));
    if !sound || level.parse::<Targets>().is_err() {
        let example = "or directives such as \"info,starling::route=debug\"";
        return wrong(
            format!("{level:?} is not a log level"),
            format!("write one of {}, {example}", LEVELS.join(", ")),
        );
    }
    Ok(level.to_owned())
}
