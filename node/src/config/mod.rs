//! The configuration: one TOML file, the environment over it, parsed once into types that cannot
//! be wrong.
//!
//! [`Config::load`] either gives a whole [`Config`] or every mistake in it, each with its line. The
//! files it names (certificates, tokens) are read by [`files`], because they change while a node
//! runs and the configuration does not.
//!
//! Adding a key: a field with its reason in the section's type, one line in its reader, the key
//! with its reason in `deploy/starling.toml` (where the schema takes its words from), a row in
//! `tests.rs` for each way of getting it wrong.

mod access;
mod address;
mod environment;
pub mod files;
mod keys;
mod limits;
mod listen;
mod local;
mod mistake;
mod node;
pub mod print;
mod probe;
mod reader;
mod registration;
mod relations;
mod routing;
pub mod schema;
mod section;
mod service;
#[cfg(test)]
mod tests;
mod timeouts;
mod tree;
mod upstream;
mod value;
mod workload_tls;

use std::fs;
use std::io::Read as _;
use std::path::Path;

pub use address::{Host, HostPort, TlsScheme, WorkloadAddress};
pub use keys::{Key, Keys};
pub use limits::Limits;
pub use listen::ListenAddress;
pub use local::{AccessLog, Admin, HttpProxy, Log, LogFormat};
pub use mistake::{Mistake, Mistakes, Place, Sources, Wrong};
pub use node::{Gossip, IdentityFiles, Mesh, Node};
pub use probe::{Probe, ProbeQuestion};
pub(crate) use registration::RegistrationReader;
pub use routing::Routing;
pub use service::{Outbound, Service};
pub use timeouts::Timeouts;
pub use upstream::{UpstreamSettings, Upstreams};
pub(crate) use value::{parse_duration, show_duration};
pub use workload_tls::{ClientFiles, WorkloadTls};
pub(crate) use workload_tls::{Contents as WorkloadTlsContents, WrongFile};

use starling_gossip::identity::SpiffeId;

use relations::Claims;
use section::{Report, Section};

/// Everything a node is told before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who it is and where it listens.
    pub node: Node,
    /// Whom it asks first.
    pub mesh: Mesh,
    /// What proves it.
    pub identity: IdentityFiles,
    /// What its workload serves.
    pub services: Vec<Service>,
    /// What its workload calls by a fixed port.
    pub outbounds: Vec<Outbound>,
    /// How it calls them.
    pub upstreams: Upstreams,
    /// HTTP by name, if wanted.
    pub http_proxy: Option<HttpProxy>,
    /// Where people and programs ask it.
    pub admin: Admin,
    /// How often it talks and renews, and what that may cost.
    pub gossip: Gossip,
    /// When it distrusts its own view.
    pub routing: Routing,
    /// One line per request; `None` is off.
    pub access_log: Option<AccessLog>,
    /// What it says about itself.
    pub log: Log,
    /// What it takes on.
    pub limits: Limits,
    /// Where each key was said, for what turns out wrong later.
    pub sources: Sources,
    /// Every key with the value that counts, to be printed and compared.
    pub keys: Keys,
}

impl Config {
    /// Reads the file at `path`; variables of `environment` override it.
    pub fn load(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        let text = read_file(path).map_err(|(problem, suggestion)| {
            let sources = Sources { file: path.display().to_string(), ..Sources::default() };
            sources.mistake("", problem, suggestion)
        })?;
        // Paths in it must not change their meaning when they are printed.
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self::parse_from(&text, path, whole.parent().unwrap_or(Path::new("/")), environment)
    }

    /// Reads a text that stands, or could stand, at `path`: relative paths in it start there.
    pub fn parse(
        text: &str,
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        Self::parse_from(text, path, path.parent().unwrap_or(Path::new("")), environment)
    }

    /// Judges what was put together from two configurations that are right, for a node that runs as
    /// `id`: what only one of them as a whole could be trusted to say.
    pub(crate) fn check_together(&self, id: &SpiffeId) -> Result<(), Mistakes> {
        let report = Report::new(self.sources.clone(), Vec::new());
        Claims::of_config(self).check(&report);
        let (_, mut mistakes, _) = report.finish();
        files::check_identity(self, id, &mut mistakes);
        Mistakes::none_of(mistakes)
    }

    fn parse_from(
        text: &str,
        path: &Path,
        base: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Mistakes> {
        let mut sources = Sources { file: path.display().to_string(), ..Sources::default() };
        let mut table = tree::parse(text, &mut sources)?;
        let mistakes = environment::apply(&mut table, &mut sources, environment);
        let report = Report::new(sources, mistakes);
        let config = read(Section::root(&report, table), base);
        let (sources, mistakes, keys) = report.finish();
        Mistakes::none_of(mistakes)?;
        let config = config.expect("a configuration that cannot be read has a mistake");
        Ok(Self { sources, keys, ..config })
    }
}

/// `None` has been reported.
fn read(mut root: Section<'_>, base: &Path) -> Option<Config> {
    let mut claims = Claims::default();
    let node = node::read_node(root.section("node"), base, &mut claims);
    let mesh = node::read_mesh(root.section("mesh"));
    let identity = node::read_identity(root.section("identity"), base);
    let services = service::read_services(root.sections("service"), base, &mut claims);
    let outbounds = service::read_outbounds(root.sections("outbound"), &mut claims);
    let upstreams = upstream::read(root.report(), root.sections("upstream"), &outbounds);
    let has_http_proxy = root.has("http_proxy");
    let http_proxy = root.section("http_proxy");
    let http_proxy = has_http_proxy.then(|| local::read_http_proxy(http_proxy, &mut claims));
    let admin = local::read_admin(root.section("admin"), base, &mut claims);
    let gossip = node::read_gossip(root.section("gossip"));
    let routing = routing::read(root.section("routing"));
    let access_log = local::read_access_log(root.section("access_log"), base);
    let log = local::read_log(root.section("log"));
    let limits = limits::read(root.section("limits"));
    claims.check(root.report());
    root.finish();
    Some(Config {
        node: node?,
        mesh,
        identity,
        services,
        outbounds,
        upstreams,
        http_proxy,
        admin,
        gossip,
        routing,
        access_log,
        log,
        limits,
        sources: Sources::default(),
        keys: Keys::default(),
    })
}

/// Every key there can be, as the readers tell when they walk over nothing.
fn describe() -> Keys {
    let report = Report::describing();
    read(Section::root(&report, toml::Table::new()), Path::new(""));
    report.finish().2
}

/// What the file holds, and at most one byte more than it may.
pub(crate) fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limits::FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The file's text, or what is wrong with it and what would be right.
fn read_file(path: &Path) -> Result<String, (String, String)> {
    let bytes = read_bytes(path).map_err(|error| {
        let named = format!("name a readable file: --config {}", path.display());
        (format!("the file cannot be read: {error}"), named)
    })?;
    if bytes.len() as u64 > limits::FILE_BYTES_MAX {
        let most = format!("it may have at most {} bytes", limits::FILE_BYTES_MAX);
        return Err(("the file is too large to be a configuration".into(), most));
    }
    String::from_utf8(bytes).map_err(|_| ("the file is not UTF-8 text".into(), "save it as UTF-8".to_owned()))
}
