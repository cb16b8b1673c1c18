//! What the command line says of itself: completions for shells, and manual pages.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use super::show::print;

/// `culvert completions`.
#[derive(Args, Debug)]
pub(super) struct CompletionArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: ShellName,
}

/// Shells that can be helped.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum ShellName {
    /// bash, with the package bash-completion.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// `culvert man`.
#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// The verb whose page to print [default: the page of culvert itself]
    verb: Option<String>,
    /// Write every page into this folder instead, as culvert.1, culvert-flows.1, …
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    dir: Option<PathBuf>,
}

/// Prints a script for a shell.
pub(super) fn completions(args: &CompletionArgs) -> Result<()> {
    let shell = match args.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "culvert", &mut script);
    print(&String::from_utf8(script)?)
}

/// Prints one page, or writes all.
pub(super) fn man(args: &ManArgs) -> Result<()> {
    let pages = pages()?;
    if let Some(dir) = &args.dir {
        return write(&pages, dir);
    }
    let name = args.verb.as_ref().map_or_else(|| "culvert".to_owned(), |verb| format!("culvert-{verb}"));
    match pages.iter().find(|(page, _)| *page == name) {
        Some((_, text)) => print(text),
        None => {
            let verbs: Vec<&str> =
                pages.iter().filter_map(|(page, _)| page.strip_prefix("culvert-")).collect();
            bail!("there is no page for {name:?}: name one of {}", verbs.join(", "))
        }
    }
}

fn write(pages: &[(String, String)], dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--dir {}", dir.display()))?;
    for (name, text) in pages {
        let path = dir.join(format!("{name}.1"));
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    print(&format!("wrote {} pages into {}\n", pages.len(), dir.display()))
}

/// Name and text (roff) of every page.
fn pages() -> Result<Vec<(String, String)>> {
    let mut top = Cli::command();
    top.build();
    let verbs = top.get_subcommands().filter(|verb| verb.get_name() != "help" && !verb.is_hide_set());
    let verbs = verbs.map(|verb| (format!("culvert-{}", verb.get_name()), verb.clone()));
    let all = std::iter::once(("culvert".to_owned(), top.clone())).chain(verbs);
    all.map(|(name, command)| Ok((name, page(command)?))).collect()
}

fn page(command: Command) -> Result<String> {
    let mut roff = Vec::new();
    Man::new(command).render(&mut roff)?;
    Ok(String::from_utf8(roff)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn every_verb_has_examples_that_it_takes() {
        for verb in Cli::command().get_subcommands().filter(|verb| verb.get_name() != "help") {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help
                .lines()
                .filter_map(|line| line.strip_prefix("  "))
                .filter(|l| l.starts_with("culvert "))
                .collect();
            assert!(help.starts_with("Example") && !examples.is_empty(), "{}: {help:?}", verb.get_name());
            for example in examples {
                let words = example.split([' ']).take_while(|word| !matches!(*word, ">" | "|" | "&&"));
                let parsed = Cli::try_parse_from(words);
                assert!(
                    parsed.is_ok(),
                    "{example}: {}",
                    parsed.err().map(|e| e.to_string()).unwrap_or_default()
                );
            }
        }
    }

    #[test]
    fn every_verb_has_a_page_with_its_examples() {
        let pages = pages().unwrap();
        assert_eq!(
            pages.len(),
            1 + Cli::command().get_subcommands().filter(|v| v.get_name() != "help").count()
        );
        let flows = pages.iter().find(|(name, _)| name == "culvert-flows").unwrap();
        assert!(flows.1.contains(".TH culvert-flows 1") && flows.1.contains("verdict"), "{}", flows.1);
        assert!(flows.1.contains("culvert flows"), "{}", flows.1);
    }
}
