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
    /// The verb whose page to print, as `flows` or `profile heap` [default: the page of culvert itself]
    verb: Vec<String>,
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
    let name =
        std::iter::once("culvert").chain(args.verb.iter().map(String::as_str)).collect::<Vec<_>>().join("-");
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
    let mut all = Vec::new();
    add(&mut all, "culvert", &top)?;
    Ok(all)
}

/// The page of a command, and those of its verbs.
fn add(pages: &mut Vec<(String, String)>, name: &str, command: &Command) -> Result<()> {
    // The title is the command's name as git's pages have it: culvert-profile-cpu.
    pages.push((name.to_owned(), page(command.clone().display_name(name))?));
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help" && !verb.is_hide_set()) {
        add(pages, &format!("{name}-{}", verb.get_name()), verb)?;
    }
    Ok(())
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
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for verb in Cli::command().get_subcommands().filter(|verb| verb.get_name() != "help") {
            assert!(names.contains(&format!("culvert-{}", verb.get_name()).as_str()), "{}", verb.get_name());
        }
        for (name, text) in &pages {
            assert!(
                text.contains(&format!(".TH {name} 1")),
                "{name}: {}",
                text.lines().nth(2).unwrap_or_default()
            );
        }
        let own = pages.iter().find(|(name, _)| name == "culvert-profile-heap").unwrap();
        assert!(own.1.contains("seconds"), "{}", own.1);
        let flows = pages.iter().find(|(name, _)| name == "culvert-flows").unwrap();
        assert!(flows.1.contains(".TH culvert-flows 1") && flows.1.contains("verdict"), "{}", flows.1);
        assert!(flows.1.contains("culvert flows"), "{}", flows.1);
    }
}
