// SPDX-License-Identifier: GPL-2.0-only

//! A QEMU with a guest: its command line, its monitor (QMP), its console, its end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{json, Value};

/// How long anything may take; a guest gets ready in some 15 s.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a guest's kernel says when it was hurt.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "Kernel panic",
    "rcu: INFO",
    "soft lockup",
    "load: FAILED",
];

/// What this kernel says at every start on this CPU, `harmless` of selftests/lab/check-log.
const HARMLESS: &str = "Speculative Return Stack Overflow: WARNING: See https://";

/// Asks again and again until there is an answer.
fn wait<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>, String>) -> Result<T, String> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        sleep(Duration::from_millis(50));
    }
    Err(format!("{what}: not within {PATIENCE:?}"))
}

/// The process. One that is dropped is killed.
pub(crate) struct Qemu {
    name: String,
    process: Child,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// Starts one with two virtual CPUs and the guest kernel, whose init runs `program`. `accel` and
    /// `more` are more words of its command line.
    pub(crate) fn start(
        name: &str,
        accel: &str,
        program: &str,
        more: &[&str],
    ) -> Result<Self, String> {
        let device = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
        let socket = format!("/tmp/{name}.qmp");
        let log = File::create(format!("/tmp/{name}.log")).map_err(|e| e.to_string())?;
        let mut process = Command::new("qemu-system-x86_64")
            .args(["-accel", &format!("kvm,device={device}{accel}")])
            .args(["-machine", "q35", "-cpu", "host", "-smp", "2", "-m", "384M"])
            .args(["-nodefaults", "-display", "none"])
            .args(["-serial", &format!("file:/tmp/{name}.console")])
            .args(["-qmp", &format!("unix:{socket},server,wait=off")])
            .args(["-kernel", "/guest/vmlinuz", "-initrd", "/tmp/initrd"])
            .args(["-append", &format!("console=ttyS0 pacifica.run={program}")])
            .args(more)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("qemu-system-x86_64: {e}"))?;
        let connected = wait(name, || match UnixStream::connect(&socket) {
            Ok(stream) => Ok(Some(stream)),
            Err(_) if process.try_wait().is_ok_and(|end| end.is_none()) => Ok(None),
            Err(_) => Err(format!("{name} ended: {}", said(name))),
        });
        let mut qemu = Self {
            name: name.to_owned(),
            process,
            monitor: BufReader::new(connected?),
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

    /// Sends the guest, which goes on meanwhile, to `uri`; answers how it went.
    pub(crate) fn migrate(&mut self, uri: &str) -> Result<Value, String> {
        // The emulated host is slow: the last round may take seconds.
        self.ask("migrate-set-parameters", json!({ "downtime-limit": 5000 }))?;
        self.ask("migrate", json!({ "uri": uri }))?;
        wait("migration", || {
            let answer = self.ask("query-migrate", json!({}))?;
            match answer["status"].as_str() {
                Some("completed") => Ok(Some(answer)),
                Some("failed" | "cancelled") => Err(format!("migration: {answer}")),
                _ => Ok(None),
            }
        })
    }

    /// All that the guest has said.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(format!("/tmp/{}.console", self.name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until the guest has said `text` so many times.
    pub(crate) fn wait_for(&mut self, text: &str, times: usize) -> Result<(), String> {
        let outcome = wait(text, || {
            let over = self.process.try_wait().map_err(|e| e.to_string())?;
            match (self.console().matches(text).count() >= times, over) {
                (true, _) => Ok(Some(())),
                (false, None) => Ok(None),
                (false, Some(status)) => Err(format!("{status} before the guest said '{text}'")),
            }
        });
        outcome.map_err(|error| self.explain(&error))
    }

    /// Waits for the end that the guest makes itself, and looks for complaints.
    pub(crate) fn finish(mut self) -> Result<String, String> {
        let ended = wait("power-off", || {
            self.process.try_wait().map_err(|e| e.to_string())
        });
        let console = self.console().replace(HARMLESS, "");
        match ended {
            Ok(status) if !status.success() => Err(self.explain(&status.to_string())),
            Err(error) => Err(self.explain(&error)),
            Ok(_) => match COMPLAINTS.iter().find(|text| console.contains(**text)) {
                Some(complaint) => Err(self.explain(complaint)),
                None => Ok(console),
            },
        }
    }

    /// An error with what the guest and QEMU said last.
    fn explain(&self, error: &str) -> String {
        let console = self.console();
        let lines: Vec<_> = console.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n# ");
        format!("{}: {error}: {}\n# {last}", self.name, said(&self.name))
    }
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
