//! Credentials that change while connections live.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use starling_gossip::clock::Clock;

use super::harness::{Ca, Issued, eventually, tcp, within};
use crate::credential_files::{CredentialError, CredentialFiles};
use crate::credentials::{Credentials, RotationError};

const YEARS: (i32, i32) = (2000, 2100);

/// A directory that goes when the test ends.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("starling-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(directory: &Path, ca: &Ca, issued: &Issued) {
    fs::create_dir_all(directory).expect("a directory");
    fs::write(directory.join("tls.crt"), &issued.certificate).expect("written");
    fs::write(directory.join("tls.key"), &issued.key).expect("written");
    fs::write(directory.join("ca.crt"), &ca.pem).expect("written");
}

fn files(directory: &Path) -> CredentialFiles {
    CredentialFiles {
        certificate: directory.join("tls.crt"),
        key: directory.join("tls.key"),
        trust_bundle: directory.join("ca.crt"),
        revoked: None,
    }
}

#[tokio::test]
async fn new_connections_use_the_new_certificate_and_live_streams_go_on() {
    let ca = Ca::new();
    let (web, payments) = (ca.node("web"), ca.node("payments"));
    let connection = web.dial(&payments).await.expect("connected");
    let mut caller = connection.open(&tcp()).await.expect("a stream");
    let mut callee = payments.incoming().await.stream.accept().await.expect("there");
    let mut rotations = payments.credentials.rotations();

    let (svid, bundle) = ca.svid("payments");
    let new_key = svid.public_key().fingerprint();
    payments.credentials.replace(svid, bundle).expect("a good pair");
    assert!(rotations.has_changed().expect("open") && *rotations.borrow_and_update() == 1);

    let other = ca.node("other");
    let fresh = other.dial(&payments).await.expect("connected");
    assert_eq!(fresh.peer().key_fingerprint, new_key);
    assert_ne!(connection.peer().key_fingerprint, new_key);
    let back = payments.dial(&other).await.expect("connected");
    assert_eq!(back.peer().id, other.id());

    caller.write_all(b"still here").await.expect("written");
    caller.shutdown().await.expect("ended");
    let mut text = String::new();
    within("the bytes", callee.read_to_string(&mut text)).await.expect("a clean end");
    assert_eq!(text, "still here");
}

#[test]
fn another_identity_or_an_untrusted_pair_is_refused() {
    let ca = Ca::new();
    let credentials = ca.credentials("web");
    let (svid, bundle) = ca.svid("payments");
    let refused = credentials.replace(svid, bundle).expect_err("another identity");
    assert!(matches!(refused, RotationError::IdentityChanged { .. }), "{refused}");
    let (svid, _) = ca.svid("web");
    let (_, bundle) = Ca::new().svid("web");
    let refused = credentials.replace(svid, bundle).expect_err("not of this bundle");
    assert!(matches!(refused, RotationError::Unaccepted(_)), "{refused}");
    assert_eq!(*credentials.rotations().borrow(), 0);
}

#[test]
fn errors_name_the_file() {
    let ca = Ca::new();
    let directory = Directory::new("errors");
    let files = files(&directory.0);
    let says = |name: &str| {
        let error = files.load().expect_err(name).to_string();
        assert!(error.contains(name), "{error}");
        error
    };
    says("tls.crt");
    write(&directory.0, &ca, &ca.issue(&["spiffe://acme/svc/web"], YEARS));
    let (svid, bundle) = files.load().expect("a good set");
    assert_eq!(bundle.domain(), &svid.id().trust_domain());
    fs::write(&files.key, ca.issue(&["spiffe://acme/svc/web"], YEARS).key).expect("written");
    assert!(says("tls.key").contains("does not belong"));
    fs::write(&files.key, "no key").expect("written");
    says("tls.key");
    write(&directory.0, &ca, &ca.issue(&["spiffe://acme/svc/web"], YEARS));
    fs::write(&files.trust_bundle, "").expect("written");
    says("ca.crt");
    fs::write(&files.trust_bundle, vec![b'x'; 2 << 20]).expect("written");
    assert!(matches!(files.load(), Err(CredentialError::Oversized { .. })));
}

#[tokio::test]
async fn files_are_followed_through_links_and_only_whole_sets_taken() {
    let ca = Ca::new();
    let directory = Directory::new("follow");
    let id = ["spiffe://acme/svc/web"];
    write(&directory.0.join("one"), &ca, &ca.issue(&id, YEARS));
    symlink("one", directory.0.join("data")).expect("a link");
    let files = files(&directory.0.join("data"));
    let (svid, bundle) = files.load().expect("a good set");
    let credentials = Credentials::new(svid, bundle, Clock::System).expect("good");
    tokio::spawn(files.clone().follow(credentials.clone()));
    let fingerprint = || credentials.current().svid().public_key().fingerprint();
    let first = fingerprint();

    // As Kubernetes does it: a new directory, and one rename.
    write(&directory.0.join("two"), &ca, &ca.issue(&id, YEARS));
    symlink("two", directory.0.join("next")).expect("a link");
    fs::rename(directory.0.join("next"), directory.0.join("data")).expect("renamed");
    eventually("the second pair", || fingerprint() != first).await;
    let second = fingerprint();

    // The certificate first, its key later: taken when both are there.
    let third = ca.issue(&id, YEARS);
    fs::write(&files.certificate, &third.certificate).expect("written");
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(fingerprint(), second);
    fs::write(&files.key, &third.key).expect("written");
    eventually("the third pair", || fingerprint() != second).await;
    assert_eq!(*credentials.rotations().borrow(), 2);
}

#[tokio::test]
async fn a_list_of_revocations_is_followed_and_the_last_good_one_stays() {
    let ca = Ca::new();
    let directory = Directory::new("revoked");
    let id = ["spiffe://acme/svc/web"];
    write(&directory.0, &ca, &ca.issue(&id, YEARS));
    let list = directory.0.join("revoked.txt");
    let files = CredentialFiles { revoked: Some(list.clone()), ..files(&directory.0) };
    let error = files.load().expect_err("it is named and not there").to_string();
    assert!(error.contains("revoked.txt"), "{error}");
    fs::write(&list, "spiffe://acme/svc/*").expect("written");
    let error = files.load().expect_err("a wrong line").to_string();
    assert!(error.contains("revoked.txt: line 1"), "{error}");

    fs::write(&list, "# nobody\n").expect("written");
    let (svid, bundle) = files.load().expect("a good set");
    let credentials = Credentials::new(svid, bundle, Clock::System).expect("good");
    tokio::spawn(files.clone().follow(credentials.clone()));
    let revoked = || credentials.current().bundle().revoked().len();
    fs::write(&list, "spiffe://acme/svc/a\nspiffe://acme/svc/b\n").expect("written");
    eventually("two are revoked", || revoked() == 2).await;

    // A list that cannot be used keeps no certificate from being rotated.
    fs::write(&list, "junk\n").expect("written");
    let key = credentials.current().svid().public_key().fingerprint();
    write(&directory.0, &ca, &ca.issue(&id, YEARS));
    eventually("a new pair", || credentials.current().svid().public_key().fingerprint() != key).await;
    assert_eq!(revoked(), 2);
    fs::remove_file(&list).expect("removed");
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(revoked(), 2);
    fs::write(&list, "").expect("written");
    eventually("nobody is revoked", || revoked() == 0).await;
}
