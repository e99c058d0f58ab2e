use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::server::{Access, Cors, Keys, Tls};

/// The variables that API keys may stand in. No flag: other users of the machine see those.
const KEY_VARIABLES: [&str; 2] = ["SCONE_API_KEYS", "SCONE_API_KEY"];

/// Who may ask.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Access")]
pub(super) struct AccessArgs {
    /// A file with the API keys of which a request must show one (`Authorization: Bearer KEY`), one a line, # before
    /// comments; read again when it changes. SCONE_API_KEYS or SCONE_API_KEY may have them instead, with commas between [default: none is
    /// asked for]
    #[arg(long, value_name = "FILE", env = "SCONE_API_KEYS_FILE")]
    api_keys_file: Option<PathBuf>,
    /// Addresses that need a key too, with commas between; without it they are public
    #[arg(long, value_name = "PATH", env = "SCONE_PROTECT", value_delimiter = ',', value_parser = PossibleValuesParser::new(Access::PUBLIC))]
    protect: Vec<String>,
    /// Origins of web pages that may ask from a browser, as https://example.org, with commas between; * is any
    #[arg(long, value_name = "ORIGIN", env = "SCONE_CORS_ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// A certificate, as PEM with those that vouch for it after it: serves HTTPS only; read again when it changes
    #[arg(long, value_name = "FILE", env = "SCONE_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, as PEM
    #[arg(long, value_name = "FILE", env = "SCONE_TLS_KEY")]
    tls_key: Option<PathBuf>,
}

impl AccessArgs {
    /// Reads keys and certificate.
    pub(super) fn open(&self) -> Result<Access> {
        let keys = self.keys()?;
        if keys.is_none() && !self.protect.is_empty() {
            bail!("--protect needs API keys: name a file of them with --api-keys-file");
        }
        let cors = match self.cors_origin.as_slice() {
            [] => None,
            origins => Some(Cors::new(origins).context("--cors-origin")?),
        };
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(Tls::open(certificate, key)?),
            (None, None) => None,
            (Some(_), None) => bail!("--tls-cert needs --tls-key, the certificate's private key"),
            (None, Some(_)) => bail!("--tls-key needs --tls-cert, the certificate that it belongs to"),
        };
        Ok(Access { keys, protected: self.protect.clone(), cors, tls })
    }

    fn keys(&self) -> Result<Option<Keys>> {
        let mut variables = KEY_VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let variable = variables.next();
        if variables.next().is_some() {
            bail!("there are API keys in {}: keep one of them", KEY_VARIABLES.join(" and in "));
        }
        match (&self.api_keys_file, variable) {
            (Some(_), Some((name, _))) => {
                bail!("there are API keys in a file and in {name}: keep one of them")
            }
            (Some(file), None) => Ok(Some(Keys::from_file(file)?)),
            (None, Some((name, keys))) => {
                let Some(keys) = keys.to_str() else { bail!("{name} is no text in UTF-8") };
                Ok(Some(Keys::from_list(name, keys)?))
            }
            (None, None) => Ok(None),
        }
    }
}
