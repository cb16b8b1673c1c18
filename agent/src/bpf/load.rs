//! Loading, pinning and attaching; taking over what a predecessor left pinned.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aya::maps::{MapData, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use culvert_common::{ABI_VERSION, Config, flags};

use super::capacity::Capacities;
use super::guard::{GUARD, Guarded, Hook, instance_of};
use super::link::{AttachType, PinnedLink, replace_program};
use super::maps::{MAP_NAMES, Maps};
use super::pins::{aside, remove_pins, set_foreign_abi_aside};
use super::resize::Resize;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("CULVERT_BPF_OBJECT"));

/// What the programs must know, and where they go.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Directory of this instance's pins, on a bpffs.
    pub pins: PathBuf,
    /// cgroup v2 directory whose processes the hooks see.
    pub cgroup: PathBuf,
    /// `SO_NETNS_COOKIE` of the node's own network namespace.
    pub host_netns: u64,
    /// cgroup id (inode number) of the agent's own cgroup.
    pub agent_cgroup: u64,
    /// Same-node traffic through HBONE too.
    pub same_node_tunnel: bool,
    /// The source guard by a filter at clsact even where the kernel has tcx links.
    pub clsact_guard: bool,
    /// Room of the maps.
    pub capacities: Capacities,
}

/// Why the kernel side could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The agent was built without the BPF object.
    #[error("this agent was built without its BPF object: run `cargo xtask build-ebpf` and build again")]
    NoObject,
    /// The object could not be loaded.
    #[error("cannot load the BPF object: {0}")]
    Load(#[from] aya::EbpfError),
    /// The verifier or the kernel refused a program.
    #[error("cannot load BPF program {name}: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// A link could not be made.
    #[error("cannot attach BPF program {name} to {target}: {source}")]
    Attach {
        /// The program.
        name: &'static str,
        /// The cgroup or network namespace.
        target: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map is missing or of another type.
    #[error("BPF map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What is wrong.
        source: MapError,
    },
    /// A file of the pin directory, or the cgroup.
    #[error("{path}: {source}")]
    Path {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// The loaded programs and their maps.
pub struct Kernel {
    pub(super) programs: Mutex<Ebpf>,
    pins: PathBuf,
    pub(super) cgroup: PathBuf,
    /// Typed handles of the maps.
    pub maps: Maps,
    pub(super) pods: Mutex<HashMap<u64, Admitting>>,
    pub(super) guards: Mutex<HashMap<u64, Guarded>>,
    pub(super) guard_hook: Hook,
    _node_links: Vec<PinnedLink>,
}

/// The destination's verdict in a pod's network namespace.
pub(super) struct Admitting {
    link: PinnedLink,
    pub(super) netns: OwnedFd,
}

/// Program, where it attaches, and the name of its pin.
pub(super) const NODE_PROGRAMS: [(&str, AttachType, &str); 8] = [
    // sockops first and connect last: a decision never leaves a hook whose follower is not there yet.
    ("culvert_sockets", AttachType::SockOps, "sockops"),
    ("culvert_peername4", AttachType::GetPeerName4, "getpeername4"),
    ("culvert_peername6", AttachType::GetPeerName6, "getpeername6"),
    ("culvert_bind4", AttachType::Bind4, "bind4"),
    ("culvert_bind6", AttachType::Bind6, "bind6"),
    ("culvert_create", AttachType::SockCreate, "sock_create"),
    ("culvert_connect4", AttachType::Connect4, "connect4"),
    ("culvert_connect6", AttachType::Connect6, "connect6"),
];
pub(super) const ADMIT: &str = "culvert_admit";

impl Kernel {
    /// Loads the programs, adopting pinned maps of the same ABI version, and attaches the node's hooks.
    ///
    /// # Errors
    ///
    /// [`KernelError`] names the program, map or path and what the kernel said.
    pub fn load(config: &KernelConfig) -> Result<Self, KernelError> {
        if OBJECT.is_empty() {
            return Err(KernelError::NoObject);
        }
        let links = config.pins.join("links");
        create_dir(&links)?;
        set_foreign_abi_aside(&config.pins)?;
        let (resize, capacities) = Resize::prepare(&config.pins, &config.capacities)?;
        let mut loader = EbpfLoader::new();
        for name in MAP_NAMES {
            loader.map_pin_path(name, config.pins.join(name));
        }
        for (name, entries) in capacities.iter() {
            loader.map_max_entries(name, entries);
        }
        let mut programs = loader.load(OBJECT)?;
        resize.copy_tables()?;
        let mut maps = Maps::take(&mut programs, capacities)?;
        maps.set_config(Config {
            host_netns: config.host_netns,
            agent_cgroup: config.agent_cgroup,
            abi_version: ABI_VERSION,
            flags: if config.same_node_tunnel { flags::SAME_NODE_TUNNEL } else { 0 },
        })?;
        for (name, ..) in NODE_PROGRAMS {
            load_program(&mut programs, name)?;
        }
        load_program(&mut programs, ADMIT)?;
        load_program(&mut programs, GUARD)?;
        let cgroup = open(&config.cgroup)?;
        let mut node_links = Vec::new();
        for (name, kind, pin) in NODE_PROGRAMS {
            let link = PinnedLink::attach(&links.join(pin), fd(&programs, name)?, cgroup.as_fd(), kind)
                .map_err(|source| KernelError::Attach {
                    name,
                    target: config.cgroup.display().to_string(),
                    source,
                })?;
            node_links.push(link);
        }
        if !resize.is_empty() {
            replace_pod_programs(&links, &programs)?;
        }
        resize.finish()?;
        Ok(Self {
            programs: Mutex::new(programs),
            pins: config.pins.clone(),
            cgroup: config.cgroup.clone(),
            maps,
            pods: Mutex::new(HashMap::new()),
            guards: Mutex::new(HashMap::new()),
            guard_hook: Hook::choose(config.clsact_guard),
            _node_links: node_links,
        })
    }

    /// Detaches the programs of a predecessor whose maps had another layout; the new ones enforce. Returns whether there
    /// were any.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn retire_predecessor(&self) -> Result<bool, KernelError> {
        let path = aside(&self.pins);
        if !path.exists() {
            return Ok(false);
        }
        remove_pins(&path).map_err(|source| KernelError::Path { path, source })?;
        Ok(true)
    }

    /// Puts the destination's verdict into a pod's network namespace.
    ///
    /// # Errors
    ///
    /// [`KernelError::Attach`] with what the kernel said.
    pub fn attach_pod(&self, cookie: u64, netns: BorrowedFd<'_>) -> Result<(), KernelError> {
        let failed = |source| KernelError::Attach {
            name: ADMIT,
            target: format!("network namespace {cookie}"),
            source,
        };
        let programs = lock(&self.programs);
        let path = self.pod_pin(cookie);
        let link = PinnedLink::attach(&path, fd(&programs, ADMIT)?, netns, AttachType::SkLookup);
        let link = link.map_err(failed)?;
        let netns = netns.try_clone_to_owned().map_err(failed)?;
        lock(&self.pods).insert(cookie, Admitting { link, netns });
        Ok(())
    }

    /// Takes the destination's verdict out of a pod's network namespace.
    ///
    /// # Errors
    ///
    /// When the pin cannot be removed.
    pub fn detach_pod(&self, cookie: u64) -> Result<(), KernelError> {
        let path = self.pod_pin(cookie);
        match lock(&self.pods).remove(&cookie) {
            Some(pod) => pod.link.detach().map_err(|source| KernelError::Path { path, source }),
            None => Ok(()),
        }
    }

    /// Whether an earlier agent has put its verdict into this network namespace, where it is still in force.
    pub fn inherits(&self, cookie: u64) -> bool {
        let pin = self.pod_pin(cookie);
        let aside = pin.file_name().map(|name| aside(&self.pins).join("links").join(name));
        !lock(&self.pods).contains_key(&cookie) && (pin.exists() || aside.is_some_and(|pin| pin.exists()))
    }

    /// Removes pins and guards of pods that are gone, left by an earlier agent. `keep` names the cookies that stay.
    pub fn sweep_pods(&self, keep: &dyn Fn(u64) -> bool) -> io::Result<usize> {
        let mut swept = 0;
        for entry in fs::read_dir(self.pins.join("links"))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let admitting = name.strip_prefix("admit-").and_then(|cookie| cookie.parse().ok());
            let stale = match admitting {
                Some(cookie) => !keep(cookie) && !lock(&self.pods).contains_key(&cookie),
                None => self.stale_guard(name).is_some(),
            };
            if stale {
                fs::remove_file(entry.path())?;
                swept += 1;
            }
        }
        Ok(swept + self.sweep_guards()?)
    }

    /// Verified instructions of each program: what the verifier had to walk (Linux 5.16).
    pub fn verified_instructions(&self) -> Vec<(String, Option<u32>)> {
        let programs = lock(&self.programs);
        let mut counts: Vec<_> = programs
            .programs()
            .map(|(name, program)| {
                (name.to_owned(), program.info().ok().and_then(|info| info.verified_instruction_count()))
            })
            .collect();
        counts.sort();
        counts
    }

    pub(super) fn pins(&self) -> &Path {
        &self.pins
    }

    pub(super) fn instance(&self) -> &str {
        instance_of(&self.pins)
    }

    /// The map of what the programs keep with each socket.
    ///
    /// # Errors
    ///
    /// Its pin cannot be opened.
    pub fn socket_storage(&self) -> io::Result<OwnedFd> {
        let map = MapData::from_pin(self.pins.join("socket_state")).map_err(io::Error::other)?;
        map.fd().as_fd().try_clone_to_owned()
    }

    fn pod_pin(&self, cookie: u64) -> PathBuf {
        self.pins.join("links").join(format!("admit-{cookie}"))
    }
}

/// The pods' links get the new programs at once: the old ones look into maps that nobody writes any more.
fn replace_pod_programs(links: &Path, programs: &Ebpf) -> Result<(), KernelError> {
    let failed = |path: PathBuf| move |source| KernelError::Path { path, source };
    for entry in fs::read_dir(links).map_err(failed(links.to_owned()))? {
        let path = entry.map_err(failed(links.to_owned()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let program = match name.split_once('-') {
            Some(("admit", _)) => fd(programs, ADMIT)?,
            Some(("guard", _)) => fd(programs, GUARD)?,
            _ => continue,
        };
        replace_program(&path, program).map_err(failed(path))?;
    }
    Ok(())
}

pub(super) fn load_program(programs: &mut Ebpf, name: &'static str) -> Result<(), KernelError> {
    let missing = || {
        KernelError::Load(aya::EbpfError::FileError {
            path: PathBuf::from(name),
            error: io::Error::other("the BPF object lacks this program"),
        })
    };
    let result = match programs.program_mut(name).ok_or_else(missing)? {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        _ => return Err(missing()),
    };
    result.map_err(|source| KernelError::Program { name, source })
}

pub(super) fn fd<'a>(programs: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, KernelError> {
    let fd = match programs.program(name) {
        Some(program) => program.fd(),
        None => Err(ProgramError::NotLoaded),
    };
    fd.map(|fd| fd.as_fd()).map_err(|source| KernelError::Program { name, source })
}

pub(super) fn create_dir(path: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(path).map_err(|source| KernelError::Path { path: path.to_owned(), source })
}

fn open(path: &Path) -> Result<File, KernelError> {
    File::open(path).map_err(|source| KernelError::Path { path: path.to_owned(), source })
}

/// The data behind a poisoned lock is a handle: still whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
