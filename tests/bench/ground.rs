//! What all pairs stand on: certificates of one root, and an application that costs little.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use starling_tests::Program;
use tempfile::TempDir;

/// The application's ports: HTTP/1.1 and bytes, and HTTP/2. `tests/bench/pair` names them too.
pub const HTTP_PORT: u16 = 9000;
pub const H2_PORT: u16 = 9001;

/// What is fetched in bulk.
pub const BULK_BYTES: u64 = 1 << 30;

/// A directory with everything, and the application.
pub struct Ground {
    directory: TempDir,
    _application: Program,
}

impl Ground {
    /// Writes what is needed and starts the application.
    pub async fn lay() -> Result<Self, String> {
        let directory =
            tempfile::tempdir().map_err(|error| format!("no directory for the benchmark: {error}"))?;
        let path = directory.path();
        certificates(path).map_err(|error| format!("no certificates: {error}"))?;
        fs::create_dir(path.join("www")).expect("a directory");
        let bulk = fs::File::create(path.join("www/big")).expect("a file");
        // It has no blocks: reading it is no work of the disk's.
        bulk.set_len(BULK_BYTES).expect("a large file");
        fs::write(path.join("application.conf"), application(path)).expect("a configuration");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT));
        if std::net::TcpStream::connect(address).is_ok() {
            return Err(format!("something listens at {address} already, where the application should"));
        }
        let prefix = path.display().to_string();
        let arguments = ["-p", &prefix, "-c", "application.conf", "-e", "stderr"];
        let application = Program::start("nginx", path, address, arguments).await;
        Ok(Self { directory, _application: application })
    }

    /// Where configurations and certificates are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file there.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }
}

/// A root, and for A and B a leaf, its key, and both in one file, as HAProxy wants it.
fn certificates(directory: &Path) -> Result<(), rcgen::Error> {
    let mut root = CertificateParams::default();
    // Its own name: a leaf of the same would pass for self-signed.
    root.distinguished_name.push(DnType::CommonName, "bench root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root_key = KeyPair::generate()?;
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).expect("a file");
    write("ca.crt", &root.self_signed(&root_key)?.pem());
    let issuer = Issuer::new(root, root_key);
    for name in ["a", "b"] {
        let mut leaf = CertificateParams::new([format!("{name}.bench")])?;
        leaf.distinguished_name.push(DnType::CommonName, name);
        leaf.subject_alt_names.push(SanType::URI(format!("spiffe://bench/svc/{name}").try_into()?));
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let (chain, key) = (leaf.signed_by(&key, &issuer)?.pem(), key.serialize_pem());
        write(&format!("{name}.crt"), &chain);
        write(&format!("{name}.key"), &key);
        write(&format!("{name}.pem"), &(chain + &key));
    }
    Ok(())
}

fn application(directory: &Path) -> String {
    let (directory, body) = (directory.display(), "x".repeat(1024));
    format!(
        "master_process off; daemon off; pid {directory}/application.pid; error_log stderr error;
events {{ worker_connections 16384; }}
http {{
    access_log off; keepalive_requests 999999999; keepalive_timeout 300; sendfile on; server_tokens off;
    server {{
        listen 127.0.0.1:{HTTP_PORT} backlog=4096; root {directory}/www;
        location /1k {{ default_type text/plain; return 200 \"{body}\"; }}
        location /big {{ }}
    }}
    server {{
        listen 127.0.0.1:{H2_PORT} http2 backlog=4096;
        location / {{ default_type text/plain; return 200 \"{body}\"; }}
    }}
}}
"
    )
}
