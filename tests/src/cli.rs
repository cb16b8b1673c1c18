//! `culvert-lab`: run scenarios, keep a lab to play with, clean up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use crate::lab::{self, Lab, Options, ROOT};
use crate::runner::{self, Outcome};
use crate::scenario::Scenario;

/// Labs of real nodes and pods on this machine.
#[derive(Parser, Debug)]
#[command(name = "culvert-lab", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Play scenario files; the last line counts them
    #[command(after_help = "Example:\n  culvert-lab run tests/scenarios/*.yaml")]
    Run(RunArgs),
    /// Build a scenario's lab and leave it running to play with
    Up(UpArgs),
    /// Run a program in a pod of a running lab
    Exec {
        /// The lab
        lab: String,
        /// namespace/name
        pod: String,
        /// Program and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// List running labs
    List,
    /// Take a lab down
    Down {
        /// The lab; the only one when none is named
        lab: Option<String>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Remove what labs of dead processes left behind
    Clean,
    /// Tell the ambient walkthrough on two nodes, step by step
    Demo(crate::demo::DemoArgs),
    /// Check every byte of thousands of connections, both ways, and how they end
    #[command(
        after_help = "Example:\n  culvert-lab transfers --path direct --connections 1000 --seed 7\n\nExit status: 1 when anything was wrong."
    )]
    Transfers(crate::transfers::TransferArgs),
    /// Change everything all the time under load, and judge every connection
    #[command(
        after_help = "Example:\n  culvert-lab soak --minutes 1 --seed 7\n\nExit status: 1 when anything was wrong."
    )]
    Soak(crate::soak::SoakArgs),
    /// Measure direct and tunnelled connections against the raw network, side by side
    #[command(
        after_help = "Examples:\n  culvert-lab bench --quick\n  culvert-lab bench --only rr,stream --family 4 --json after.json --compare before.json\n\n\
                      Use the release build: `cargo xtask bench net`. Exit status: 1 when connections failed or took another path."
    )]
    Bench(crate::bench::BenchArgs),
    #[command(hide = true)]
    Load { task: String },
    #[command(hide = true)]
    Pod { config: String },
    #[command(hide = true)]
    Supervise { file: PathBuf, name: String, culvert: PathBuf },
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Scenario files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Scenarios at a time
    #[arg(short, long, default_value_t = 2)]
    jobs: usize,
    /// The culvert binary [default: beside this program]
    #[arg(long, env = "CULVERT_BIN")]
    culvert: Option<PathBuf>,
    /// Run without agents: plain networking only
    #[arg(long)]
    no_agents: bool,
}

#[derive(Args, Debug)]
struct UpArgs {
    /// Scenario file
    file: PathBuf,
    /// Name of the lab
    #[arg(long, default_value = "play")]
    name: String,
    /// The culvert binary [default: beside this program]
    #[arg(long, env = "CULVERT_BIN")]
    culvert: Option<PathBuf>,
}

/// Runs the command; false when a scenario failed.
///
/// # Errors
///
/// Whatever the user should read.
pub fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Verb::Pod { config } => {
            return crate::pod_process::run(serde_json::from_str(&config)?).map(|()| true);
        }
        Verb::Load { task } => return crate::bench::load::run(&task).map(|()| true),
        Verb::Supervise { file, name, culvert } => return supervise(&file, &name, culvert).map(|()| true),
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("a lab makes network namespaces and loads BPF programs: run it as root");
    }
    stop_on_signals()?;
    for id in lab::remove_dead_labs() {
        eprintln!("removed what a dead lab left behind: {id}");
    }
    let result = obey(cli.command);
    while INTERRUPTED.load(Ordering::Acquire) {
        // What failed did so because its lab was taken away. The signals' thread ends the process.
        std::thread::park();
    }
    result
}

fn obey(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Run(args) => run_all(&args),
        Verb::Up(args) => up(&args).map(|()| true),
        Verb::Exec { lab, pod, command } => exec(&lab, &pod, &command),
        Verb::List => list().map(|()| true),
        Verb::Down { lab, all } => down(lab, all).map(|()| true),
        Verb::Demo(args) => crate::demo::run(&args, culvert_binary(args.culvert.as_deref())?).map(|()| true),
        Verb::Soak(args) => crate::soak::run(&args, culvert_binary(args.culvert.as_deref())?),
        Verb::Transfers(args) => {
            let culvert = args.needs_agents().then(|| culvert_binary(args.culvert.as_deref())).transpose()?;
            crate::transfers::run(&args, culvert)
        }
        Verb::Bench(args) => crate::bench::run(&args, culvert_binary(args.culvert.as_deref())?),
        Verb::Clean | Verb::Load { .. } | Verb::Pod { .. } | Verb::Supervise { .. } => Ok(true),
    }
}

/// The agent's binary: named, or beside this one.
fn culvert_binary(named: Option<&Path>) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name("culvert"),
    };
    path.canonicalize().with_context(|| format!("{}: build it with `cargo xtask build`", path.display()))
}

/// Ids of this process's labs, for the signal handler.
static OWN_LABS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether a signal has ended the run.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C and SIGTERM end the labs of this process before the process.
fn stop_on_signals() -> Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block()?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Release);
            eprintln!("interrupted: removing the lab");
            for id in OWN_LABS.lock().unwrap_or_else(|e| e.into_inner()).iter() {
                if let Err(error) = lab::remove_lab(id) {
                    eprintln!("lab {id}: {error:#}");
                }
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

/// A fresh id, known to the signal handler.
pub(crate) fn new_id() -> String {
    use rand::RngExt;
    let id = format!("{:06x}", rand::rng().random_range(0..0x100_0000_u32));
    OWN_LABS.lock().unwrap_or_else(|e| e.into_inner()).push(id.clone());
    id
}

fn run_all(args: &RunArgs) -> Result<bool> {
    let culvert = if args.no_agents { None } else { Some(culvert_binary(args.culvert.as_deref())?) };
    let mut scenarios = Vec::new();
    for file in &args.files {
        scenarios.push(Scenario::read(file)?);
    }
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<(usize, Outcome)>> = Mutex::default();
    let jobs = args.jobs.clamp(1, scenarios.len().max(1));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = scenarios.get(number) else { return };
                    let options = Options { culvert: culvert.clone(), id: new_id(), ..Options::default() };
                    let outcome = runner::run(scenario, options, jobs == 1);
                    print_outcome(scenario, &outcome, jobs > 1);
                    outcomes.lock().unwrap_or_else(|e| e.into_inner()).push((number, outcome));
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(|e| e.into_inner());
    let failed = outcomes.iter().filter(|(_, o)| o.failure.is_some()).count();
    println!("{} scenarios in {:.1} s", outcomes.len(), begun.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", outcomes.len() - failed);
    Ok(failed == 0)
}

fn print_outcome(scenario: &Scenario, outcome: &Outcome, whole: bool) {
    let mark = if outcome.failure.is_some() { "FAILED" } else { "passed" };
    let mut text = format!(
        "{mark} {} ({}, {} steps, {:.1} s)\n",
        outcome.name,
        scenario.file.display(),
        outcome.passed,
        outcome.took.as_secs_f64()
    );
    if let Some(failure) = &outcome.failure {
        if whole {
            text.push_str(&outcome.report);
        }
        text.push_str("      ");
        text.push_str(failure);
        text.push('\n');
    }
    print!("{text}");
}

fn up(args: &UpArgs) -> Result<()> {
    let name = &args.name;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() || name.len() > 12 || !name.chars().all(plain) {
        bail!("--name {name:?}: use up to 12 small letters and digits");
    }
    let dir = Path::new(ROOT).join(name);
    if dir.exists() {
        bail!(
            "a lab {name:?} is running: take it down (`cargo xtask lab down {name}`) or choose another --name"
        );
    }
    Scenario::read(&args.file)?;
    let log_path = std::env::temp_dir().join(format!("culvert-lab-{name}.log"));
    let log = fs::File::create(&log_path)?;
    let mut child = Command::new("setsid");
    child.arg(std::env::current_exe()?).arg("supervise").arg(args.file.canonicalize()?).arg(name);
    child.arg(culvert_binary(args.culvert.as_deref())?);
    let mut child = child.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Ok(text) = fs::read_to_string(dir.join("state.json")) {
            let _ = fs::remove_file(&log_path);
            describe(&serde_json::from_str(&text)?);
            println!("take it down    cargo xtask lab down {name}");
            return Ok(());
        }
        // `setsid` may have forked: only its failure ends the wait.
        if child.try_wait()?.is_some_and(|status| !status.success()) || Instant::now() > deadline {
            bail!("the lab did not come up:\n{}", fs::read_to_string(&log_path).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The process that holds a lab of `up`.
fn supervise(file: &Path, name: &str, culvert: PathBuf) -> Result<()> {
    use nix::sys::signal::{SigSet, Signal};
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let scenario = Scenario::read(file)?;
    let lab = runner::start(
        &scenario,
        Options { culvert: Some(culvert), id: name.to_owned(), ..Options::default() },
    )?;
    open_to_others(&lab)?;
    signals.wait()?;
    lab.stop()
}

/// From now on `lab exec` and `lab list` find it.
fn open_to_others(lab: &Lab) -> Result<Value> {
    let state = state_of(lab)?;
    let half = lab.dir().join(".state.json");
    fs::write(&half, serde_json::to_string_pretty(&state)?)?;
    fs::rename(half, lab.dir().join("state.json"))?;
    Ok(state)
}

/// Tells how to use a lab of this process, and leaves it to its user until Enter.
pub(crate) fn lend(lab: &Lab) -> Result<()> {
    describe(&open_to_others(lab)?);
    println!("take it down    press Enter here");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

fn state_of(lab: &Lab) -> Result<Value> {
    let mut nodes = Vec::new();
    for name in lab.nodes() {
        let ips = lab.node_addresses(name)?;
        nodes.push(json!({"name": name, "netns": lab.node_netns(name)?, "instance": lab.instance(name),
            "address": ips.v4.to_string(), "address6": ips.v6.to_string()}));
    }
    let mut pods = Vec::new();
    for (name, netns, ips) in lab.pods() {
        let place = lab.pod(name)?.place();
        let mounts: Vec<Value> =
            place.mounts.iter().map(|(from, to)| json!([from.display().to_string(), to])).collect();
        pods.push(json!({"name": name, "netns": netns, "address": ips.v4.to_string(), "address6": ips.v6.to_string(),
            "cgroup": place.cgroup.map(|c| c.display().to_string()), "mounts": mounts}));
    }
    Ok(json!({"name": lab.id(), "manifests": lab.dir().join("manifests"), "nodes": nodes, "pods": pods}))
}

fn describe(state: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let name = text(&state["name"]);
    println!("lab {name} is up\n\nnodes");
    for node in state["nodes"].as_array().into_iter().flatten() {
        let instance = text(&node["instance"]);
        println!(
            "  {:<8} {:<14} agent: culvert workloads --instance {instance}",
            text(&node["name"]),
            text(&node["address"])
        );
        println!(
            "  {:<8} {:<14} maps:  bpftool map dump pinned /sys/fs/bpf/culvert/{instance}/policy",
            "", ""
        );
    }
    println!("\npods");
    for pod in state["pods"].as_array().into_iter().flatten() {
        println!("  {:<28} {:<14} {}", text(&pod["name"]), text(&pod["address"]), text(&pod["address6"]));
    }
    let first = state["pods"][0]["name"].as_str().unwrap_or("namespace/pod");
    println!("\nenter a pod    cargo xtask lab exec {name} {first} -- bash");
    println!("change objects  edit the files in {}", text(&state["manifests"]));
}

fn read_state(name: &str) -> Result<Value> {
    let path = Path::new(ROOT).join(name).join("state.json");
    let text =
        fs::read_to_string(&path).with_context(|| format!("no lab {name:?} is up (`culvert-lab list`)"))?;
    Ok(serde_json::from_str(&text)?)
}

fn exec(lab: &str, pod: &str, command: &[String]) -> Result<bool> {
    let state = read_state(lab)?;
    let pods = state["pods"].as_array().cloned().unwrap_or_default();
    let found =
        pods.iter().find(|p| p["name"] == *pod).with_context(|| format!("lab {lab} has no pod {pod:?}"))?;
    let mounts = found["mounts"].as_array().into_iter().flatten();
    let mounts = mounts.filter_map(|m| {
        let over =
            ["/etc/hosts", "/etc/resolv.conf", "/etc/gai.conf"].into_iter().find(|over| m[1] == **over)?;
        Some((PathBuf::from(m[0].as_str()?), over))
    });
    let place = crate::sys::Place {
        netns: Some(crate::net::netns_path(found["netns"].as_str().unwrap_or(""))),
        cgroup: found["cgroup"].as_str().map(PathBuf::from),
        mounts: mounts.collect(),
        dies_with_parent: false,
    };
    let [program, args @ ..] = command else { bail!("name a program") };
    let mut child = Command::new(program);
    child.args(args);
    crate::sys::put(&mut child, &place)?;
    let status = child.status().with_context(|| format!("starting {program:?}"))?;
    Ok(status.success())
}

fn list() -> Result<()> {
    for id in lab::all_labs() {
        let state = read_state(&id);
        let pods = state.as_ref().map_or(0, |s| s["pods"].as_array().map_or(0, Vec::len));
        println!("{id}  {pods} pods{}", if state.is_err() { "  (a running scenario)" } else { "" });
    }
    Ok(())
}

fn down(name: Option<String>, all: bool) -> Result<()> {
    let labs: Vec<String> = lab::all_labs().into_iter().filter(|id| read_state(id).is_ok()).collect();
    let chosen = match (name, all, &labs[..]) {
        (Some(name), _, _) => vec![name],
        (None, true, _) => labs,
        (None, false, [only]) => vec![only.clone()],
        (None, false, []) => bail!("no lab is up"),
        (None, false, _) => bail!("several labs are up: name one, or use --all: {}", labs.join(", ")),
    };
    for name in chosen {
        take_down(&name)?;
        println!("lab {name} is down");
    }
    Ok(())
}

fn take_down(name: &str) -> Result<()> {
    use nix::sys::signal::{Signal, kill};
    let dir = Path::new(ROOT).join(name);
    let pid = fs::read_to_string(dir.join("pid")).with_context(|| format!("no lab {name:?}"))?;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().context("the lab's pid file")?);
    let _ = kill(pid, Signal::SIGTERM); // it may be dead already
    let deadline = Instant::now() + Duration::from_secs(10);
    while dir.exists() && Instant::now() < deadline && kill(pid, None).is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    lab::remove_lab(name)
}
