//! One test's mesh: who certifies it, where its files are, which addresses are its own.

use std::cell::{Cell, RefCell};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use starling::ca::{Authority, Issued};
use starling_gossip::clock::{Clock, WallTime};
use tempfile::TempDir;

use crate::node::NodeConfig;

/// The trust domain of every mesh here that asks for no other.
pub(crate) const DOMAIN: &str = "acme";

const DAY: Duration = Duration::from_secs(86_400);

/// Below the ports that the kernel hands out by itself.
const FIRST_PORT: u16 = 7_400;

/// One test's mesh.
pub struct Mesh {
    authority: Authority,
    directory: Directory,
    ip: Ipv4Addr,
    next_port: Cell<u16>,
    seeds: RefCell<Vec<SocketAddr>>,
}

/// A directory that goes with its test.
pub struct Directory(TempDir);

impl Mesh {
    /// An empty mesh.
    pub fn new() -> Self {
        Self::of_domain(DOMAIN)
    }

    /// An empty mesh of another trust domain; its nodes' identities are to be given.
    pub fn of_domain(domain: &str) -> Self {
        Self {
            authority: authority(domain),
            directory: Directory::new(),
            ip: own_address(),
            next_port: Cell::new(FIRST_PORT),
            seeds: RefCell::default(),
        }
    }

    /// A node to be described and started. Its identity is `spiffe://acme/svc/<service>` of the
    /// first service it serves, or of its name.
    pub fn node(&self, name: &str) -> NodeConfig<'_> {
        NodeConfig::new(self, name)
    }

    /// An address that nobody listens on, and nobody else is given.
    pub fn free_address(&self) -> SocketAddr {
        let port = self.next_port.get();
        self.next_port.set(port + 1);
        SocketAddr::from((self.ip, port))
    }

    /// This test's own loopback address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Where this test's files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The roots every node believes, as PEM.
    pub fn trust_bundle(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// A certificate for `id`, valid for a day.
    pub fn issue(&self, id: &str) -> Issued {
        issue(&self.authority, id, now())
    }

    /// A certificate for `id` that is two days past its end.
    pub fn issue_expired(&self, id: &str) -> Issued {
        let then = now().unix_millis - 3 * DAY.as_millis() as u64;
        issue(&self.authority, id, WallTime { unix_millis: then })
    }

    /// A certificate for `id` that has been valid for forty days and will be for one more.
    pub fn issue_old(&self, id: &str) -> Issued {
        let then = WallTime { unix_millis: now().unix_millis - 40 * DAY.as_millis() as u64 };
        self.authority.issue(&id.parse().expect("a SPIFFE ID"), 41 * DAY, then).expect("a certificate")
    }

    /// A certificate for `id` by another authority of the same name, and its root.
    pub fn issue_foreign(&self, id: &str) -> (Issued, String) {
        let foreign = authority(DOMAIN);
        (issue(&foreign, id, now()), foreign.certificate_pem().to_owned())
    }

    /// The nodes so far, for the next one to join by.
    pub(crate) fn seeds(&self) -> Vec<SocketAddr> {
        self.seeds.borrow().clone()
    }

    pub(crate) fn add_seed(&self, address: SocketAddr) {
        self.seeds.borrow_mut().push(address);
    }
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new()
    }
}

impl Directory {
    /// An empty one.
    pub fn new() -> Self {
        // A short path: a Unix socket's may have 107 bytes.
        Self(tempfile::Builder::new().prefix("starling-").tempdir().expect("a temporary directory"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file in it, and says where.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, contents).expect("a file");
        path
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts `contents` at `path` in one step, as issuers do.
pub(crate) fn replace_file(path: &Path, contents: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, contents).expect("a file");
    fs::rename(beside, path).expect("a file in place");
}

/// A loopback address that no other test uses: by process, then by test within it.
fn own_address() -> Ipv4Addr {
    static TESTS: AtomicU8 = AtomicU8::new(0);
    let test = TESTS.fetch_add(1, Ordering::Relaxed);
    assert!(test < 254, "more meshes in one process than loopback addresses set aside for it");
    // The process's low bits: processes alive together have numbers close to each other.
    let process = std::process::id() % (253 * 256);
    let (high, low) = ((process / 256) as u8, (process % 256) as u8);
    // 127.0.0.0/16 and 127.255.0.0/16 are left to others.
    Ipv4Addr::new(127, high + 1, low, test + 1)
}

fn authority(domain: &str) -> Authority {
    // Older than any certificate here, the expired ones included.
    let since = WallTime { unix_millis: now().unix_millis - 60 * DAY.as_millis() as u64 };
    Authority::new(domain.parse().expect("a trust domain"), since).expect("a root")
}

fn issue(authority: &Authority, id: &str, from: WallTime) -> Issued {
    authority.issue(&id.parse().expect("a SPIFFE ID"), DAY, from).expect("a certificate")
}

fn now() -> WallTime {
    Clock::System.wall()
}
