//! Asking a running agent over its unix socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Where agents keep their state, one directory an instance.
pub(super) const STATE_DIR: &str = "/run/culvert";

/// The socket of `instance`, or of the only agent of this machine when none is named.
///
/// # Errors
///
/// When there is no agent, or several and none was named.
pub(super) fn socket(instance: Option<&str>) -> Result<PathBuf> {
    let of = |name: &str| Path::new(STATE_DIR).join(name).join("admin.sock");
    if let Some(name) = instance {
        return Ok(of(name));
    }
    let mut found: Vec<String> = std::fs::read_dir(STATE_DIR)
        .map(|entries| {
            let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
            names.filter(|name| of(name).exists()).collect()
        })
        .unwrap_or_default();
    found.sort();
    match &found[..] {
        [] => bail!(
            "no agent runs on this machine (nothing in {STATE_DIR}); start `culvert agent` or name --instance"
        ),
        [one] => Ok(of(one)),
        _ => bail!("several agents run on this machine: name one with --instance: {}", found.join(", ")),
    }
}

/// The body of `GET path`.
///
/// # Errors
///
/// When the agent cannot be reached or answers with an error.
pub(super) async fn get(socket: &Path, path: &str) -> Result<String> {
    ask(socket, Method::GET, path).await
}

/// The body of `method path`.
///
/// # Errors
///
/// As [`get`].
pub(super) async fn ask(socket: &Path, method: Method, path: &str) -> Result<String> {
    String::from_utf8(bytes(socket, method, path).await?.into()).context("the agent's answer is not text")
}

/// As [`ask`], whatever the body is.
///
/// # Errors
///
/// As [`get`].
pub(super) async fn bytes(socket: &Path, method: Method, path: &str) -> Result<Bytes> {
    let body = send(socket, method, path).await?;
    Ok(body.collect().await.context("the agent's answer broke off")?.to_bytes())
}

/// The body of an answer that is no error, as it comes.
async fn send(socket: &Path, method: Method, path: &str) -> Result<Incoming> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot reach the agent at {}: is it running?", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the body.
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path);
    let request = request.header(http::header::HOST, "culvert").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("the agent did not answer")?;
    let status = response.status();
    let body = response.into_body();
    if !status.is_success() {
        let text = body.collect().await.context("the agent's answer broke off")?.to_bytes();
        bail!("the agent answers {status}: {}", String::from_utf8_lossy(&text).trim_end());
    }
    Ok(body)
}

/// The lines of an answer, as they come.
pub(super) struct Lines {
    body: Incoming,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

impl Lines {
    /// The answer to `GET path`.
    ///
    /// # Errors
    ///
    /// As [`get`].
    pub(super) async fn open(socket: &Path, path: &str) -> Result<Self> {
        Ok(Self { body: send(socket, Method::GET, path).await?, begun: Vec::new() })
    }

    /// The next ones; `None` when there are no more.
    ///
    /// # Errors
    ///
    /// The agent went away in between.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<String>>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.context("the agent's answer broke off: it has stopped")?;
            let Ok(data) = frame.into_data() else { continue };
            self.begun.extend_from_slice(&data);
            let Some(end) = self.begun.iter().rposition(|byte| *byte == b'\n') else { continue };
            let rest = self.begun.split_off(end + 1);
            let whole = std::mem::replace(&mut self.begun, rest);
            let whole = String::from_utf8(whole).context("the agent's answer is not text")?;
            return Ok(Some(whole.lines().map(str::to_owned).collect()));
        }
        Ok(None)
    }
}
