//! The files that a configuration names, judged together: the identity, the bundle, the token.
//!
//! Pure but for reading them; watching them is the transport's work.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use starling_gossip::clock::WallTime;
use starling_gossip::identity::TrustDomain;
use starling_gossip::svid::{ChainError, Svid, SvidError, TrustBundle, Usage};

use super::limits::IDENTITY_FILE_BYTES_MAX;
use super::{Config, Mistake, Mistakes};

/// What the files held: an identity that the bundle believes and the services agree with.
#[derive(Debug)]
pub struct Files {
    /// Who this node is.
    pub svid: Svid,
    /// Whom it believes.
    pub trust_bundle: TrustBundle,
    /// The admin token, if one is configured; without surrounding white space.
    pub token: Option<String>,
}

/// Tokens shorter than this can be guessed.
const TOKEN_BYTES_MIN: usize = 16;

impl Files {
    /// Reads and judges every file that `config` names, at wall time `wall`.
    pub fn load(config: &Config, wall: WallTime) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let svid = load_svid(config, &mut mistakes);
        let domain = svid.as_ref().map(|svid| svid.id().trust_domain());
        let trust_bundle = load_bundle(config, domain, &mut mistakes);
        let token = load_token(config, &mut mistakes);
        if let (Some(svid), Some(bundle)) = (&svid, &trust_bundle) {
            check_chain(config, svid, bundle, wall, &mut mistakes);
        }
        if let Some(svid) = &svid {
            check_names(config, svid, &mut mistakes);
        }
        Mistakes::none_of(mistakes)?;
        let (svid, trust_bundle) = svid.zip(trust_bundle).expect("a file that cannot be used is a mistake");
        Ok(Self { svid, trust_bundle, token })
    }
}

fn load_svid(config: &Config, mistakes: &mut Vec<Mistake>) -> Option<Svid> {
    let certificate = read_file(config, "identity.certificate", &config.identity.certificate, mistakes);
    let key = read_file(config, "identity.key", &config.identity.key, mistakes);
    let error = match Svid::from_pem(&certificate?, &key?) {
        Ok(svid) => return Some(svid),
        Err(error) => error,
    };
    let (at, path) = match &error {
        SvidError::NoKey(_) | SvidError::KeyMismatch => ("identity.key", &config.identity.key),
        _ => ("identity.certificate", &config.identity.certificate),
    };
    let suggestion = "make both with `starling ca issue`, or have your issuer write them anew";
    mistakes.push(config.sources.mistake(at, format!("{}: {error}", path.display()), suggestion));
    None
}

fn load_bundle(
    config: &Config,
    domain: Option<TrustDomain>,
    mistakes: &mut Vec<Mistake>,
) -> Option<TrustBundle> {
    let path = &config.identity.trust_bundle;
    let pem = read_file(config, "identity.trust_bundle", path, mistakes)?;
    // Without a certificate there is no trust domain; the bundle's own mistakes still count.
    let known = domain.is_some();
    let domain = domain.or_else(|| "unknown".parse().ok())?;
    match TrustBundle::from_pem(domain, &pem) {
        Ok(bundle) => known.then_some(bundle),
        Err(error) => {
            let problem = format!("{}: {error}", path.display());
            let suggestion =
                "name the file with the roots of the trust domain, such as the ca.crt of `starling ca init`";
            mistakes.push(config.sources.mistake("identity.trust_bundle", problem, suggestion));
            None
        }
    }
}

fn load_token(config: &Config, mistakes: &mut Vec<Mistake>) -> Option<String> {
    let path = config.admin.token_file.as_ref()?;
    let bytes = read_file(config, "admin.token_file", path, mistakes)?;
    let token = String::from_utf8(bytes).unwrap_or_default().trim().to_owned();
    if token.len() >= TOKEN_BYTES_MIN && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(token);
    }
    let problem =
        format!("{} holds no token of {TOKEN_BYTES_MIN} or more visible characters", path.display());
    let suggestion = format!("make one: openssl rand -hex 32 > {}", path.display());
    mistakes.push(config.sources.mistake("admin.token_file", problem, suggestion));
    None
}

/// Both ways: this node dials with the certificate and answers with it.
fn check_chain(
    config: &Config,
    svid: &Svid,
    bundle: &TrustBundle,
    wall: WallTime,
    mistakes: &mut Vec<Mistake>,
) {
    let outcomes = [Usage::Client, Usage::Server].map(|usage| bundle.verify(svid.chain(), usage, wall));
    let Some(error) = outcomes.into_iter().find_map(Result::err) else { return };
    let suggestion = match error {
        ChainError::NotValidNow(_) => "issue a new certificate, or set the machine's clock",
        _ => "use a certificate for client and server authentication, issued under the bundle's root",
    };
    let problem = format!("{}: {error}", config.identity.certificate.display());
    mistakes.push(config.sources.mistake("identity.certificate", problem, suggestion));
}

fn check_names(config: &Config, svid: &Svid, mistakes: &mut Vec<Mistake>) {
    let id = svid.id();
    let may = match id.announces() {
        Some(name) => format!("it may announce {:?}", name.as_str()),
        None => "it may announce no service".to_owned(),
    };
    for (index, service) in config.services.iter().enumerate() {
        if !id.may_announce(&service.name) {
            mistakes.push(config.sources.mistake(
                &format!("service[{index}].name"),
                format!("{id} may not announce {:?}; {may}", service.name.as_str()),
                format!(
                    "use a certificate for spiffe://{}/svc/{}, or another name",
                    id.trust_domain(),
                    service.name
                ),
            ));
        }
    }
}

fn read_file(config: &Config, key: &str, path: &Path, mistakes: &mut Vec<Mistake>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(IDENTITY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let (problem, suggestion) = match read {
        Ok(_) if bytes.len() as u64 <= IDENTITY_FILE_BYTES_MAX => return Some(bytes),
        Ok(_) => ("it is too large".to_owned(), format!("at most {IDENTITY_FILE_BYTES_MAX} bytes are read")),
        Err(error) => (
            error.to_string(),
            "name a file that this user may read; relative paths start at the configuration file".to_owned(),
        ),
    };
    mistakes.push(config.sources.mistake(
        key,
        format!("{} cannot be read: {problem}", path.display()),
        suggestion,
    ));
    None
}
