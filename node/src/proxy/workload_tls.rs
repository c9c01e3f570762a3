//! TLS to a workload that speaks it: the files of `[service.tls]` followed as they are replaced, the
//! handshake, and a word for people on why one failed.
//!
//! What the files mean is judged by the configuration.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{info, warn};

use crate::config::{WorkloadTls, WorkloadTlsContents, WrongFile};
use crate::upstream::HttpVersion;

/// How often the files are looked at: an issuer overlaps the old and the new by minutes at least.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// Shakes hands with one workload.
pub(crate) struct WorkloadHandshake {
    tls: WorkloadTls,
    /// `None` until the files were first read.
    current: watch::Receiver<Option<Loaded>>,
}

/// Why TLS was not made.
pub(crate) enum HandshakeFailure {
    /// The workload does not speak this version in it.
    OtherVersion(HttpVersion),
    /// Anything else, for people.
    Told(String),
}

/// By its name in ALPN (RFC 7301, section 6).
const HTTP1: &[u8] = b"http/1.1";

type Loaded = Result<Arc<Configs>, String>;

/// One configuration for each thing that is spoken inside.
struct Configs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    opaque: Arc<ClientConfig>,
}

impl WorkloadHandshake {
    /// Reads the files in the background, and follows them for as long as it lives.
    pub(crate) fn new(tls: &WorkloadTls) -> Self {
        let (sender, current) = watch::channel(None);
        tokio::spawn(follow(tls.clone(), sender));
        Self { tls: tls.clone(), current }
    }

    /// Makes TLS of `stream`, in which HTTP of `version` or something else will be spoken. An error
    /// says what is wrong with whose certificate.
    ///
    /// A workload that chooses another version than asked for, or refuses to speak it, is told apart. In TLS 1.3 a workload refuses this node's own certificate after the
    /// handshake (RFC 8446, section 4.4): that ends the connection, not the handshake.
    pub(crate) async fn run(
        &self,
        stream: TcpStream,
        version: Option<HttpVersion>,
    ) -> Result<TlsStream<TcpStream>, HandshakeFailure> {
        let loaded =
            self.current.clone().wait_for(Option::is_some).await.ok().and_then(|seen| (*seen).clone());
        let configs = loaded.unwrap_or_else(|| Err("this node is leaving".into()));
        let configs = configs.map_err(HandshakeFailure::Told)?;
        let config = match version {
            Some(HttpVersion::Http1) => &configs.http1,
            Some(HttpVersion::Http2) => &configs.http2,
            None => &configs.opaque,
        };
        let name = self.tls.server_name.clone();
        let connected = TlsConnector::from(config.clone()).connect(name, stream).await;
        match (connected, version) {
            (Ok(stream), Some(HttpVersion::Http2)) if stream.get_ref().1.alpn_protocol() == Some(HTTP1) => {
                Err(HandshakeFailure::OtherVersion(HttpVersion::Http2))
            }
            (Ok(stream), _) => Ok(stream),
            (Err(error), Some(version)) if is_about_version(&error) => {
                Err(HandshakeFailure::OtherVersion(version))
            }
            (Err(error), _) => Err(HandshakeFailure::Told(self.explain(&error))),
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        let name = self.tls.server_name.to_str();
        match cause_of(error) {
            Some(TlsError::InvalidCertificate(wrong)) => match wrong {
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    format!(
                        "its certificate is not for {name}; service.tls.server_name says which name it must carry"
                    )
                }
                // The second: by another issuer of the same name, such as one that was made anew.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    format!("its certificate was not issued under {}", self.tls.trust_bundle.display())
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate has expired".into()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "its certificate is not valid yet; check both machines' clocks".into()
                }
                other => format!("its certificate cannot be believed: {other}"),
            },
            Some(TlsError::AlertReceived(alert)) => format!("it ended the TLS handshake: {alert:?}"),
            Some(other) => format!("it does not speak TLS as it should: {other}"),
            None => format!("the TLS handshake failed: {error}"),
        }
    }
}

fn cause_of(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// Whether a server found no version that it speaks among those it was offered.
fn is_about_version(error: &io::Error) -> bool {
    matches!(cause_of(error), Some(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

impl Configs {
    fn new(config: ClientConfig) -> Self {
        let with = |alpn: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Self {
            http1: with(&[HTTP1]),
            // With the second, a server without HTTP/2 says so, instead of ending the handshake.
            http2: with(&[b"h2", HTTP1]),
            opaque: with(&[]),
        }
    }
}

/// Gives `current` whatever the files hold, until nobody asks any more. Files that cannot be used
/// leave the last good ones in place.
async fn follow(tls: WorkloadTls, current: watch::Sender<Option<Loaded>>) {
    let mut seen = None;
    let mut trouble = None;
    loop {
        let (files, before) = (tls.clone(), seen.clone());
        let look = tokio::task::spawn_blocking(move || look(&files, before.as_ref())).await;
        match look {
            Ok(Ok(None)) => trouble = None,
            Ok(Ok(Some((contents, configs)))) => {
                if seen.replace(contents).is_some() {
                    info!(trust_bundle = %tls.trust_bundle.display(), "took new files for TLS to a workload");
                }
                trouble = None;
                current.send_replace(Some(Ok(Arc::new(configs))));
            }
            Ok(Err(why)) => {
                if trouble.as_ref() != Some(&why) {
                    let stays = if seen.is_some() { "the last good ones stay" } else { "it gets no work" };
                    warn!(trouble = why, "files for TLS to a workload cannot be used; {stays}");
                }
                if seen.is_none() {
                    current.send_replace(Some(Err(why.clone())));
                }
                trouble = Some(why);
            }
            Err(_stopped) => return,
        }
        tokio::select! {
            () = current.closed() => return,
            () = tokio::time::sleep(LOOK_PERIOD) => {}
        }
    }
}

/// `None` if nothing has changed since `before`. Files that do not go together may be in the midst
/// of being replaced.
fn look(
    tls: &WorkloadTls,
    before: Option<&WorkloadTlsContents>,
) -> Result<Option<(WorkloadTlsContents, Configs)>, String> {
    let told = |wrong: Vec<WrongFile>| wrong.iter().map(WrongFile::to_string).collect::<Vec<_>>().join("; ");
    let contents = tls.read().map_err(told)?;
    if before == Some(&contents) {
        return Ok(None);
    }
    let config = tls.judge(&contents).map_err(told)?;
    Ok(Some((contents, Configs::new(config))))
}
