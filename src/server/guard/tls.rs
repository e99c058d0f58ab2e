use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::file_watch::FileWatch;

/// A certificate that connections are kept private with. It is read again when its files change.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    watch: Arc<FileWatch>,
}

/// The certificate of the next handshake, and where it comes from.
#[derive(Debug)]
struct Current {
    certificate: PathBuf,
    key: PathBuf,
    certified: RwLock<Arc<CertifiedKey>>,
}

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("cannot read {what} in {path}: {error}; it must be PEM")]
    Read {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it cannot.
        error: pem::Error,
    },
    /// The two are there, but do not make a certificate together.
    #[error("the certificate in {certificate} and the private key in {key} do not go together: {error}")]
    Unfit {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
}

impl Tls {
    /// Reads a certificate, with those that vouch for it after it, and its private key, both as PEM.
    ///
    /// # Errors
    /// If they cannot be read, or are not each other's.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        // Before they are read, so that no change goes unseen.
        let watch = FileWatch::new(vec![certificate.to_owned(), key.to_owned()]);
        let certified = RwLock::new(Arc::new(read(certificate, key)?));
        let current =
            Arc::new(Current { certificate: certificate.to_owned(), key: key.to_owned(), certified });
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unfit(certificate, key, error))?;
        let mut config = config
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), current, watch: Arc::new(watch) })
    }

    /// Takes the files over if they have changed. If they cannot be used, the certificate that is known stays.
    pub(super) fn reload_if_changed(&self) {
        if !self.watch.has_changed() {
            return;
        }
        let Current { certificate, key, certified } = &*self.current;
        match read(certificate, key) {
            Ok(read) => {
                tracing::info!("a new certificate from {}", certificate.display());
                *certified.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
            }
            Err(error) => tracing::warn!("the certificate stays as it is: {error}"),
        }
    }

    /// Shakes hands with a client.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        socket: S,
    ) -> std::io::Result<TlsStream<S>> {
        self.acceptor.accept(socket).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.current.certificate).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.certified.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(|error| unreadable("a certificate", certificate, error))?;
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable("a private key", key, error))?;
    let signing = ring::sign::any_supported_type(&private).map_err(|error| unfit(certificate, key, error))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // Of some kinds of keys it cannot be told.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(unfit(certificate, key, error)),
    }
}

fn unreadable(what: &'static str, path: &Path, error: pem::Error) -> TlsError {
    TlsError::Read { what, path: path.to_owned(), error }
}

fn unfit(certificate: &Path, key: &Path, error: rustls::Error) -> TlsError {
    TlsError::Unfit { certificate: certificate.to_owned(), key: key.to_owned(), error }
}
