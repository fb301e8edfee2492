// SPDX-License-Identifier: GPL-2.0-only

//! A guest in a memory cgroup: its tables are charged to it, the host takes pages and tables back
//! when the limit wants it, and a guest that is killed for it leaves nothing behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use selftests::kvm::{number, Handle};
use selftests::memory::{table_pages, PAGE};
use selftests::patience::{limit, until};
use selftests::tap::{equal, skipped};

use crate::guest::*;
use selftests::swap::{vmstat, Swap};

const ROOT: &str = "/sys/fs/cgroup";

/// A memory cgroup with this process in it, for as long as this lives.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self, String> {
        let path = Path::new(ROOT).join(format!("guest-memory-{}", std::process::id()));
        if let Err(error) = fs::create_dir(&path) {
            skipped(&format!("no cgroup: {error}"))?;
        }
        let group = Self(path);
        if group.figure("memory.stat", "sec_pagetables").is_none() {
            skipped("the cgroup does not count tables")?;
        }
        group.enter().map_err(|e| e.to_string())?;
        Ok(group)
    }

    /// Moves this process into it.
    fn enter(&self) -> io::Result<()> {
        self.set("cgroup.procs", "0")
    }

    /// Moves this process out of it.
    fn leave(&self) {
        let _ = fs::write(Path::new(ROOT).join("cgroup.procs"), "0");
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.0.join(file), value)
    }

    /// A figure of one of its files.
    fn figure(&self, file: &str, name: &str) -> Option<i64> {
        let text = fs::read_to_string(self.0.join(file)).ok()?;
        let figure = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(figure)
    }

    /// How many pages are tables of guests.
    fn tables(&self) -> i64 {
        let bytes = self.figure("memory.stat", "sec_pagetables");
        bytes.unwrap_or(0) / PAGE as i64
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.leave();
        let _ = fs::remove_dir(&self.0);
    }
}

/// Asks until the answer is right: the kernel adds up what a cgroup has now and then.
fn becomes(what: &str, figure: impl Fn() -> i64, least: i64, most: i64) -> Outcome {
    let mut now = 0;
    until(what, || {
        now = figure();
        (least..=most).contains(&now)
    })
    .map_err(|error| format!("{error}: {now}, not {least} to {most}"))
}

/// A page of every 2 MiB has a value of its own, and a table.
const FAR: usize = 200;
/// More tables than a VM with one vCPU has for anything else.
const STOCK: i64 = 10;

fn far(page: usize) -> u64 {
    DATA + (page * LARGE) as u64
}

/// A VM that has used its code, and memory for the pages above as slot 1.
fn with_far_pages(device: &Handle) -> Result<(Vm, Area), String> {
    let vm = Vm::new(device)?;
    let area = vm.with_data(FAR * LARGE)?;
    area.advise(0, FAR * LARGE, libc::MADV_NOHUGEPAGE);
    equal("no slot", vm.exit(LOAD, 0, 0, 1), Ok(EXIT_MMIO))?;
    vm.finish_access()?;
    Ok((vm, area))
}

/// The tables of a guest are the memory of who made it.
pub(crate) fn charged(device: &Handle) -> Outcome {
    let group = Cgroup::new()?;
    let (vm, _area) = with_far_pages(device)?;
    let base = table_pages();
    for page in 0..FAR {
        vm.store(far(page), page as u32)?;
    }
    // A vCPU has some in stock.
    let all = FAR as i64;
    becomes("tables", || table_pages() - base, all - STOCK, all + STOCK)?;
    becomes("charged", || group.tables(), all, all + 2 * STOCK)?;
    vm.slot(1, 0, 0, 0, null_mut())?;
    becomes("without the slot", || table_pages() - base, -STOCK, STOCK)?;
    becomes("charged", || group.tables(), 0, 2 * STOCK)?;
    drop(vm);
    becomes("without the VM", || group.tables(), 0, 0)
}

/// Writes and reads all pages until `stop`, and rests now and then, that pages may grow old;
/// answers what is in them then.
fn work(vm: &Vm, pages: usize, stop: &AtomicBool) -> Result<u32, String> {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        vm.call(FILL, DATA, round, pages as u32)?;
        for _ in 0..3 {
            vm.call(SUM, DATA, 0, pages as u32)?;
            let regs: kvm_regs = vm.vcpu.handle.get(number::GET_REGS)?;
            equal("what was written", regs.rax as u32, round * pages as u32)?;
        }
        sleep(Duration::from_millis(10));
    }
    Ok(round)
}

/// The host reclaims what a guest uses all the time.
pub(crate) fn reclaimed(device: &Handle, time: Duration) -> Outcome {
    const PAGES: usize = 4096;
    const SOME: u64 = 256;
    let Some(_swap) = Swap::on() else {
        return skipped("there is nothing to swap to");
    };
    let group = Cgroup::new()?;
    let vm = Vm::new(device)?;
    let area = vm.with_data(PAGES * PAGE)?;
    area.advise(0, PAGES * PAGE, libc::MADV_NOHUGEPAGE);
    let before = [vmstat("pswpout"), vmstat("pswpin")];
    let stop = AtomicBool::new(false);
    let round = std::thread::scope(|scope| {
        let guest = scope.spawn(|| work(&vm, PAGES, &stop));
        let begin = Instant::now();
        let gone = || vmstat("pswpout") - before[0];
        // However slow the host is, some pages go.
        let more = || begin.elapsed() < time || gone() <= SOME && begin.elapsed() < limit();
        while more() && !guest.is_finished() {
            // It need not find as much as that.
            let _ = group.set("memory.reclaim", "4M");
            if begin.elapsed() > time / 2 {
                let _ = group.set("memory.high", "14M");
            }
            sleep(Duration::from_millis(5));
        }
        let _ = group.set("memory.high", "max");
        stop.store(true, Ordering::Relaxed);
        guest.join().map_err(|_| "the guest's thread panicked")?
    })?;
    let [out, back] = [vmstat("pswpout") - before[0], vmstat("pswpin") - before[1]];
    println!("# {round} rounds; {out} pages went, {back} came back");
    equal("pages went", out > SOME, true)?;
    for page in 0..PAGES {
        equal("a page in the end", area.load(page * PAGE), round)?;
    }
    Ok(())
}

/// The host takes the pages of a guest that does not use them, and the tables with them.
pub(crate) fn pages_and_tables_go(device: &Handle) -> Outcome {
    let Some(_swap) = Swap::on() else {
        return skipped("there is nothing to swap to");
    };
    let group = Cgroup::new()?;
    let (vm, area) = with_far_pages(device)?;
    let base = table_pages();
    for page in 0..FAR {
        vm.store(far(page), page as u32)?;
    }
    let pages = || vm.pages().map_or(i64::MAX, |pages| pages[0] as i64);
    equal("pages", pages() >= FAR as i64, true)?;
    let reclaim = || {
        let _ = group.set("memory.reclaim", "64M");
        pages()
    };
    becomes("pages that are left", reclaim, 0, STOCK)?;
    let tables = || table_pages() - base;
    becomes("tables that are left", tables, -STOCK, 2 * STOCK)?;
    for page in 0..FAR {
        equal("what was written", vm.load(far(page))?, page as u32)?;
        equal("our view", area.load(page * LARGE), page as u32)?;
    }
    Ok(())
}

/// A guest that wants more than its cgroup has is killed, and nothing is left of it.
pub(crate) fn killed(device: &Handle) -> Outcome {
    let before = table_pages();
    let group = Cgroup::new()?;
    let set = |file, value| group.set(file, value).map_err(|e| e.to_string());
    set("memory.max", "24M")?;
    let _ = set("memory.swap.max", "0");
    group.leave();
    let child = fork(|| {
        let (Ok(()), Ok((vm, area))) = (group.enter(), with_far_pages(device)) else {
            return true;
        };
        for page in 0..FAR {
            let _ = vm.store(far(page), 1);
        }
        // All that there is, and the tables are no help.
        for page in 0..FAR * LARGE / PAGE {
            let _ = vm.store(DATA + (page * PAGE) as u64, 1);
        }
        area.load(0) != 0
    });
    equal("the guest came to its end", child.join(), false)?;
    let kills = group.figure("memory.events", "oom_kill");
    equal("killed", kills, Some(1))?;
    set("memory.max", "max")?;
    becomes("tables on the host", table_pages, 0, before)?;
    becomes("tables of the cgroup", || group.tables(), 0, 0)?;
    let (vm, _area) = with_far_pages(device)?;
    vm.store(far(0), 7)?;
    equal("the next guest", vm.load(far(0))?, 7)
}
