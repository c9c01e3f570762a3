//! Who was believed and is no more.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::AsyncReadExt as _;

use starling_gossip::clock::{Clock, WallTime};
use starling_gossip::revocation::Revocations;
use starling_gossip::svid::ChainError;

use super::harness::{Ca, Issued, Node, eventually, tcp, within};
use crate::credentials::{Credentials, RotationError};
use crate::dial::ConnectError;
use crate::verify::IdentityRefusal;

const ID: &str = "spiffe://acme/svc/stolen";

/// The four ways of naming one certificate.
fn entries(issued: &Issued) -> [String; 4] {
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02X}:");
            text
        })
    };
    let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).expect("PEM");
    let (_, certificate) = <x509_parser::certificate::X509Certificate<'_> as x509_parser::prelude::FromDer<
        '_,
        _,
    >>::from_der(&der)
    .expect("a certificate");
    [
        ID.to_owned(),
        hex(certificate.raw_serial()),
        hex(digest(&SHA256, &der).as_ref()),
        hex(digest(&SHA256, certificate.public_key().raw).as_ref()),
    ]
}

#[tokio::test]
async fn a_revoked_identity_is_refused_by_either_end() {
    let ca = Ca::new();
    let issued = ca.issue(&[ID], (2000, 2100));
    let (svid, bundle) = ca.judge(&issued);
    let stolen = Node::bind("127.0.0.1:0", Credentials::new(svid, bundle, Clock::System).expect("good"));
    for entry in entries(&issued) {
        let web = Node::bind("127.0.0.1:0", ca.credentials_without("web", &entry));
        let error = web.dial(&stolen).await.expect_err("refused");
        assert!(
            matches!(
                error,
                ConnectError::RefusedIdentity { why: IdentityRefusal::Chain(ChainError::Revoked(_)), .. }
            ),
            "{entry}: {error}"
        );
        let error = stolen.dial(&web).await.expect_err("refused");
        assert!(matches!(error, ConnectError::RefusedByPeer { .. }), "{entry}: {error}");
        assert!(web.dial(&ca.node("other")).await.is_ok(), "{entry} is about nobody else");
    }
}

#[tokio::test]
async fn what_is_open_to_a_revoked_peer_is_closed_and_nothing_else() {
    let ca = Ca::new();
    let (web, stolen, other) = (ca.node("web"), ca.node("stolen"), ca.node("other"));
    let accepted = stolen.dial(&web).await.expect("connected");
    let mut call = accepted.open(&tcp()).await.expect("a stream");
    let _callee = web.incoming().await.stream.accept().await.expect("there");
    let kept = web.dial(&other).await.expect("connected");
    let current = web.credentials.current();
    let again = Revocations::parse(ID.as_bytes()).expect("a list");
    let (svid, bundle) = ca.svid("web");
    web.credentials.replace(svid, bundle.without(again)).expect("a good pair");
    let broken = within("the end", call.read_u8()).await;
    assert!(broken.is_err(), "{broken:?}");
    eventually("the connection is gone", || web.connections() == 1).await;
    assert!(kept.is_usable());
    drop(current);
}

/// A calendar that stands wrong must not keep a stolen key believed.
#[tokio::test]
async fn a_revocation_is_taken_while_our_own_certificate_is_not_valid() {
    let ca = Ca::new();
    let issued = ca.issue(&["spiffe://acme/svc/web"], (2020, 2030));
    let clock = Clock::starting_at(WallTime { unix_millis: 1_767_225_600_000 });
    let (svid, bundle) = ca.judge(&issued);
    let credentials = Credentials::new(svid, bundle, clock.clone()).expect("valid");
    for days in [3_650, -7_300] {
        clock.set_calendar_by(days * 86_400_000);
        let replace = |list: &str| {
            let (svid, bundle) = ca.judge(&issued);
            credentials.replace(svid, bundle.without(Revocations::parse(list.as_bytes()).expect("a list")))
        };
        assert_eq!(replace(ID), Ok(()));
        assert_eq!(credentials.current().bundle().revoked().len(), 1);
        assert_eq!(replace(""), Ok(()));
        let own = replace("spiffe://acme/svc/web").expect_err("ourselves");
        assert!(matches!(own, RotationError::Unaccepted(ChainError::Revoked(_))), "{own}");
        let (svid, _) = ca.judge(&issued);
        let (_, foreign) = Ca::new().judge(&issued);
        let untrusted = credentials.replace(svid, foreign).expect_err("of another root");
        assert!(matches!(untrusted, RotationError::Unaccepted(ChainError::Untrusted(_))), "{untrusted}");
        // Another certificate must be good now.
        let (svid, bundle) = ca.judge(&ca.issue(&["spiffe://acme/svc/web"], (2020, 2030)));
        let expired = credentials.replace(svid, bundle).expect_err("not valid");
        assert!(matches!(expired, RotationError::Unaccepted(ChainError::NotValidNow(_))), "{expired}");
    }
}

#[test]
fn nobody_revokes_itself_by_mistake() {
    let ca = Ca::new();
    let credentials = ca.credentials("web");
    let (svid, bundle) = ca.svid("web");
    let list = Revocations::parse(b"spiffe://acme/svc/web").expect("a list");
    let refused = credentials.replace(svid, bundle.without(list)).expect_err("revoked");
    assert!(matches!(refused, RotationError::Unaccepted(ChainError::Revoked(_))), "{refused}");
}
