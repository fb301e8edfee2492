// SPDX-License-Identifier: GPL-2.0-only

//! A fuzzer: finds the five bugs of the parser in `guest/`, each run from the same instant.
//!
//! `fuzz-demo [--seed N] [--runs N] [--lines] [DIRECTORY]`, with `guest.bin` and `guest.symbols`
//! in the directory. Ends when all bugs are found, or with failure after so many runs; `--lines` is
//! for no live line.
//!
//! The parts are those of LibAFL, with its names: an executor with an observer ([`machine`]), a
//! feedback, a corpus, a scheduler with mutations ([`corpus`]), an objective. A fuzzer on LibAFL
//! replaces all but the executor. It is not used here: LibAFL 0.16 needs Rust 1.93, and an older
//! one, with its 120 crates, would take longer to build than all else.

mod corpus;
mod machine;
mod symbols;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use corpus::{Corpus, Feedback};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use machine::{Exit, Machine, COVERAGE_SIZE};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// How many bugs guest/parser.c has.
const PLANTED: usize = 5;
/// An input as it should be: one record of each type.
const SAMPLE: &[u8] = b"PK\x01\
    N\x04nameS\x03\x01\x02\x03O\x03\x00\x01\x02L\x02\x00\x00R\x02\x04\x01G\x04N\x02ab";

struct Options {
    seed: u64,
    runs: u64,
    lines: bool,
    directory: PathBuf,
}

fn options() -> Outcome<Options> {
    let mut options = Options {
        seed: 1,
        runs: 2_000_000,
        lines: !std::io::stdout().is_terminal(),
        directory: "/selftests/fuzz-demo".into(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Outcome<u64> { Ok(words.next().ok_or("no number")?.parse()?) };
        match word.as_str() {
            "--seed" => options.seed = number()?,
            "--runs" => options.runs = number()?,
            "--lines" => options.lines = true,
            _ if word.starts_with('-') => return Err(format!("{word}: no such option").into()),
            _ => options.directory = word.into(),
        }
    }
    Ok(options)
}

/// What was done so far.
struct Status {
    start: Instant,
    runs: u64,
    pages: u64,
}

impl Status {
    fn line(&self, corpus: &Corpus, feedback: &Feedback, bugs: usize) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let (runs, pages) = (self.runs, self.pages);
        let speed = runs as f64 / seconds;
        let each = pages as f64 / runs.max(1) as f64;
        let (inputs, places) = (corpus.len(), feedback.places());
        format!(
            "{runs} runs, {speed:.0} a second; {bugs} of {PLANTED} bugs; \
             {pages} pages put back, {each:.1} a run; {inputs} inputs, {places} places"
        )
    }
}

/// A line that changes, or a line now and then.
enum Display {
    Live(ProgressBar),
    Lines(Instant),
}

impl Display {
    fn new(lines: bool) -> Outcome<Self> {
        if lines {
            return Ok(Self::Lines(Instant::now()));
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}")?;
        bar.set_style(style.tick_chars("-\\|/ "));
        Ok(Self::Live(bar))
    }

    fn show(&mut self, line: impl FnOnce() -> String) {
        match self {
            Self::Live(bar) => {
                bar.set_message(line());
                bar.tick();
            }
            Self::Lines(last) if last.elapsed() < Duration::from_secs(1) => {}
            Self::Lines(last) => {
                println!("{}", line());
                *last = Instant::now();
            }
        }
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        match self {
            Self::Live(bar) => bar.suspend(|| println!("{line}")),
            Self::Lines(_) => println!("{line}"),
        }
    }
}

/// Takes away from an input what the bug does not need.
fn shorten(
    executor: &mut Machine,
    mut input: Vec<u8>,
    bug: &str,
    status: &mut Status,
) -> Outcome<Vec<u8>> {
    let mut size = input.len() / 2;
    while size > 0 {
        let mut start = 0;
        while start < input.len() {
            let mut shorter = input.clone();
            shorter.drain(start..input.len().min(start + size));
            let exit = executor.run(&shorter, &mut [0; COVERAGE_SIZE])?;
            status.pages += executor.reset()?;
            status.runs += 1;
            match exit {
                Exit::Crash(same) if same == bug => input = shorter,
                _ => start += size,
            }
        }
        size /= 2;
    }
    Ok(input)
}

fn fuzz(options: &Options) -> Outcome<bool> {
    let node = std::env::var("DEVICE").unwrap_or_else(|_| pacifica_vm::NODE.into());
    let mut executor = Machine::start(&node, &options.directory)?;
    let mut feedback = Feedback::new();
    let mut corpus = Corpus::new(SAMPLE, options.seed);
    let mut bugs = BTreeMap::new();
    let mut display = Display::new(options.lines)?;
    let mut status = Status {
        start: Instant::now(),
        runs: 0,
        pages: 0,
    };
    while status.runs < options.runs && bugs.len() < PLANTED {
        let input = corpus.next();
        let mut coverage = [0; COVERAGE_SIZE];
        let exit = executor.run(&input, &mut coverage)?;
        status.pages += executor.reset()?;
        status.runs += 1;
        match exit {
            // The objective: an input for each bug.
            Exit::Crash(bug) if !bugs.contains_key(&bug) => {
                let runs = status.runs;
                let small = shorten(&mut executor, input, &bug, &mut status)?;
                let (text, more) = (&small[..small.len().min(24)], small.len() > 24);
                let (text, more) = (text.escape_ascii(), if more { "..." } else { "" });
                display.say(&format!(
                    "bug after {runs} runs: {bug}, by \"{text}\"{more}"
                ));
                bugs.insert(bug, small);
            }
            Exit::Crash(_) => {}
            Exit::Done if feedback.is_new(&coverage) => corpus.add(input),
            Exit::Done => {}
        }
        if status.runs % 256 == 0 {
            display.show(|| status.line(&corpus, &feedback, bugs.len()));
        }
    }
    // Each of them happens again.
    for (bug, input) in &bugs {
        let again = executor.run(input, &mut [0; COVERAGE_SIZE])?;
        executor.reset()?;
        if again != Exit::Crash(bug.clone()) {
            return Err(format!("{bug}: another time it was {again:?}").into());
        }
    }
    if let Display::Live(bar) = &display {
        bar.finish_and_clear();
    }
    println!("{}", status.line(&corpus, &feedback, bugs.len()));
    Ok(bugs.len() == PLANTED)
}

fn main() -> ExitCode {
    match options().and_then(|options| fuzz(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz-demo: {error}");
            ExitCode::FAILURE
        }
    }
}
