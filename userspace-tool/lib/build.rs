// SPDX-License-Identifier: GPL-2.0-only

//! The structures and numbers of `rust/uapi/pacifica.h`, made by bindgen: there is no second list.

use std::path::PathBuf;
use std::process::Command;

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../rust/uapi/pacifica.h");

fn main() {
    println!("cargo::rerun-if-changed={HEADER}");
    println!("cargo::rerun-if-env-changed=BINDGEN");
    let program = std::env::var("BINDGEN").unwrap_or_else(|_| "bindgen".into());
    let directory = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let status = Command::new(&program)
        .arg(HEADER)
        .args(["--allowlist-item", "(PACIFICA|pacifica)_.*"])
        // The numbers of ioctls are macros with sizeof in them: the compiler evaluates them.
        .arg("--clang-macro-fallback")
        .arg("--clang-macro-fallback-build-dir")
        .arg(&directory)
        .args(["--with-derive-default", "--rust-target", "1.82"])
        .arg("--output")
        .arg(directory.join("uapi.rs"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{program} {HEADER}: {status}"),
        Err(error) => panic!(
            "{program}: {error}\nbindgen 0.71 or newer is needed: Debian's package bindgen, or \
             `cargo install bindgen-cli`; BINDGEN=/path/to/it names another one"
        ),
    }
}
