//! `[service.tls]`: whom a workload's own TLS is believed, and who this node is to it.
//!
//! The reader of the section, and the judge of the files it names. Following them as they are
//! replaced, and shaking hands, is the proxy's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;

use super::address::{Host, WorkloadAddress};
use super::files::read_bounded;
use super::limits::{WORKLOAD_CHAIN_MAX, WORKLOAD_ROOTS_MAX};
use super::mistake::{Wrong, wrong};
use super::reader::Reader;
use super::section::{Given, Section};
use super::value::{NOT_EMPTY, path, text};

/// `[service.tls]`. There is no default to trust: a workload's certificate comes from its own issuer,
/// and the public roots would believe anybody who can get a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadTls {
    /// The roots that the workload's certificate must lead to, PEM.
    pub trust_bundle: PathBuf,
    /// The name, or address, that its certificate must carry; the address's host by default.
    pub server_name: ServerName<'static>,
    /// Who this node is to the workload, if the workload asks.
    pub client: Option<ClientFiles>,
}

/// A certificate for client authentication, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The leaf's key.
    pub key: PathBuf,
}

/// A file that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub(crate) struct WrongFile {
    /// The key that names it.
    pub(crate) key: &'static str,
    /// What is wrong with it, its path included.
    pub(crate) problem: String,
    /// What would be right.
    pub(crate) suggestion: String,
}

/// What the files held at one moment.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    trust_bundle: Vec<u8>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

const MAKE_BUNDLE: &str = "name a PEM file with the roots that issued the workload's certificate";
const MAKE_PAIR: &str = "name the PEM chain and key of one issue, made for client authentication";

/// `None` where the address has no TLS, or with a mistake reported.
pub(super) fn read(
    section: &mut Section<'_>,
    address: Option<&WorkloadAddress>,
    base: &Path,
) -> Option<WorkloadTls> {
    let (is_given, at) = (section.has("tls"), section.path_of("tls"));
    let mut tls = section.section("tls");
    let report = tls.report();
    let read = is_given.then(|| {
        let trust_bundle = tls.required("trust_bundle", "\"app-ca.crt\"", path(base));
        let has_name = tls.has("server_name");
        (
            trust_bundle,
            has_name,
            tls.optional("server_name", server_name_reader()),
            read_client(&mut tls, base),
        )
    });
    tls.finish();
    match (address?, read) {
        (WorkloadAddress::Tls { at: host_port, .. }, Some((trust_bundle, has_name, name, client))) => {
            let wrong_name = |wrong: Wrong| report.add(&at, wrong.problem, wrong.suggestion);
            let default = || server_name_of(&host_port.host).map_err(wrong_name).ok();
            let server_name = if has_name { name } else { default() };
            section.follows("tls.server_name", server_name.as_ref().map(ServerName::to_str).as_ref());
            return Some(WorkloadTls { trust_bundle: trust_bundle?, server_name: server_name?, client });
        }
        (WorkloadAddress::Tls { scheme, .. }, None) => {
            let add = "add [service.tls] with trust_bundle = \"app-ca.crt\"";
            report.add(&at, format!("whom to believe at {}:// is missing", scheme.as_str()), add);
        }
        (WorkloadAddress::Tcp(host_port), Some(_)) => {
            let instead =
                format!("write \"https://{host_port}\" or \"tls://{host_port}\", or remove [service.tls]");
            report.add(&at, "the address says that the workload speaks no TLS", instead);
        }
        (WorkloadAddress::Unix(_), Some(_)) => {
            report.add(&at, "TLS over a Unix socket is not spoken here", "remove [service.tls]");
        }
        (WorkloadAddress::Tcp(_) | WorkloadAddress::Unix(_), None) => {}
    }
    None
}

fn read_client(tls: &mut Section<'_>, base: &Path) -> Option<ClientFiles> {
    let given = ["certificate", "key"].map(|key| tls.has(key));
    let certificate = tls.optional("certificate", path(base));
    let key = tls.optional("key", path(base));
    match given {
        [true, false] => {
            tls.report().add(&tls.path_of("certificate"), "a certificate without its key", "add key")
        }
        [false, true] => {
            tls.report().add(&tls.path_of("key"), "a key without its certificate", "add certificate")
        }
        _ => {}
    }
    Some(ClientFiles { certificate: certificate?, key: key? })
}

fn server_name_reader() -> Reader<ServerName<'static>> {
    let schema = json!({ "type": "string", "pattern": NOT_EMPTY });
    Reader::new(schema, |name: &ServerName<'_>| name.to_str().into(), server_name)
}

fn server_name(given: Given<'_>) -> Result<ServerName<'static>, Wrong> {
    let name = text(given)?;
    ServerName::try_from(name.to_owned()).or_else(|_| {
        wrong(
            format!("{name:?} is neither a DNS name nor an IP address"),
            "write the name in the workload's certificate, without scheme or port",
        )
    })
}

fn server_name_of(host: &Host) -> Result<ServerName<'static>, Wrong> {
    match host {
        Host::Ip(ip) => Ok(ServerName::IpAddress((*ip).into())),
        Host::Name(name) => ServerName::try_from(name.clone()).or_else(|_| {
            wrong(
                format!("no certificate carries the name {name:?}"),
                "add server_name, the name in the workload's certificate",
            )
        }),
    }
}

impl WorkloadTls {
    /// The files that it names, by key.
    pub(crate) fn read(&self) -> Result<Contents, Vec<WrongFile>> {
        let mut wrong = Vec::new();
        let mut read = |key, path: &Path| {
            let read = read_bounded(path);
            read.map_err(|Wrong { problem, suggestion }| wrong.push(WrongFile { key, problem, suggestion }))
                .ok()
        };
        let trust_bundle = read("trust_bundle", &self.trust_bundle);
        let client = self
            .client
            .as_ref()
            .map(|client| (read("certificate", &client.certificate), read("key", &client.key)));
        match (trust_bundle, client) {
            (Some(trust_bundle), None) => Ok(Contents { trust_bundle, client: None }),
            (Some(trust_bundle), Some((Some(chain), Some(key)))) => {
                Ok(Contents { trust_bundle, client: Some((chain, key)) })
            }
            _ => Err(wrong),
        }
    }

    /// What `contents` mean, without a protocol on top (ALPN). TLS 1.2 as well as 1.3: the workload is
    /// somebody else's program, perhaps an old one, and what rustls speaks of 1.2 (ephemeral keys,
    /// AEAD) is sound.
    pub(crate) fn judge(&self, contents: &Contents) -> Result<ClientConfig, Vec<WrongFile>> {
        let roots = roots(&contents.trust_bundle).map_err(|why| WrongFile {
            key: "trust_bundle",
            problem: format!("{}: {why}", self.trust_bundle.display()),
            suggestion: MAKE_BUNDLE.into(),
        });
        let chain_and_key = contents
            .client
            .as_ref()
            .zip(self.client.as_ref())
            .map(|((chain, key), files)| parse_pair(chain, key, files));
        let (roots, pair) = match (roots, chain_and_key.transpose()) {
            (Ok(roots), Ok(pair)) => (roots, pair),
            (roots, pair) => return Err(roots.err().into_iter().chain(pair.err()).collect()),
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("the provider has suites of both versions")
            .with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
                let path = self.client.as_ref().map(|client| client.key.display().to_string());
                let problem =
                    format!("{}: it does not go with the certificate: {error}", path.unwrap_or_default());
                vec![WrongFile { key: "key", problem, suggestion: MAKE_PAIR.into() }]
            })?,
        };
        // As between nodes: a resumed session would bring back a certificate that nobody judged.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

fn parse_pair(
    chain: &[u8],
    key: &[u8],
    files: &ClientFiles,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), WrongFile> {
    let wrong = |key, path: &Path, why: String| WrongFile {
        key,
        problem: format!("{}: {why}", path.display()),
        suggestion: MAKE_PAIR.into(),
    };
    let chain = certificates(chain, WORKLOAD_CHAIN_MAX)
        .map_err(|why| wrong("certificate", &files.certificate, why))?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| wrong("key", &files.key, "it holds no PEM private key".into()))?;
    Ok((chain, key))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates(pem, WORKLOAD_ROOTS_MAX)?.into_iter().enumerate() {
        roots
            .add(certificate)
            .map_err(|error| format!("its certificate number {} cannot be a root: {error}", index + 1))?;
    }
    Ok(roots)
}

fn certificates(pem: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(most + 1).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("it holds no PEM certificate".into()),
        Ok(certificates) if certificates.len() > most => {
            Err(format!("it holds more than {most} certificates"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("it is no PEM file: {error}")),
    }
}
