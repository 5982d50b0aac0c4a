//! The API over TCP, in TLS where a certificate is given. Without one only on the loopback: an API key is a secret.

use crate::api::{self, Api, Peer};
use axum::Router;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower::ServiceExt;

/// Connections at one time; more wait in the kernel.
const CONNECTIONS: usize = 2048;
/// How long the head of a request may take, and a TLS handshake. Also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(30);
/// How long a client may leave an answer unread.
const UNREAD: Duration = Duration::from_secs(30);
/// A pause after the kernel refused a connection, as it does when descriptors run out.
const REFUSED: Duration = Duration::from_millis(50);

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Listen {
    pub address: SocketAddr,
    /// Files in PEM: the certificate chain and its key.
    pub tls: Option<(PathBuf, PathBuf)>,
}

pub(super) struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listen {
    /// `ADDRESS:PORT`, or a port of the loopback.
    pub fn parse(text: &str, tls: Option<(PathBuf, PathBuf)>) -> Result<Listen, String> {
        let port = text.parse().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let address = port
            .or_else(|_| text.parse())
            .map_err(|_| format!("{text}: expected ADDRESS:PORT, as in 127.0.0.1:8200"))?;
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(format!("{text}: beyond the loopback only with TLS: give --tls-cert and --tls-key"));
        }
        Ok(Listen { address, tls })
    }

    /// To be called on a runtime.
    pub(super) fn bind(&self) -> io::Result<Listener> {
        let tls = self.tls.as_ref().map(|(chain, key)| acceptor(chain, key)).transpose()?;
        let socket = std::net::TcpListener::bind(self.address)?;
        socket.set_nonblocking(true)?;
        Ok(Listener { socket: TcpListener::from_std(socket)?, tls })
    }
}

fn acceptor(chain: &PathBuf, key: &PathBuf) -> io::Result<TlsAcceptor> {
    let wrong =
        |path: &PathBuf, e: String| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {e}", path.display()));
    let certificates = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|e| wrong(chain, e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(certificates, secret);
    Ok(TlsAcceptor::from(Arc::new(config.map_err(|e| wrong(chain, e.to_string()))?)))
}

impl Listener {
    pub(super) fn address(&self) -> io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}", self.socket.local_addr()?))
    }

    /// Answers until it is told to stop; requests that are under way then are still answered.
    pub(super) async fn answer(self, api: Arc<Api>, mut stopped: watch::Receiver<bool>) {
        let (routes, places) = (api::router(api), Arc::new(Semaphore::new(CONNECTIONS)));
        let mut connections = JoinSet::new();
        while !*stopped.borrow() {
            let place = places.clone().acquire_owned().await.expect("never closed");
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                _ = stopped.changed() => break,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(_) => {
                    tokio::time::sleep(REFUSED).await;
                    continue;
                }
            };
            // Answers are small and waited for.
            let _ = stream.set_nodelay(true);
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(UNREAD));
            let stream = Box::pin(stream);
            let (routes, tls, stopped) = (routes.clone(), self.tls.clone(), stopped.clone());
            connections.spawn(async move {
                let _place = place;
                match tls {
                    None => connection(stream, from.ip(), routes, stopped).await,
                    // Whoever does not finish the handshake has nothing to be told.
                    Some(tls) => {
                        if let Ok(Ok(stream)) = tokio::time::timeout(HEAD, tls.accept(stream)).await {
                            connection(stream, from.ip(), routes, stopped).await;
                        }
                    }
                }
            });
            while connections.try_join_next().is_some() {}
        }
        drop(self.socket);
        while connections.join_next().await.is_some() {}
    }
}

async fn connection<S>(stream: S, from: IpAddr, routes: Router, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = routes.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(Peer::Remote(from)));
        request.map(axum::body::Body::new)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(serving);
    loop {
        tokio::select! {
            // How a client leaves is its own affair.
            _ = serving.as_mut() => return,
            _ = stopped.changed() => serving.as_mut().graceful_shutdown(),
        }
        // From here on only the end is waited for.
        if *stopped.borrow() {
            let _ = serving.as_mut().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_loopback_only_with_tls() {
        let tls = || Some(("c".into(), "k".into()));
        assert_eq!(Listen::parse("8200", None).unwrap().address, "127.0.0.1:8200".parse().unwrap());
        assert!(Listen::parse("[::1]:8200", None).is_ok() && Listen::parse("0.0.0.0:8200", tls()).is_ok());
        assert!(Listen::parse("0.0.0.0:8200", None).unwrap_err().contains("TLS"));
        assert!(Listen::parse("localhost", None).is_err());
    }
}
