// SPDX-License-Identifier: GPL-2.0-only

//! A QEMU with a guest: its command line, its monitor (QMP), its console, its end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;

use selftests::patience::{limit, wait, wait_beside};
use serde_json::{json, Value};

use crate::console::Console;
use crate::picture::Picture;

/// Words on the guest kernel's command line that make its watchdogs patient.
const WATCHDOGS: &str = include_str!("../../../lab/watchdogs");

/// Passes over the guest's memory after which a migration may let the guest rest for longer.
const PASSES: u64 = 5;

/// How much memory a guest has.
const MEMORY_MIB: usize = 384;

/// How long QEMU lets a guest rest at most, in milliseconds.
const LONGEST_REST: u64 = 2_000_000;

/// The same in one line.
pub(crate) fn watchdogs() -> String {
    let words = WATCHDOGS.lines().filter(|line| !line.starts_with('#'));
    words.collect::<Vec<_>>().join(" ")
}

/// The process. One that is dropped is killed.
pub(crate) struct Qemu {
    name: String,
    process: Child,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// Starts one with two virtual CPUs and the guest kernel, whose init runs `program`, behind
    /// which more words for the kernel may stand. `accel` and `more` are more words of QEMU's
    /// command line.
    pub(crate) fn start(
        name: &str,
        accel: &str,
        program: &str,
        more: &[&str],
    ) -> Result<Self, String> {
        let append = format!("console=ttyS0 pacifica.run={program} {}", watchdogs());
        let mut words = vec!["-kernel", "/guest/vmlinuz", "-initrd", "/tmp/initrd"];
        words.extend(["-append", &append]);
        words.extend(more);
        Self::boot(name, accel, &words)
    }

    /// Starts one with two virtual CPUs that boots what `words` of its command line say.
    pub(crate) fn boot(name: &str, accel: &str, words: &[&str]) -> Result<Self, String> {
        let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
        let socket = format!("/tmp/{name}.qmp");
        let log = File::create(format!("/tmp/{name}.log")).map_err(|e| e.to_string())?;
        let mut process = Command::new("qemu-system-x86_64")
            .args(["-accel", &format!("kvm,device={device}{accel}")])
            .args(["-machine", "q35", "-cpu", "host", "-smp", "2"])
            .args(["-m", &format!("{MEMORY_MIB}M")])
            .args(["-nodefaults", "-display", "none"])
            .args(["-serial", &format!("file:/tmp/{name}.console")])
            .args(["-qmp", &format!("unix:{socket},server,wait=off")])
            .args(words)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("qemu-system-x86_64: {e}"))?;
        let connected = wait(name, || match UnixStream::connect(&socket) {
            Ok(stream) => Ok(Some(stream)),
            Err(_) if process.try_wait().is_ok_and(|end| end.is_none()) => Ok(None),
            Err(_) => Err(format!("{name} ended: {}", said(name))),
        });
        let monitor = connected.and_then(|stream| {
            let set = stream.set_read_timeout(Some(limit()));
            set.map_err(|e| e.to_string()).map(|()| stream)
        });
        let mut qemu = Self {
            name: name.to_owned(),
            process,
            monitor: BufReader::new(monitor?),
        };
        qemu.receive()?; // the greeting
        qemu.ask("qmp_capabilities", json!({}))?;
        Ok(qemu)
    }

    fn receive(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let read = self.monitor.read_line(&mut line);
        match read {
            Ok(0) | Err(_) => Err(format!("{} is gone: {}", self.name, said(&self.name))),
            Ok(_) => serde_json::from_str(&line).map_err(|e| format!("{line}: {e}")),
        }
    }

    /// Gives a command to the monitor and answers what it returns.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let answer = self.exchange(command, arguments);
        answer.map_err(|error| self.explain(&error))
    }

    fn exchange(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        let sent = writeln!(self.monitor.get_mut(), "{request}");
        sent.map_err(|e| format!("{}, {command}: {e}", self.name))?;
        loop {
            let mut answer = self.receive()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{}, {command}: {error}", self.name));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// Sends the guest, which goes on meanwhile, to `uri`; answers how it went. A guest that writes
    /// faster than this host copies rests for longer, twice as long after some passes each.
    pub(crate) fn migrate(&mut self, uri: &str) -> Result<Value, String> {
        // Milliseconds. The emulated host is slow: the last pass may take seconds.
        let (mut rest, mut passes) = (5000, PASSES);
        self.ask("migrate-set-parameters", json!({ "downtime-limit": rest }))?;
        self.ask("migrate", json!({ "uri": uri }))?;
        let outcome = wait("migration", || {
            let answer = self.exchange("query-migrate", json!({}))?;
            if answer["ram"]["dirty-sync-count"].as_u64() > Some(passes) {
                (rest, passes) = ((rest * 2).min(LONGEST_REST), passes + PASSES);
                self.exchange("migrate-set-parameters", json!({ "downtime-limit": rest }))?;
            }
            match answer["status"].as_str() {
                Some("completed") => Ok(Some(answer)),
                Some("failed" | "cancelled") => Err(format!("migration: {answer}")),
                _ => Ok(None),
            }
        });
        outcome.map_err(|error| self.explain(&error))
    }

    /// All that the guest has said.
    fn console(&self) -> Console {
        Console::new(&fs::read(format!("/tmp/{}.console", self.name)).unwrap_or_default())
    }

    /// The lines that programs of the guest have said.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.console().lines
    }

    /// The text on the screen of a guest that has a VGA in its text mode of 80 columns.
    pub(crate) fn screen(&mut self) -> Result<Vec<String>, String> {
        const TEXT: u64 = 0xb_8000;
        const COLUMNS: usize = 80;
        const LINES: usize = 25;
        let file = format!("/tmp/{}.screen", self.name);
        let place = json!({ "val": TEXT, "size": 2 * COLUMNS * LINES, "filename": file });
        self.exchange("pmemsave", place)?;
        let cells = fs::read(&file).map_err(|e| e.to_string())?;
        // A character and its colours.
        let lines = cells.chunks_exact(2 * COLUMNS).map(|line| {
            let text = line.iter().step_by(2).map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => ' ',
            });
            text.collect::<String>().trim_end().to_owned()
        });
        Ok(lines.collect())
    }

    /// Waits until the screen shows this; answers all of it.
    pub(crate) fn wait_for_screen(
        &mut self,
        what: &str,
        shows: impl Fn(&[String]) -> bool,
    ) -> Result<Vec<String>, String> {
        let mut last = Vec::new();
        let outcome = wait(what, || {
            last = self.screen()?;
            Ok(shows(&last).then_some(()))
        });
        match outcome {
            Ok(()) => Ok(last),
            Err(error) => Err(format!("{error}; the screen:\n{}", last.join("\n"))),
        }
    }

    /// Waits until the screen is a picture that this holds of; answers it.
    pub(crate) fn wait_for_picture(
        &mut self,
        what: &str,
        holds: impl Fn(&Picture) -> bool,
    ) -> Result<Picture, String> {
        let file = format!("/tmp/{}.ppm", self.name);
        let mut last = ((0, 0), 0);
        let outcome = wait(what, || {
            // To take and to look at one is much work for an emulated host.
            sleep(Duration::from_secs(1));
            self.exchange("screendump", json!({ "filename": file }))?;
            let picture = Picture::new(&fs::read(&file).map_err(|e| e.to_string())?)?;
            last = (picture.size(), picture.colours());
            Ok(holds(&picture).then_some(picture))
        });
        outcome.map_err(|error| self.explain(&format!("{error}; its size and colours: {last:?}")))
    }

    /// Waits until programs of the guest have said so many whole lines with `text`; answers these.
    pub(crate) fn wait_for(&mut self, text: &str, times: usize) -> Result<Vec<String>, String> {
        let console = format!("/tmp/{}.console", self.name);
        let said = || fs::metadata(&console).map_or(0, |about| about.len() as usize);
        let outcome = wait_beside(text, said, || {
            let over = self.process.try_wait().map_err(|e| e.to_string())?;
            let mut lines = self.lines();
            lines.retain(|line| line.contains(text));
            match (lines.len() >= times, over) {
                (true, _) => Ok(Some(lines)),
                (false, None) => Ok(None),
                (false, Some(status)) => Err(format!("{status} before the guest said '{text}'")),
            }
        });
        outcome.map_err(|error| self.explain(&error))
    }

    /// Waits for the end that the guest makes itself, and looks for complaints.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        let ended = wait("power-off", || {
            self.process.try_wait().map_err(|e| e.to_string())
        });
        match ended {
            Ok(status) if !status.success() => Err(self.explain(&status.to_string())),
            Err(error) => Err(self.explain(&error)),
            Ok(_) => self.healthy(),
        }
    }

    /// Fails if the guest has complained.
    pub(crate) fn healthy(&mut self) -> Result<(), String> {
        match self.console().complaint() {
            Some(complaint) => Err(self.explain(&complaint)),
            None => Ok(()),
        }
    }

    /// Fails unless this holds.
    pub(crate) fn expect(&mut self, what: &str, holds: bool) -> Result<(), String> {
        if holds {
            Ok(())
        } else {
            Err(self.explain(what))
        }
    }

    /// An error with what the guest and QEMU said last. The whole console goes to the output, each
    /// line behind `>`.
    fn explain(&mut self, error: &str) -> String {
        let console = self.console();
        for line in console.text.lines() {
            println!("> {}: {line}", self.name);
        }
        // The threads first: to be asked for registers stops the CPUs.
        let threads = threads(self.process.id());
        let registers = self.registers() + &self.stacks();
        let (name, qemu, last) = (&self.name, said(&self.name), console.last(40));
        format!(
            "{name}: {error}: {qemu}\n{threads}{registers}the guest's console ends with:\n{last}"
        )
    }

    /// Moves the guest to `to`, which was started with `-S`. It goes on there if nothing was lost:
    /// its memory and the registers of its CPUs are what they were when it stopped.
    pub(crate) fn move_to(&mut self, to: &mut Self, uri: &str) -> Result<Value, String> {
        let how = self.migrate(uri)?;
        let arrived = wait("the guest's arrival", || {
            let state = to.exchange("query-status", json!({}))?;
            Ok((state["status"] == "paused").then_some(()))
        });
        arrived.map_err(|error| to.explain(&error))?;
        let (before, after) = (self.registers(), to.registers());
        if before != after {
            let error = format!("registers that were lost on the way:\n{before}\nare now");
            return Err(to.explain(&error));
        }
        self.same_memory(to)?;
        to.ask("cont", json!({}))?;
        Ok(how)
    }

    /// Fails if the memory of the two guests, which are at rest, differs.
    fn same_memory(&mut self, other: &mut Self) -> Result<(), String> {
        /// A page.
        const PAGE: usize = 4096;
        /// How much is compared at once.
        const CHUNK: usize = 16 << 20;
        let mut pages = Vec::new();
        for start in (0..MEMORY_MIB << 20).step_by(CHUNK) {
            let save = |qemu: &mut Self| -> Result<Vec<u8>, String> {
                let file = format!("/tmp/{}.memory", qemu.name);
                let place = json!({ "val": start, "size": CHUNK, "filename": file });
                qemu.ask("pmemsave", place)?;
                let bytes = fs::read(&file).map_err(|e| e.to_string())?;
                fs::remove_file(&file).map_err(|e| e.to_string())?;
                Ok(bytes)
            };
            let (mine, theirs) = (save(self)?, save(other)?);
            let both = mine.chunks(PAGE).zip(theirs.chunks(PAGE)).enumerate();
            for (index, (mine, theirs)) in both.filter(|(_, (mine, theirs))| mine != theirs) {
                let at = mine.iter().zip(theirs).position(|(a, b)| a != b);
                pages.push(start + index * PAGE + at.unwrap_or_default());
            }
        }
        match pages.as_slice() {
            [] => Ok(()),
            lost => Err(other.explain(&format!(
                "{} pages were lost on the way, the first differ at {:#x?}",
                lost.len(),
                &lost[..lost.len().min(8)]
            ))),
        }
    }

    /// The registers of the guest's CPUs, or why the monitor does not tell them.
    fn registers(&mut self) -> String {
        self.say("info registers -a")
    }

    /// What is on the stacks of the guest's two CPUs, where return addresses are.
    fn stacks(&mut self) -> String {
        let mut text = String::new();
        for cpu in 0..2 {
            text += &self.say(&format!("cpu {cpu}"));
            text += &self.say("x /192gx $rsp");
        }
        text
    }

    /// What QEMU answers to a command for people, or why it does not.
    fn say(&mut self, line: &str) -> String {
        let command = json!({ "command-line": line });
        match self.exchange("human-monitor-command", command) {
            Ok(text) => text.as_str().unwrap_or_default().to_owned(),
            Err(error) => format!("{error}\n"),
        }
    }
}

/// What the threads of a process do: name, state and times, and where in the kernel each is;
/// nothing of one that has ended.
fn threads(process: u32) -> String {
    let mut text = String::new();
    let tasks = fs::read_dir(format!("/proc/{process}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (stat, stack) = (read("stat"), read("stack"));
        // The name, which may have spaces, is in parentheses.
        let (name, rest) = stat.rsplit_once(')').unwrap_or_default();
        let words: Vec<_> = rest.split_whitespace().collect();
        let word = |i: usize| words.get(i).copied().unwrap_or("?");
        text += &format!(
            "thread {name}): {}, {} + {} ticks\n",
            word(0),
            word(11),
            word(12)
        );
        for line in stack.lines().take(6) {
            text += &format!("    {line}\n");
        }
    }
    text
}

/// What QEMU itself had to say.
fn said(name: &str) -> String {
    fs::read_to_string(format!("/tmp/{name}.log")).unwrap_or_default()
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
