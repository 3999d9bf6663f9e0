//! Certificates for a Redis that speaks TLS.

use std::fs;
use std::path::{Path, PathBuf};

use harness::redis::Redis;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// The files that a server with a certificate needs, and its clients.
#[derive(Debug)]
pub struct Certificate {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// Writes a certificate for `name`, signed by its own new authority, into a folder.
    pub fn write(folder: &Path, name: &str) -> Self {
        let file = |suffix: &str| folder.join(format!("{name}.{suffix}.pem"));
        let (authority_key, server_key) = (new_key(), new_key());
        let mut params = CertificateParams::new([]).expect("an empty list of names is valid");
        // With the server's name, the certificate would look self-signed.
        params.distinguished_name.push(DnType::CommonName, format!("authority of {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = params.self_signed(&authority_key).expect("a certificate");
        let issuer = Issuer::new(params, authority_key);
        let certificate = CertificateParams::new([name.to_owned()])
            .and_then(|params| params.signed_by(&server_key, &issuer))
            .expect("a certificate for a DNS name");
        let written =
            Self { authority: file("authority"), certificate: file("certificate"), key: file("key") };
        for (path, text) in [
            (&written.authority, authority.pem()),
            (&written.certificate, certificate.pem()),
            (&written.key, server_key.serialize_pem()),
        ] {
            fs::write(path, text).expect("a file written");
        }
        written
    }

    /// Starts a Redis that also speaks TLS, on [`Redis::tls_address`].
    #[track_caller]
    pub fn start_redis(&self, lines: &[&str]) -> Redis {
        let tls = [
            "tls-port {second}".to_owned(),
            "tls-auth-clients no".to_owned(),
            format!("tls-ca-cert-file {}", self.authority.display()),
            format!("tls-cert-file {}", self.certificate.display()),
            format!("tls-key-file {}", self.key.display()),
        ];
        let lines: Vec<_> = tls.iter().map(String::as_str).chain(lines.iter().copied()).collect();
        Redis::start_with(&lines)
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}
