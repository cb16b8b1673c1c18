//! Programs that only tell what the hooks do (ebpf/log), attached beside Culvert's own for as long as somebody asks. Nothing of
//! them is pinned: they go with the agent.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use log::Log;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::guard::Hook;
use super::link::{self, AttachType, Place};
use super::load::{Kernel, KernelError, fd, load_program, lock};
use super::maps::MAP_NAMES;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CULVERT_BPF_LOG_OBJECT"));

/// Behind Culvert's own, so that they see what was decided.
const NODE_PROGRAMS: [(&str, AttachType); 6] = [
    ("culvert_log_sockets", AttachType::SockOps),
    ("culvert_log_bind4", AttachType::Bind4),
    ("culvert_log_bind6", AttachType::Bind6),
    ("culvert_log_create", AttachType::SockCreate),
    ("culvert_log_connect4", AttachType::Connect4),
    ("culvert_log_connect6", AttachType::Connect6),
];
const ADMIT: &str = "culvert_log_admit";
const GUARD: &str = "culvert_log_guard";

/// The attached programs and the lines they write.
pub struct Witness<L> {
    programs: Ebpf,
    lines: AsyncFd<EbpfLogger<L>>,
    _node: Vec<OwnedFd>,
    pods: HashMap<u64, OwnedFd>,
    interfaces: HashMap<u64, (u32, OwnedFd)>,
}

impl<L: Log> Witness<L> {
    /// Attaches the programs to the node's hooks; `log` gets their lines from [`Witness::read`].
    ///
    /// # Errors
    ///
    /// [`KernelError`] names the program and what the kernel said.
    pub fn attach(kernel: &Kernel, log: L) -> Result<Self, KernelError> {
        if OBJECT.is_empty() {
            return Err(KernelError::NoObject);
        }
        let mut loader = EbpfLoader::new();
        for name in MAP_NAMES {
            loader.map_pin_path(name, kernel.pins().join(name));
        }
        let mut programs = loader.load(OBJECT)?;
        let lines = EbpfLogger::init_with_logger(&mut programs, log)
            .map_err(|error| KernelError::Map { name: "AYA_LOGS", source: io::Error::other(error).into() })?;
        load_all(&mut programs)?;
        let path = |source| KernelError::Path { path: kernel.cgroup.clone(), source };
        let cgroup = std::fs::File::open(&kernel.cgroup).map_err(path)?;
        let mut node = Vec::new();
        for (name, kind) in NODE_PROGRAMS {
            let attached = link::create(fd(&programs, name)?, cgroup.as_raw_fd() as u32, kind, Place::Last);
            node.push(attached.map_err(|source| KernelError::Attach {
                name,
                target: kernel.cgroup.display().to_string(),
                source,
            })?);
        }
        // SAFETY: the logger owns its ring's descriptor, always returns the same one, and closes it only when dropped, which is
        // after AsyncFd has deregistered it.
        #[allow(unsafe_code, reason = "AsyncFd's safe constructor is deprecated as unsound")]
        let lines = unsafe { AsyncFd::register_with_interest(lines, Interest::READABLE) }
            .map_err(|error| path(error.into()))?;
        Ok(Self { programs, lines, _node: node, pods: HashMap::new(), interfaces: HashMap::new() })
    }

    /// Attaches to the pods that have joined since, and lets go of those that have left. A pod that just goes is no error.
    ///
    /// # Errors
    ///
    /// A program is missing.
    pub fn follow(&mut self, kernel: &Kernel) -> Result<(), KernelError> {
        let admit = fd(&self.programs, ADMIT)?;
        let joined = lock(&kernel.pods);
        self.pods.retain(|cookie, _| joined.contains_key(cookie));
        for (cookie, pod) in
            joined.iter().filter(|(cookie, _)| !self.pods.contains_key(cookie)).collect::<Vec<_>>()
        {
            let target = pod.netns.as_raw_fd() as u32;
            if let Ok(link) = link::create(admit, target, AttachType::SkLookup, Place::Last) {
                self.pods.insert(*cookie, link);
            }
        }
        drop(joined);
        self.follow_guards(kernel)
    }

    /// Only where the guard is a tcx link can there be a program before it.
    fn follow_guards(&mut self, kernel: &Kernel) -> Result<(), KernelError> {
        if kernel.guard_hook != Hook::Tcx {
            return Ok(());
        }
        let guard = fd(&self.programs, GUARD)?;
        let guarded: HashMap<u64, u32> = kernel.guarded_interfaces().into_iter().collect();
        self.interfaces.retain(|cookie, (index, _)| guarded.get(cookie) == Some(index));
        for (cookie, index) in guarded {
            if self.interfaces.contains_key(&cookie) {
                continue;
            }
            if let Ok(link) = link::create(guard, index, AttachType::TcxIngress, Place::First) {
                self.interfaces.insert(cookie, (index, link));
            }
        }
        Ok(())
    }

    /// Waits for lines and hands them to the log.
    ///
    /// # Errors
    ///
    /// The ring's descriptor cannot be polled.
    pub async fn read(&mut self) -> io::Result<()> {
        let mut guard = self.lines.readable_mut().await?;
        guard.get_inner_mut().flush();
        guard.clear_ready();
        Ok(())
    }
}

fn load_all(programs: &mut Ebpf) -> Result<(), KernelError> {
    let names = NODE_PROGRAMS.map(|(name, _)| name).into_iter().chain([ADMIT, GUARD]);
    for name in names {
        load_program(programs, name)?;
    }
    Ok(())
}
