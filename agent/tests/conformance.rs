//! L4 policy means what it means in Istio: the cases of `conformance/*.yaml`, through parser, model and compiler.
//!
//! Each question is asked four times: of the compiled rows and of the reference, once with the peer unknown to the mesh
//! and once with a pod that has its identity. `cargo test -p culvert --test conformance [-- TEXT]` runs the cases whose
//! name holds TEXT. A case that is known to fail says what the engine does instead, and is counted as ignored.

#[path = "conformance/case.rs"]
mod case;
#[path = "conformance/engine.rs"]
mod engine;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use case::{Answer, Case, CaseFile, Notes, Pod, Question, Step};
use engine::Scene;

/// What became of some cases.
#[derive(Default)]
struct Tally {
    passed: usize,
    questions: usize,
    /// Known to fail, by what the engine does instead.
    wrong: BTreeMap<String, usize>,
    filtered: usize,
    /// The case, and what was wrong.
    failures: Vec<(String, String)>,
}

fn main() -> ExitCode {
    let start = Instant::now();
    // Options are libtest's; none of them changes what is run here.
    let filters: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if std::env::args().any(|arg| arg == "--list") {
        println!("conformance: test\n\n1 test, 0 benchmarks");
        return ExitCode::SUCCESS;
    }
    println!();
    let mut tally = Tally::default();
    match files() {
        Ok(files) => files.iter().for_each(|file| tally.run_file(file, &filters)),
        Err(error) => tally.failures.push(("conformance".to_owned(), format!("{error:#}"))),
    }
    tally.print(start);
    ExitCode::from(u8::from(!tally.failures.is_empty()))
}

fn files() -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "no case files in {}", folder.display());
    Ok(files)
}

impl Tally {
    fn run_file(&mut self, path: &Path, filters: &[String]) {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let read = std::fs::read_to_string(path).context("cannot be read").and_then(|t| CaseFile::read(&t));
        let cases = match read {
            Ok(cases) => cases,
            Err(error) => return self.failures.push((file.into_owned(), format!("{error:#}"))),
        };
        let (passed, questions) = (self.passed, self.questions);
        for case in &cases {
            let name = format!("{file}: {}", case.name);
            if filters.is_empty() || filters.iter().any(|filter| name.contains(filter)) {
                self.run_case(name, case);
            } else {
                self.filtered += 1;
            }
        }
        println!("{file}: {} cases, {} questions", self.passed - passed, self.questions - questions);
    }

    fn run_case(&mut self, name: String, case: &Case) {
        match (run(case), &case.wrong) {
            (Ok(questions), None) => {
                self.passed += 1;
                self.questions += questions;
            }
            (Err(error), None) => self.failures.push((name, format!("{}\n{error:#}", case.origin))),
            (Err(_), Some(wrong)) => *self.wrong.entry(wrong.clone()).or_default() += 1,
            (Ok(_), Some(wrong)) => {
                let text = format!("holds now, so it is no longer true that {wrong}: remove `wrong`");
                self.failures.push((name, text));
            }
        }
    }

    /// The last line has libtest's form, so that what counts tests counts cases.
    fn print(&self, start: Instant) {
        for (wrong, count) in &self.wrong {
            println!("known to fail: {count} cases: {wrong}");
        }
        let wrong: usize = self.wrong.values().sum();
        let all = if self.failures.is_empty() { ", all as expected" } else { " as expected" };
        println!("conformance: {} cases, {} questions{all}", self.passed, grouped(self.questions));
        if !self.failures.is_empty() {
            println!("\nfailures:\n");
            for (name, text) in &self.failures {
                println!("---- {name} ----\n{text}\n");
            }
        }
        println!(
            "\ntest result: {}. {} passed; {} failed; {wrong} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
            if self.failures.is_empty() { "ok" } else { "FAILED" },
            self.passed,
            self.failures.len(),
            self.filtered,
            start.elapsed().as_secs_f32(),
        );
    }
}

/// `1204` as `1,204`.
fn grouped(number: usize) -> String {
    if number < 1000 {
        return number.to_string();
    }
    format!("{},{:03}", grouped(number / 1000), number % 1000)
}

/// Plays a case; returns how many questions it asked.
fn run(case: &Case) -> Result<usize> {
    if let Some(field) = &case.invalid {
        return refused(case, field);
    }
    ensure!(!case.first.ask.is_empty() || case.findings.is_some(), "a case without a question");
    let strangers = play(case, &[])?;
    play(case, &passers_by(case))?;
    Ok(strangers)
}

fn refused(case: &Case, field: &str) -> Result<usize> {
    let text = case.first.manifests()?;
    let Err(problems) = scene(case, &[])?.apply(&text) else {
        bail!("accepted, but {field} is invalid:\n{text}");
    };
    let fields: Vec<_> = problems.iter().map(|(field, _)| field.as_str()).collect();
    ensure!(fields == [field], "expected a problem with {field}, not {problems:#?}");
    Ok(1)
}

/// A pod for each peer that this mesh could have.
fn passers_by(case: &Case) -> Vec<Pod> {
    let domain = case.mesh.as_ref().map(|mesh| mesh.trust_domain.as_str());
    let identities: BTreeSet<(&str, &str)> = case
        .peers()
        .filter_map(|peer| match peer.split('/').collect::<Vec<_>>()[..] {
            [of, "ns", namespace, "sa", account] if Some(of) == domain => Some((namespace, account)),
            _ => None,
        })
        .collect();
    let possible = identities.into_iter().filter(|(ns, sa)| is_name(ns) && is_name(sa));
    possible.zip(0..=u8::MAX).map(|((ns, sa), n)| Pod::with_identity(ns, sa, n)).collect()
}

/// Whether Kubernetes lets namespaces and service accounts have this name.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') && !text.ends_with('-')
}

fn scene(case: &Case, more: &[Pod]) -> Result<Scene> {
    let mut scene = Scene::new(case.mesh.as_ref().context("a case without settings")?)?;
    let pods = case.pods().iter().chain(more).map(Pod::manifest).collect::<Result<Vec<_>>>()?;
    apply(&mut scene, &pods.join("\n---\n"))?;
    Ok(scene)
}

fn apply(scene: &mut Scene, text: &str) -> Result<()> {
    scene.apply(text).map_err(|problems| anyhow::anyhow!("refused: {problems:#?}\n{text}"))
}

fn play(case: &Case, more: &[Pod]) -> Result<usize> {
    let mut scene = scene(case, more)?;
    let mut questions = 0;
    for (n, step) in std::iter::once(&case.first).chain(&case.then).enumerate() {
        let asked = act(&mut scene, case, step, n == 0);
        questions += asked.with_context(|| match (n, more.is_empty()) {
            (0, true) => "peers that no pod has".to_owned(),
            (0, false) => "peers that pods have".to_owned(),
            (n, _) => format!("after change {n}"),
        })?;
    }
    Ok(questions)
}

fn act(scene: &mut Scene, case: &Case, step: &Step, first: bool) -> Result<usize> {
    apply(scene, &step.manifests()?)?;
    for object in &step.remove {
        scene.remove(object)?;
    }
    let picture = scene.picture();
    if let (Some(expected), true) = (&case.findings, first) {
        let (expected, found): (BTreeSet<_>, _) = (expected.iter().cloned().collect(), picture.findings());
        ensure!(found == expected, "expected the findings {expected:?}, not {found:?}");
    }
    let mut wrong = Vec::new();
    let mut asked = 0;
    for ask in &step.ask {
        let (questions, expected) = ask.questions(case.pods())?;
        asked += questions.len();
        for question in &questions {
            let mut answers = picture.answers(question)?;
            if ask.notes.is_none() {
                answers.iter_mut().for_each(|answer| answer.notes = Notes::default());
            }
            let speakers = ["the rows", "the reference"].into_iter().zip(&answers);
            let differ = speakers.filter(|(_, answer)| **answer != expected);
            wrong.extend(differ.map(|(who, answer)| difference(question, &expected, who, answer)));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(asked)
}

fn difference(question: &Question, expected: &Answer, who: &str, answer: &Answer) -> String {
    let Question { from, from_ip, to, to_ip, port } = question;
    let peer = from.as_deref().unwrap_or(case::PLAINTEXT);
    let text = |answer: &Answer| {
        let Answer { allowed, reason, policy, notes } = answer;
        let verdict = if *allowed { "allowed" } else { "refused" };
        let notes = if *notes == Notes::default() { String::new() } else { format!(", {notes:?}") };
        format!("{verdict} ({reason}, {}{notes})", policy.as_deref().unwrap_or("no policy"))
    };
    format!(
        "{peer} {from_ip} to {to} {to_ip} port {port}: expected {}, {who}: {}",
        text(expected),
        text(answer)
    )
}
