//! One agent for an instance, and one for each part of the cgroup tree: two would decide the same connections twice, by
//! different tables. The locks go with the process, however it ends (flock(2)).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// What an agent holds while it runs.
#[derive(Debug)]
pub struct Claim {
    _locks: Vec<Flock<File>>,
}

impl Claim {
    /// Takes the instance whose state is in `state_dir`, and the subtree of `cgroup`.
    ///
    /// # Errors
    ///
    /// Another agent has it, or has a part of the tree above or below; who, and what to do.
    pub fn take(state_dir: &Path, cgroup: &Path) -> Result<Self> {
        let mut locks = vec![instance(state_dir)?];
        let tree = fs::canonicalize(cgroup).with_context(|| format!("--cgroup-root {}", cgroup.display()))?;
        let mount = crate::sys::cgroup2_mount().unwrap_or_else(|_| tree.clone());
        let above = tree.ancestors().skip(1).take_while(|dir| dir.starts_with(&mount));
        let steps = above.map(|dir| (dir, FlockArg::LockSharedNonblock));
        for (dir, how) in steps.chain([(tree.as_path(), FlockArg::LockExclusiveNonblock)]) {
            let file = File::open(dir).with_context(|| format!("cgroup {}", dir.display()))?;
            match Flock::lock(file, how) {
                Ok(lock) => locks.push(lock),
                Err((_, Errno::EWOULDBLOCK)) => bail!(
                    "another agent decides for the processes of {}; stop it, or give this one a --cgroup-root that is \
                     neither above nor below that one's",
                    dir.display()
                ),
                Err((_, error)) => bail!("locking cgroup {}: {error}", dir.display()),
            }
        }
        Ok(Self { _locks: locks })
    }
}

/// Whether no agent of the instance runs; until the result is dropped none starts.
///
/// # Errors
///
/// One does, with its process id.
pub fn instance(state_dir: &Path) -> Result<Flock<File>> {
    let path: PathBuf = state_dir.join("agent.lock");
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = opened.with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            note_pid(&mut lock).with_context(|| format!("writing {}", path.display()))?;
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut pid);
            bail!("an agent of this instance runs already (process {}); stop it first", pid.trim())
        }
        Err((_, error)) => bail!("locking {}: {error}", path.display()),
    }
}

fn note_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_and_a_subtree_have_one_agent() {
        let state = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let third = tempfile::tempdir().unwrap();
        let tree = tempfile::tempdir().unwrap();
        let below = tree.path().join("below");
        fs::create_dir(&below).unwrap();
        let claim = Claim::take(state.path(), &below).unwrap();
        let again = Claim::take(state.path(), tree.path()).unwrap_err().to_string();
        assert!(again.contains(&format!("(process {})", std::process::id())), "{again}");
        let same = Claim::take(other.path(), &below).unwrap_err().to_string();
        assert!(same.contains("another agent decides"), "{same}");
        drop(claim);
        Claim::take(third.path(), &below).unwrap();
    }
}
