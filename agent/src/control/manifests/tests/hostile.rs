//! Input that means harm, or was made by a broken tool.

use std::fmt::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::control::manifests::file::MAX_BYTES;

const ALLOW: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: n}\nspec:\n  \
                     rules:\n  - from:\n    - source:\n        principals:\n";
const GOOD: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n";

/// A folder with `x.yaml` in force, ready to be spoilt.
struct Spoilt {
    dir: tempfile::TempDir,
    folder: Folder,
}

impl Spoilt {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.yaml"), GOOD).unwrap();
        let mut folder = Folder::new(dir.path());
        assert_eq!(folder.scan().len(), 1);
        Self { dir, folder }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("x.yaml")
    }

    /// The problem that the look finds: the only one, and nothing is taken back.
    fn problem(&mut self) -> Problem {
        let updates = self.folder.scan();
        assert_eq!(updates.len(), 1, "{updates:?}");
        let [problem] = &report(&updates).problems[..] else { panic!("{updates:?}") };
        assert!(problem.remedy.starts_with("the file's last good content stays in force; "), "{problem}");
        assert_eq!(problem.file, self.path().display().to_string());
        problem.clone()
    }

    /// What the file is replaced by, and the problem then.
    fn with(&mut self, bytes: &[u8]) -> Problem {
        std::fs::write(self.path(), bytes).unwrap();
        self.problem()
    }

    /// What is not a file, at the place of the file.
    fn without(&mut self, place: impl FnOnce(&Path)) -> Problem {
        std::fs::remove_file(self.path()).unwrap();
        place(&self.path());
        self.problem()
    }
}

/// Ends soon, also in a debug build on a busy machine.
fn soon<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    result
}

fn one_problem(text: &str) -> Problem {
    let problems = soon(|| problems(text));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].file, "m.yaml");
    problems.into_iter().next().unwrap()
}

#[test]
fn a_file_of_100_mib_is_refused_without_reading_it() {
    let mut spoilt = Spoilt::new();
    let file = std::fs::File::create(spoilt.path()).unwrap();
    file.set_len(100 << 20).unwrap();
    let start = Instant::now();
    let problem = spoilt.problem();
    assert!(start.elapsed() < Duration::from_millis(200));
    assert_eq!(problem.message, format!("is {} bytes long; at most {MAX_BYTES} are read", 100 << 20));
    assert!(problem.remedy.ends_with("split the file"));
}

#[test]
fn a_million_principals_are_refused_with_their_field() {
    let mut text = ALLOW.to_owned();
    for n in 0..1_000_000 {
        writeln!(text, "        - td/ns/n/sa/{n}").unwrap();
    }
    let problem = one_problem(&text);
    assert_eq!(problem.object, "AuthorizationPolicy n/x");
    assert_eq!((problem.field.as_str(), problem.line), ("spec.rules[0].from[0].source.principals", 9));
    assert!(problem.message.contains("Kubernetes takes 1572864"), "{problem}");
}

#[test]
fn half_a_million_objects_in_a_file_end() {
    let small = "- {apiVersion: v1, kind: X}\n";
    let text = format!("apiVersion: v1\nkind: List\nitems:\n{}", small.repeat(500_000));
    let content = soon(|| parse(Path::new("m.yaml"), text.as_bytes())).unwrap();
    assert_eq!(content.ignored["v1/X"], 500_000);
}

#[test]
fn many_problems_are_told_as_a_hundred_and_a_count() {
    let text = "apiVersion: v1\n---\n".repeat(100_000);
    let problems = soon(|| problems(&text));
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[100].message, "has 99900 more problems");
    let kinds: String = (0..1000).map(|n| format!("---\n{{apiVersion: v1, kind: K{n}}}\n")).collect();
    let content = parse(Path::new("m.yaml"), kinds.as_bytes()).unwrap();
    assert_eq!((content.ignored.len(), content.ignored["other kinds"]), (101, 900));
}

#[test]
fn more_values_than_memory_should_hold_are_refused() {
    let problem = one_problem(&"-\n".repeat(5 << 20));
    assert!(problem.remedy.starts_with("split the file"), "{problem}");
}

#[test]
fn one_line_of_a_mebibyte_is_read() {
    let account = |name: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, annotations: {{a: {name}}}}}\n")
    };
    assert!(parse(Path::new("m.yaml"), account(&"x".repeat(1 << 20)).as_bytes()).is_ok());
    let problem = one_problem(&account(&"x".repeat(2 << 20)));
    assert_eq!((problem.object.as_str(), problem.field.as_str()), ("Pod p", "metadata.annotations.a"));
    let many = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nx: [{}1]\n", "1,".repeat(1 << 19));
    assert!(parse(Path::new("m.yaml"), many.as_bytes()).is_ok());
}

#[test]
fn depth_ends_in_an_error() {
    let block: String = (0..10_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    for text in ["[".repeat(10_000), "{a: ".repeat(10_000), "- ".repeat(10_000), block, "? ".repeat(10_000)] {
        let problem = one_problem(&text);
        assert!(problem.message.starts_with("no valid YAML: "), "{problem}");
    }
}

#[test]
fn a_billion_laughs_end_in_an_error() {
    let mut text = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for n in 1..12 {
        let last = format!("*a{}, ", n - 1).repeat(9);
        writeln!(text, "a{n}: &a{n} [{last}]").unwrap();
    }
    assert!(one_problem(&text).message.starts_with("no valid YAML: "));
    let one = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), "*a, ".repeat(49_000));
    assert!(one_problem(&one).message.starts_with("no valid YAML: "));
    assert!(one_problem("a: &a [*a]\n").message.starts_with("no valid YAML: "));
}

#[test]
fn what_is_no_text_is_refused_with_its_line() {
    let mut spoilt = Spoilt::new();
    assert_eq!(spoilt.with(b"a: 1\nb: \0\n").line, 2);
    let problem = spoilt.with(b"a: 1\nb: 2\nc: \xff\xfe\n");
    assert_eq!((problem.line, problem.message.as_str()), (3, "is not UTF-8"));
    // UTF-16, as some editors write it.
    assert_eq!(spoilt.with(b"\xff\xfea\0:\0 \x001\0").line, 1);
    assert_eq!(spoilt.with(b"").message, "is empty");
}

#[test]
fn a_byte_order_mark_and_windows_lines_are_read() {
    let text = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
    let content = parse(Path::new("m.yaml"), text.as_bytes()).unwrap();
    assert_eq!(content.objects[0].key().to_string(), "Namespace good");
}

#[test]
fn wrong_values_name_object_and_field() {
    let policy = |spec: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: x}}, spec: {spec}}}"
        )
    };
    let authn = |spec: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: x}}, spec: {spec}}}"
        )
    };
    for (text, field, message) in [
        (policy("{action: BLOCK}"), "spec.action", "ALLOW"),
        (policy("{action: 1}"), "spec.action", "ALLOW"),
        (policy("{action: {a: b}}"), "spec.action", "ALLOW"),
        (policy("[]"), "spec", "a map of fields"),
        (policy("no"), "spec", "a map of fields"),
        (policy("{rules: {}}"), "spec.rules", "sequence"),
        (policy("{rules: [7]}"), "spec.rules[0]", "a map of fields"),
        (policy("{rules: [null]}"), "spec.rules[0]", "a map of fields"),
        (policy("{rules: [{from: [{source: [[a]]}]}]}"), "spec.rules[0].from[0].source", "a map of fields"),
        (policy("{rules: [[]]}"), "spec.rules[0]", "a map of fields"),
        (policy("{rules: [{from: {}}]}"), "spec.rules[0].from", "sequence"),
        (
            policy("{rules: [{from: [{source: {principals: [1]}}]}]}"),
            "spec.rules[0].from[0].source.principals[0]",
            "string",
        ),
        (
            policy("{rules: [{from: [{source: {principals: td}}]}]}"),
            "spec.rules[0].from[0].source.principals",
            "sequence",
        ),
        (
            policy("{rules: [{to: [{operation: {ports: [80]}}]}]}"),
            "spec.rules[0].to[0].operation.ports[0]",
            "string",
        ),
        (
            policy("{rules: [{to: [{operation: {ports: [\"99999\"]}}]}]}"),
            "spec.rules[0].to[0].operation.ports[0]",
            "65535",
        ),
        (
            policy("{rules: [{from: [{source: {ipBlocks: [\"1.2.3.4/99\"]}}]}]}"),
            "spec.rules[0].from[0].source.ipBlocks[0]",
            "CIDR",
        ),
        (policy("{rules: [{when: [{key: no.such, values: [a]}]}]}"), "spec.rules[0].when[0].key", "no.such"),
        (policy("{selector: {matchLabels: [a]}}"), "spec.selector.matchLabels", "map"),
        (policy("{selector: {matchLabels: {a: 1}}}"), "spec.selector.matchLabels.a", "string"),
        (authn("{mtls: {mode: strict}}"), "spec.mtls.mode", "STRICT"),
        (authn("{mtls: STRICT}"), "spec.mtls", "a map of fields"),
        (authn("{portLevelMtls: {http: {mode: STRICT}}}"), "spec.portLevelMtls.http", "65535"),
        (authn("{portLevelMtls: {0: {mode: STRICT}}}"), "spec.portLevelMtls.0", "65535"),
    ] {
        let problem = one_problem(&text);
        assert!(problem.object.ends_with(" x"), "{problem}");
        assert_eq!(problem.field, field, "{problem}");
        assert!(problem.message.contains(message), "{problem}");
        assert_eq!(problem.line, 1, "{problem}");
    }
}

#[test]
fn names_are_those_of_kubernetes() {
    let long = "x".repeat(64);
    for (metadata, field) in [
        ("{name: a/b}".to_owned(), "metadata.name"),
        ("{name: A}".to_owned(), "metadata.name"),
        ("{name: ä}".to_owned(), "metadata.name"),
        ("{name: a..b}".to_owned(), "metadata.name"),
        (format!("{{name: {}}}", "x".repeat(254)), "metadata.name"),
        ("{name: \"\"}".to_owned(), "metadata.name"),
        ("{name: x, namespace: a/sa/b}".to_owned(), "metadata.namespace"),
        (format!("{{name: x, namespace: {long}}}"), "metadata.namespace"),
        ("{name: x, uid: \"../../etc\"}".to_owned(), "metadata.uid"),
        ("{name: x, labels: {app: \"a\\nb\"}}".to_owned(), "metadata.labels.app"),
        (format!("{{name: x, labels: {{app: {long}}}}}"), "metadata.labels.app"),
        ("{name: x, creationTimestamp: ~~}".to_owned(), "metadata.creationTimestamp"),
    ] {
        let problem = one_problem(&format!("{{apiVersion: v1, kind: Pod, metadata: {metadata}}}"));
        assert_eq!(problem.field, field, "{problem}");
    }
    let forged = "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {serviceAccountName: a/ns/b}}";
    assert_eq!(one_problem(forged).field, "spec.serviceAccountName");
    assert_eq!(
        one_problem("{apiVersion: v1, kind: Namespace, metadata: {name: a.b}}").field,
        "metadata.name"
    );
    let longest = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {}}}}}", "x".repeat(253));
    assert!(parse(Path::new("m.yaml"), longest.as_bytes()).is_ok());
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    for text in ["a: 1\na: 2\n", "{\"a\": 1, \"a\": 2}"] {
        assert!(one_problem(text).message.contains("duplicate"), "{text}");
    }
}

#[test]
fn an_object_that_is_there_twice_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.yaml"), format!("{GOOD}---\n{GOOD}")).unwrap();
    let updates = Folder::new(dir.path()).scan();
    let problem = &report(&updates).problems[0];
    assert_eq!(
        (problem.object.as_str(), problem.message.as_str()),
        ("Namespace good", "is in this file twice")
    );
    assert_eq!(updates.len(), 2);
}

#[test]
fn what_is_no_file_takes_nothing_back_and_holds_nothing_up() {
    use nix::sys::stat::Mode;
    let made = Mode::S_IRUSR | Mode::S_IWUSR;
    let folder = Spoilt::new().without(|path| std::fs::create_dir(path).unwrap());
    assert_eq!(folder.message, "is no file, but a folder");
    let pipe = Spoilt::new().without(|path| nix::unistd::mkfifo(path, made).unwrap());
    assert_eq!(pipe.message, "is no file, but a pipe");
    let dangling = Spoilt::new().without(|path| symlink("/nowhere", path).unwrap());
    assert_eq!(dangling.message, "is a link to what does not exist");
    let circle = Spoilt::new().without(|path| symlink(path, path).unwrap());
    assert!(circle.message.starts_with("cannot be looked at: "), "{circle}");
    let device = Spoilt::new().without(|path| symlink("/dev/zero", path).unwrap());
    assert_eq!(device.message, "is no file, but a device");
    let socket = Spoilt::new().without(|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()));
    assert_eq!(socket.message, "is no file, but a socket");
    // A regular file, by its looks, whose start cannot be read.
    let memory = Spoilt::new().without(|path| symlink("/proc/self/mem", path).unwrap());
    assert!(memory.message.starts_with("cannot be read: "), "{memory}");
}

#[test]
fn a_file_that_becomes_a_pipe_after_it_was_listed_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(crate::control::manifests::file::read(&path).unwrap_err()[0].message, "is no regular file");
}

#[test]
fn a_file_that_becomes_readable_is_read() {
    let mut spoilt = Spoilt::new();
    std::fs::set_permissions(spoilt.path(), PermissionsExt::from_mode(0o0)).unwrap();
    // Root may read it all the same.
    let root = std::fs::read(spoilt.path()).is_ok();
    let updates = spoilt.folder.scan();
    assert_eq!(updates.len(), usize::from(!root), "{updates:?}");
    std::fs::set_permissions(spoilt.path(), PermissionsExt::from_mode(0o600)).unwrap();
    let updates = spoilt.folder.scan();
    assert!(updates.is_empty() || report(&updates).problems.is_empty());
}

/// A writer that never rests, against one that looks: what is in force is always one of the two whole files.
#[test]
fn a_file_that_is_replaced_while_it_is_read_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    let version = |n: usize| -> String {
        (0..2000)
            .map(|i| format!("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: v{n}-{i}}}\n"))
            .collect()
    };
    let versions = [version(0), version(1)];
    std::fs::write(&path, &versions[0]).unwrap();
    let done = tokio_util::sync::CancellationToken::new();
    std::thread::scope(|scope| {
        // Also when an assertion fails.
        let _done = done.clone().drop_guard();
        scope.spawn(|| {
            for n in 1.. {
                if done.is_cancelled() {
                    return;
                }
                std::fs::write(dir.path().join("new"), &versions[n % 2]).unwrap();
                std::fs::rename(dir.path().join("new"), &path).unwrap();
            }
        });
        let mut folder = Folder::new(dir.path());
        let mut world = std::collections::HashSet::new();
        for _ in 0..20 {
            for update in folder.scan() {
                match update {
                    Update::Upsert(object) => drop(world.insert(object.key())),
                    Update::Remove(object) => drop(world.remove(&object)),
                    Update::Report(report) => assert!(report.problems.is_empty(), "{report:?}"),
                    Update::Name(..) | Update::Synced => {}
                }
            }
            assert_eq!(world.len(), 2000);
            let first = world.iter().next().unwrap().name[..2].to_owned();
            assert!(world.iter().all(|object| object.name.starts_with(&first)));
        }
    });
}
