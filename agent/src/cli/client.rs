//! Asking a running agent over its unix socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
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
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("cannot reach the agent at {}: is it running?", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(http::header::HOST, "culvert").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("the agent did not answer")?;
    let status = response.status();
    let body = response.into_body().collect().await.context("the agent's answer broke off")?.to_bytes();
    driver.abort();
    let text = String::from_utf8(body.to_vec()).context("the agent's answer is not text")?;
    if !status.is_success() {
        bail!("the agent answers {status}: {}", text.trim_end());
    }
    Ok(text)
}
