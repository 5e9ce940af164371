//! TLS towards a bucket: `http_config.tls_config`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::metrics::Registry;
use crate::objstore::OpenBucketError;
use crate::objstore::options::BucketTlsOptions;
use crate::tls::verify::Verifier;
use crate::tls::{Authorities, FromFiles, Identity, TlsError, TlsFile, TlsVersion, provider};

const FLAG: &str = "objstore.config";

/// Makes connections private. Its files are read again when they have changed.
pub(super) struct BucketTls {
    options: BucketTlsOptions,
    server_name: Option<ServerName<'static>>,
    of_system: Option<Authorities>,
    config: FromFiles<Arc<ClientConfig>>,
}

impl BucketTls {
    pub(super) fn load(
        options: &BucketTlsOptions,
        registry: &Registry,
    ) -> Result<BucketTls, OpenBucketError> {
        let server_name = options.server_name.clone().map(ServerName::try_from).transpose();
        let server_name = server_name
            .map_err(|_| OpenBucketError::Value("tls_config.server_name: no name".to_owned()))?;
        let asks_system = options.ca.is_none() && !options.skip_verify;
        let of_system = asks_system.then(Authorities::of_system);
        let mut files: Vec<TlsFile> = options.ca.iter().map(|path| file(path)).collect();
        if let Some((cert, key)) = &options.identity {
            files.extend([file(cert), file(key)]);
        }
        let make = || build(options, of_system.as_ref());
        let config = FromFiles::new(FLAG, files, registry, make)?;
        Ok(BucketTls { options: options.clone(), server_name, of_system, config })
    }

    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            // An IPv6 address stands in brackets.
            None => ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(io::Error::other)?,
        };
        let config = self.config.current(|| build(&self.options, self.of_system.as_ref()));
        TlsConnector::from(Arc::clone(&*config)).connect(name, stream).await
    }
}

fn file(path: &Path) -> TlsFile {
    TlsFile { flag: FLAG, path: path.to_owned() }
}

fn build(
    options: &BucketTlsOptions,
    of_system: Option<&Authorities>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(TlsVersion::V1_2.and_above())?;
    let authorities = match &options.ca {
        Some(ca) => Authorities::read(&file(ca))?.with_usable_keys(&file(ca))?,
        None => of_system.cloned().unwrap_or_else(Authorities::nobody),
    };
    let verifier = Arc::new(match options.skip_verify {
        true => Verifier::of_anybody(&provider),
        false => Verifier::new(authorities, &provider),
    });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &options.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let identity = Identity { cert: file(cert), key: file(key) };
            let identity = SingleCertAndKey::from(identity.read(&provider)?);
            builder.with_client_cert_resolver(Arc::new(identity))
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
