//! Where lists come from: a running agent, or what one wrote down earlier.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::args::QueryArgs;
use super::client;

/// All that the agent knows, or knew.
///
/// # Errors
///
/// There is no agent, or the file is none of its dumps.
pub(super) async fn read(args: &QueryArgs) -> Result<Value> {
    match &args.file {
        Some(path) => read_file(path),
        None => {
            let socket = client::socket(args.socket.instance.as_deref())?;
            serde_json::from_str(&client::get(&socket, "/dump").await?).context("the agent's dump")
        }
    }
}

/// What an agent knew, from a file; `-` is standard input.
///
/// # Errors
///
/// As [`read`].
pub(super) fn read_file(path: &Path) -> Result<Value> {
    let mut text = String::new();
    let (name, result) = if path == Path::new("-") {
        ("standard input".to_owned(), std::io::stdin().read_to_string(&mut text))
    } else {
        let result = std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
        (path.display().to_string(), result)
    };
    result.with_context(|| format!("--file {name}"))?;
    parse(&text).with_context(|| format!("--file {name}"))
}

fn parse(text: &str) -> Result<Value> {
    let dump: Value = match serde_json::from_str(text) {
        Ok(dump) => dump,
        Err(error) if text.trim_start().starts_with('{') => {
            return Err(error).context("cannot be read as JSON");
        }
        // What culvert writes is larger than what a stranger's YAML may be.
        Err(_) => serde_saphyr::from_str_with_options(text, serde_saphyr::options! { budget: None })
            .context("can be read neither as JSON nor as YAML")?,
    };
    if dump.get("workloads").is_none_or(|rows| !rows.is_array()) {
        bail!("is no dump: write one with `culvert all -o json`");
    }
    Ok(dump)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::parse;

    #[test]
    fn a_dump_reads_the_same_in_both_forms() {
        let texts = [
            "",
            "yes",
            "1.0",
            "null",
            "a: b",
            "- x",
            "fd00::1",
            "\"",
            "line\nline",
            " # no",
            "ns/web:80",
            "é",
        ];
        let dump = json!({"workloads": texts, "version": "0.1", "pods": [], "rows": 7, "none": null, "deep": {"a": [{}, [1]]}});
        assert_eq!(parse(&dump.to_string()).unwrap(), dump);
        assert_eq!(parse(&serde_saphyr::to_string(&dump).unwrap()).unwrap(), dump);
    }

    #[test]
    fn something_else_is_refused_with_how_to_make_one() {
        for (text, says) in [
            ("{\"workloads\": [", "cannot be read as JSON"),
            ("[]", "write one with `culvert all -o json`"),
            ("workloads: 1", "write one with `culvert all -o json`"),
            ("a: [", "neither as JSON nor as YAML"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
