//! `starling ca init` and `starling ca issue`: the files around [`crate::ca`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use serde_json::{Value, json};
use starling_gossip::clock::Clock;
use starling_gossip::identity::{SpiffeId, TrustDomain};

use super::files::{self, Existing, PUBLIC, SECRET};
use super::output::{Failure, Output};
use crate::ca::Authority;
use crate::config::{parse_duration, show_duration};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a root certificate and its key for one trust domain.
    Init {
        /// The mesh's name, such as acme.
        #[arg(long)]
        trust_domain: TrustDomain,
        /// The directory for ca.crt and ca.key; it is made if it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make a certificate and its key for one identity.
    Issue {
        /// The directory with ca.crt and ca.key.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// The identity, such as spiffe://acme/svc/web; it may announce the service web.
        #[arg(long)]
        id: SpiffeId,
        /// Where to write: PREFIX.crt and PREFIX.key, replacing what is there.
        #[arg(long, value_name = "PREFIX")]
        out: PathBuf,
        /// How long the certificate is valid.
        #[arg(long, default_value = "24h", value_parser = parse_duration)]
        ttl: Duration,
    },
}

pub(super) fn run(command: Command, output: Output) -> Result<(), Failure> {
    let (text, json) = match command {
        Command::Init { trust_domain, out } => init(trust_domain, &out)?,
        Command::Issue { ca, id, out, ttl } => issue(&ca, &id, &out, ttl)?,
    };
    output.print(&text, &json);
    Ok(())
}

fn init(domain: TrustDomain, directory: &Path) -> anyhow::Result<(String, Value)> {
    let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
    for path in [&certificate, &key] {
        if path.exists() {
            return Err(already_there(path));
        }
    }
    let authority = Authority::new(domain, Clock::System.wall())?;
    make(directory)?;
    // The key first: a certificate without its key would look finished.
    for (path, contents, mode) in
        [(&key, authority.key_pem().as_str(), SECRET), (&certificate, authority.certificate_pem(), PUBLIC)]
    {
        files::write(path, contents, mode, Existing::Keep).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => already_there(path),
            _ => anyhow!(error).context(not_written(path)),
        })?;
    }
    let domain = authority.domain();
    Ok((
        format!(
            "made the root of spiffe://{domain}\n  {}  give it to every node, as trust_bundle\n  {}  keep it secret, off the nodes\n\
             next: starling ca issue --ca {} --id spiffe://{domain}/svc/NAME --out NAME",
            certificate.display(),
            key.display(),
            directory.display(),
        ),
        json!({
            "trust_domain": domain,
            "certificate": certificate,
            "key": key,
            "not_after_unix_millis": authority.not_after().unix_millis,
        }),
    ))
}

fn make(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("{} cannot be made; name another --out", directory.display()))
}

fn issue(ca: &Path, id: &SpiffeId, prefix: &Path, ttl: Duration) -> anyhow::Result<(String, Value)> {
    let read = |name: &str| {
        let path = ca.join(name);
        fs::read_to_string(&path).with_context(|| {
            format!(
                "{} cannot be read; --ca names the directory that `starling ca init` wrote",
                path.display()
            )
        })
    };
    let authority = Authority::from_pem(&read("ca.crt")?, &read("ca.key")?)?;
    let issued = authority.issue(id, ttl, Clock::System.wall())?;
    let (certificate, key) = (with_suffix(prefix, ".crt"), with_suffix(prefix, ".key"));
    make(prefix.parent().unwrap_or(prefix))?;
    // Two renames cannot be one. A node that reads between them sees a key that does not fit, keeps
    // what it has, and reads again.
    for (path, contents, mode) in [(&key, &issued.key, SECRET), (&certificate, &issued.certificate, PUBLIC)] {
        files::write(path, contents, mode, Existing::Replace).with_context(|| not_written(path))?;
    }
    Ok((
        format!(
            "made {id}, valid for {}\n  {}\n  {}",
            show_duration(ttl),
            certificate.display(),
            key.display()
        ),
        json!({
            "id": id,
            "certificate": certificate,
            "key": key,
            "not_after_unix_millis": issued.not_after.unix_millis,
        }),
    ))
}

/// Appended, not replacing what looks like an extension: `web.v2` gives `web.v2.crt`.
fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn already_there(path: &Path) -> anyhow::Error {
    anyhow!(
        "{} is already there, and a root is not replaced by accident; \
         name another --out, or move the old files away",
        path.display()
    )
}

fn not_written(path: &Path) -> String {
    format!("{} cannot be written; name another --out", path.display())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use starling_gossip::svid::{Svid, TrustBundle, Usage};

    use super::*;

    fn domain() -> TrustDomain {
        "acme".parse().expect("a domain")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn the_files_work_together_and_keys_are_secret() {
        let directory = tempfile::tempdir().expect("a directory");
        let ca = directory.path().join("made/ca");
        init(domain(), &ca).expect("init");
        assert_eq!(mode(&ca.join("ca.key")), SECRET);

        let id = "spiffe://acme/svc/web".parse().expect("an id");
        let prefix = directory.path().join("web.v2");
        // Twice: issuing again is how certificates are rotated.
        for _ in 0..2 {
            issue(&ca, &id, &prefix, Duration::from_secs(3600)).expect("issue");
        }
        let key = directory.path().join("web.v2.key");
        assert_eq!(mode(&key), SECRET);
        let certificate = fs::read(directory.path().join("web.v2.crt")).expect("a certificate");
        let svid = Svid::from_pem(&certificate, &fs::read(key).expect("a key")).expect("an SVID");
        let bundle =
            TrustBundle::from_pem(domain(), &fs::read(ca.join("ca.crt")).expect("a root")).expect("a bundle");
        bundle.verify(svid.chain(), Usage::Server, Clock::System.wall()).expect("verified");
        // Nothing temporary stays behind.
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 3);
    }

    #[test]
    fn a_root_is_never_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        init(domain(), directory.path()).expect("init");
        let before = fs::read(directory.path().join("ca.key")).expect("a key");
        let error = init(domain(), directory.path()).expect_err("kept").to_string();
        assert!(error.contains("already there") && error.contains("--out"), "{error}");
        assert_eq!(fs::read(directory.path().join("ca.key")).expect("a key"), before);
    }

    #[test]
    fn a_missing_authority_says_where_to_look() {
        let directory = tempfile::tempdir().expect("a directory");
        let id = "spiffe://acme/svc/web".parse().expect("an id");
        let prefix = directory.path().join("web");
        let error = issue(directory.path(), &id, &prefix, Duration::from_secs(60));
        let error = format!("{:#}", error.expect_err("no authority"));
        assert!(error.contains("ca.crt") && error.contains("starling ca init"), "{error}");
    }
}
