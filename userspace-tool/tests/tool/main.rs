// SPDX-License-Identifier: GPL-2.0-only

//! Tests of the whole program, from the outside. Those that need a hypervisor run where
//! `PACIFICA_TEST_DEVICE` names its node, as in the emulated host, and pass without doing anything
//! elsewhere. `PACIFICA_TEST_PROGRAM` names another program than the one just built;
//! `PACIFICA_TEST_KERNEL` and `PACIFICA_TEST_INITRD` name a Linux that says `ready` and powers off.

mod commands;
mod common;
mod guests;
mod terminal;
