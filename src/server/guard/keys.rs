use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;

use super::body::refuse;
use super::file_watch::FileWatch;
use crate::server::App;
use crate::server::wire::error::ApiError;

/// The keys that requests may show. Only their hashes are kept, and nothing here prints one.
pub struct Keys {
    hashes: RwLock<Vec<Hash>>,
    file: Option<(PathBuf, FileWatch)>,
}

type Hash = [u8; 32];

/// Why keys cannot be used. None of these repeats a key.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("cannot read the API keys in {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// There is no key at all, so nobody could ask for anything.
    #[error("{0} holds no API key: write one a line, or leave it out to let anyone in")]
    None(String),
    /// A key that no HTTP header could carry as it is.
    #[error(
        "{source_name}, key {number}: an API key is made of visible ASCII characters without spaces; this one is not"
    )]
    Malformed {
        /// The file or variable.
        source_name: String,
        /// Which of its lines or entries, from 1.
        number: usize,
    },
}

impl Keys {
    /// From a file with a key a line; empty lines and lines that begin with `#` are left out. It is read again when it
    /// changes.
    ///
    /// # Errors
    /// If it cannot be read, holds no key, or something that is none.
    pub fn from_file(path: &Path) -> Result<Self, KeysError> {
        // Before it is read, so that no change goes unseen.
        let watch = FileWatch::new(vec![path.to_owned()]);
        Ok(Self { hashes: RwLock::new(read(path)?), file: Some((path.to_owned(), watch)) })
    }

    /// From text with commas between the keys, as an environment variable has it; `source` is its name.
    ///
    /// # Errors
    /// If it holds no key, or something that is none.
    pub fn from_list(source: &str, text: &str) -> Result<Self, KeysError> {
        Ok(Self { hashes: RwLock::new(parse(source, text.split(','))?), file: None })
    }

    /// Takes the keys of the file over if it has changed. If they cannot be used, those that are known stay.
    pub(super) fn reload_if_changed(&self) {
        let Some((path, _)) = self.file.as_ref().filter(|(_, watch)| watch.has_changed()) else { return };
        match read(path) {
            Ok(hashes) => {
                tracing::info!("{} API keys from {}", hashes.len(), path.display());
                *self.hashes.write().unwrap_or_else(PoisonError::into_inner) = hashes;
            }
            Err(error) => tracing::warn!("the API keys stay as they are: {error}"),
        }
    }

    /// Whether `key` is one of them. All are compared, each as a whole, so the time tells nothing about them.
    fn accept(&self, key: &[u8]) -> bool {
        let hash = hash(key);
        let hashes = self.hashes.read().unwrap_or_else(PoisonError::into_inner);
        hashes.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&hash)).into()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("file", &self.file.as_ref().map(|(path, _)| path))
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<Hash>, KeysError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| KeysError::Read { path: path.to_owned(), error })?;
    parse(&path.display().to_string(), text.lines())
}

fn parse<'a>(source: &str, entries: impl Iterator<Item = &'a str>) -> Result<Vec<Hash>, KeysError> {
    let keys = entries.map(str::trim).enumerate();
    let keys = keys.filter(|(_, key)| !key.is_empty() && !key.starts_with('#')).map(|(index, key)| {
        if key.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(hash(key.as_bytes()))
        } else {
            Err(KeysError::Malformed { source_name: source.to_owned(), number: index + 1 })
        }
    });
    let hashes = keys.collect::<Result<Vec<_>, _>>()?;
    if hashes.is_empty() { Err(KeysError::None(source.to_owned())) } else { Ok(hashes) }
}

fn hash(key: &[u8]) -> Hash {
    Sha256::digest(key).into()
}

/// Lets a request through that needs no key or shows one.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let access = &app.guard.access;
    let Some(keys) = access.keys.as_ref().filter(|_| !access.is_public(request.uri().path())) else {
        return next.run(request).await;
    };
    let error = match bearer(request.headers()) {
        Some(key) if keys.accept(key) => return next.run(request).await,
        Some(_) => ApiError::unauthorized("the API key is not one of this server's"),
        None => ApiError::unauthorized("there is no API key: send `Authorization: Bearer KEY`"),
    };
    refuse(&app, request, error)
}

/// The key that a request shows.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_file_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(&path, "# ours\n\n sk-one \r\nsk-two\n").unwrap();
        let keys = Keys::from_file(&path).unwrap();
        for (key, accepted) in
            [("sk-one", true), ("sk-two", true), ("sk-on", false), ("", false), ("# ours", false)]
        {
            assert_eq!(keys.accept(key.as_bytes()), accepted, "{key}");
        }
        std::fs::write(&path, "sk-three\n").unwrap();
        keys.reload_if_changed();
        assert!(keys.accept(b"sk-three") && !keys.accept(b"sk-one"));
        // What cannot be used leaves everything as it is.
        std::fs::write(&path, "# nobody is left").unwrap();
        keys.reload_if_changed();
        std::fs::remove_file(&path).unwrap();
        keys.reload_if_changed();
        assert!(keys.accept(b"sk-three"));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let error = Keys::from_list("SCONE_API_KEYS", "sk-fine,my secret").unwrap_err().to_string();
        assert!(error.contains("SCONE_API_KEYS, key 2") && !error.contains("secret"), "{error}");
        assert!(Keys::from_list("SCONE_API_KEYS", " , ").is_err());
        assert!(
            Keys::from_file(Path::new("/nowhere/keys")).unwrap_err().to_string().contains("/nowhere/keys")
        );
        let keys = Keys::from_list("SCONE_API_KEYS", "sk-one, sk-two").unwrap();
        assert!(keys.accept(b"sk-two") && !format!("{keys:?}").contains("sk-"));
    }

    #[test]
    fn a_key_is_shown_as_a_bearer() {
        for (value, key) in [
            ("Bearer k", Some("k")),
            ("bearer  k ", Some("k")),
            ("Bearer", None),
            ("Basic abc", None),
            ("k", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(bearer(&headers), key.map(str::as_bytes), "{value}");
        }
    }
}
