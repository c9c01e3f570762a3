//! Credentials as files: loading them, and following them as they are replaced.
//!
//! Kubernetes, cert-manager and Vault replace a file by renaming another, or a symlink, over it,
//! and two files are never replaced at one instant. So files are polled rather than watched, links
//! are followed, and only a set that fits together is taken; until then the old one stays.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use starling_gossip::revocation::{RevocationError, Revocations};
use starling_gossip::svid::{Svid, SvidError, TrustBundle};

use crate::credentials::{Credentials, RotationError};
use crate::limits::{CREDENTIAL_FILE_BYTES_MAX, CREDENTIAL_POLL, CREDENTIAL_SETTLE};

/// Where an identity's files are, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
    /// The trust domain's roots.
    pub trust_bundle: PathBuf,
    /// Who is believed no more, if there is such a list.
    pub revoked: Option<PathBuf>,
}

/// Why credential files cannot be used: which file, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("{path}: {why}; it should be a readable PEM file")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The file is far larger than it can be.
    #[error("{path}: larger than {CREDENTIAL_FILE_BYTES_MAX} bytes; it should be a PEM file of a few KiB")]
    Oversized {
        /// Which file.
        path: PathBuf,
    },
    /// The file's content cannot be used.
    #[error("{path}: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        why: SvidError,
    },
    /// The list of revocations cannot be used; the one before stays.
    #[error("{path}: {why}")]
    Revocations {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        why: RevocationError,
    },
    /// The files do not go with each other, or with what we are.
    #[error("{path}: {why}")]
    Refused {
        /// The certificate file.
        path: PathBuf,
        /// Why.
        why: RotationError,
    },
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified_ns: i128,
    bytes: u64,
    inode: u64,
}

type Stamps = ([Stamp; 3], Option<Stamp>);

impl CredentialFiles {
    /// Reads all. The bundle judges the SVID's own trust domain. Blocks for the reading.
    pub fn load(&self) -> Result<(Svid, TrustBundle), CredentialError> {
        let (svid, bundle) = self.load_pair()?;
        Ok((svid, bundle.without(self.load_revoked()?)))
    }

    fn load_revoked(&self) -> Result<Revocations, CredentialError> {
        let Some(path) = &self.revoked else { return Ok(Revocations::default()) };
        let wrong = |why| CredentialError::Revocations { path: path.clone(), why };
        Revocations::parse(&read(path)?).map_err(wrong)
    }

    fn load_pair(&self) -> Result<(Svid, TrustBundle), CredentialError> {
        let content = |path: &Path| {
            let path = path.to_owned();
            move |why| CredentialError::Content { path, why }
        };
        let certificate = read(&self.certificate)?;
        let key = read(&self.key)?;
        let bundle = read(&self.trust_bundle)?;
        let svid = Svid::from_pem(&certificate, &key).map_err(|why| match why {
            SvidError::NoKey(_) | SvidError::KeyMismatch => content(&self.key)(why),
            why => content(&self.certificate)(why),
        })?;
        let bundle =
            TrustBundle::from_pem(svid.id().trust_domain(), &bundle).map_err(content(&self.trust_bundle))?;
        Ok((svid, bundle))
    }

    /// Follows the files for as long as it is polled: whenever they change and fit together,
    /// `credentials` get the new pair. Trouble is logged once, and looked at again until it is over.
    pub async fn follow(self, credentials: Credentials) {
        let mut applied = None;
        let mut last_trouble = None;
        loop {
            let (files, target, seen) = (self.clone(), credentials.clone(), applied.clone());
            let outcome = tokio::task::spawn_blocking(move || files.take_change(&target, seen)).await;
            match outcome {
                Ok(Ok(stamps)) => {
                    last_trouble = None;
                    applied = stamps;
                }
                Ok(Err(error)) => report(&mut last_trouble, error.to_string()),
                Err(stopped) => report(&mut last_trouble, stopped.to_string()),
            }
            tokio::time::sleep_until(credentials.clock().next_beat(CREDENTIAL_POLL)).await;
        }
    }

    /// Applies what is there if it differs from `seen`; says what it saw. A list of revocations
    /// that cannot be used keeps no certificate from being rotated: the list before stays.
    fn take_change(
        &self,
        credentials: &Credentials,
        seen: Option<Stamps>,
    ) -> Result<Option<Stamps>, CredentialError> {
        let before = self.stamps()?;
        if seen.as_ref() == Some(&before) {
            return Ok(seen);
        }
        let (svid, bundle) = self.load_pair()?;
        let revoked = self.load_revoked();
        // A file that is written in place is empty for a moment, and an empty list of revocations is
        // a good one: only what stays as it is counts. The next look finds it whole.
        std::thread::sleep(CREDENTIAL_SETTLE);
        if self.stamps()? != before {
            return Ok(seen);
        }
        let kept = || credentials.current().bundle().revoked().clone();
        let bundle = bundle.without(revoked.as_ref().map_or_else(|_| kept(), Clone::clone));
        if !is_current(credentials, &svid, &bundle) {
            let revoked = bundle.revoked().len();
            let not_after = svid.not_after().unix_seconds();
            credentials
                .replace(svid, bundle)
                .map_err(|why| CredentialError::Refused { path: self.certificate.clone(), why })?;
            tracing::info!(id = %credentials.id(), not_after, revoked, "took new credentials");
        }
        revoked.map(|_| Some(before))
    }

    fn stamps(&self) -> Result<Stamps, CredentialError> {
        let needed = [stamp(&self.certificate)?, stamp(&self.key)?, stamp(&self.trust_bundle)?];
        // A list that is missing says so when it is read.
        Ok((needed, self.revoked.as_deref().and_then(|path| stamp(path).ok())))
    }
}

fn is_current(credentials: &Credentials, svid: &Svid, bundle: &TrustBundle) -> bool {
    let current = credentials.current();
    current.svid().chain() == svid.chain()
        && current.bundle().roots() == bundle.roots()
        && current.bundle().revoked() == bundle.revoked()
}

fn report(last: &mut Option<String>, trouble: String) {
    if last.as_ref() != Some(&trouble) {
        tracing::warn!(%trouble, "credential files cannot be used; the last good ones stay");
        *last = Some(trouble);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(CREDENTIAL_FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|why| CredentialError::Unreadable { path: path.to_owned(), why })?;
    if bytes.len() as u64 > CREDENTIAL_FILE_BYTES_MAX {
        return Err(CredentialError::Oversized { path: path.to_owned() });
    }
    Ok(bytes)
}

fn stamp(path: &Path) -> Result<Stamp, CredentialError> {
    let metadata =
        std::fs::metadata(path).map_err(|why| CredentialError::Unreadable { path: path.to_owned(), why })?;
    Ok(Stamp {
        modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        bytes: metadata.len(),
        inode: metadata.ino(),
    })
}
