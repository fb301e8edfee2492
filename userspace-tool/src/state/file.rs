// SPDX-License-Identifier: GPL-2.0-only

//! The file of a machine that was saved.
//!
//! ```text
//!   0      header: magic, version, where the contents are, a checksum over both
//!   4096   guest memory, in chunks of 1 MiB; those that are all zeros are not there.
//!          compressed: each chunk one frame of zstd, one behind the other
//!          mapped:     each chunk as it is, at its place: the file has holes
//!   then   contents: JSON in one frame of zstd: the list of chunks, each with its place
//!          and a checksum, and the state of the machine
//! ```
//!
//! The header is written last: a file that was not finished is none. Whoever reads the file trusts
//! nothing in it: places are checked against its size, and a frame is decompressed into the room
//! that there is for it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use pacifica_vm::Tracking;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use crate::cli::MEMORY_LIMIT;
use crate::memory::{self, GuestMemory};

/// What the file begins with, and the version of all of it.
pub(crate) const MAGIC: [u8; 8] = *b"PACIFICA";
const VERSION: u32 = 1;
/// The size of the header: magic, version, checksum, place and length of the contents.
const HEADER: usize = 32;
/// Where memory begins.
const FIRST: u64 = 4096;
/// How much memory a chunk has.
pub(crate) const CHUNK: u64 = 1 << 20;
/// How long the contents may be, compressed or not.
const CONTENTS_LIMIT: u64 = 256 << 20;
/// The level of compression: the quickest is not much worse than others for memory.
const LEVEL: i32 = 1;

/// How guest memory is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Form {
    /// Compressed: it is read, and checked, before the guest goes on.
    Compressed,
    /// As it is: the file is mapped, and read when the guest touches it.
    Mapped,
}

/// A chunk that is not all zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    /// Which one of memory.
    number: u64,
    /// Where it is in the file, and how long there.
    at: u64,
    size: u64,
    /// The checksum (CRC-32) of its memory.
    sum: u32,
}

/// What is in the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contents<T> {
    form: Form,
    /// The size of guest memory.
    pub(crate) memory: u64,
    chunks: Vec<Chunk>,
    /// The state of the machine.
    pub(crate) state: T,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It has no magic number, or no header yet.
    #[error("it is no machine that was saved, or one whose saving was not finished")]
    Magic,
    /// Another version of this program has written it.
    #[error("it has version {0} of the format, and this program knows version {VERSION}")]
    Version(u32),
    /// It is not as it was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It is not what this program writes.
    #[error("it is damaged: its contents make no sense: {0}")]
    Contents(String),
}

/// Writes a file with the memory and the state of a machine; says how long it has become. The file
/// is on its medium when this returns.
pub(crate) fn write<T: Serialize>(
    file: &File,
    form: Form,
    memory: (&GuestMemory, u64),
    state: T,
) -> io::Result<u64> {
    let (memory, size) = memory;
    let mut chunks = Vec::new();
    let mut end = FIRST;
    let mut bytes = vec![0; CHUNK as usize];
    for number in 0..size / CHUNK {
        memory
            .peek(&mut bytes, place(size, number))
            .map_err(io::Error::other)?;
        if is_zero(&bytes) {
            continue;
        }
        let packed = match form {
            Form::Compressed => Some(zstd::bulk::compress(&bytes, LEVEL)?),
            Form::Mapped => None,
        };
        let stored = packed.as_ref().unwrap_or(&bytes);
        let at = match form {
            Form::Compressed => end,
            Form::Mapped => FIRST + number * CHUNK,
        };
        file.write_all_at(stored, at)?;
        end = at + stored.len() as u64;
        chunks.push(Chunk {
            number,
            at,
            size: stored.len() as u64,
            sum: crc32fast::hash(&bytes),
        });
    }
    if form == Form::Mapped {
        end = FIRST + size;
    }
    let contents = Contents {
        form,
        memory: size,
        chunks,
        state,
    };
    finish(file, end, &contents)
}

/// Writes the contents there, and then the header.
fn finish<T: Serialize>(file: &File, at: u64, contents: &Contents<T>) -> io::Result<u64> {
    let text = serde_json::to_vec(contents)?;
    let packed = zstd::bulk::compress(&text, LEVEL)?;
    if text.len().max(packed.len()) as u64 > CONTENTS_LIMIT {
        return Err(io::Error::other("the state of the machine is too large"));
    }
    file.write_all_at(&packed, at)?;
    file.sync_all()?;
    file.write_all_at(&header(at, &packed), 0)?;
    file.sync_all()?;
    Ok(at + packed.len() as u64)
}

/// The header of contents that are there.
fn header(at: u64, packed: &[u8]) -> [u8; HEADER] {
    let place = [at, packed.len() as u64].map(u64::to_le_bytes).concat();
    let mut sum = crc32fast::Hasher::new();
    sum.update(&place);
    sum.update(packed);
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
    header[16..].copy_from_slice(&place);
    header
}

/// Reads the contents of a file, and checks where all of it is.
pub(crate) fn read<T: DeserializeOwned>(file: &File) -> Result<Contents<T>, Wrong> {
    let length = file.metadata()?.len();
    let mut found = [0; HEADER];
    match file.read_exact_at(&mut found, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Wrong::Magic),
        result => result?,
    }
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| found[at + byte]));
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if found[..8] != MAGIC {
        return Err(Wrong::Magic);
    }
    if word(8) != VERSION {
        return Err(Wrong::Version(word(8)));
    }
    let (at, size) = (long(16), long(24));
    if size > CONTENTS_LIMIT || at.checked_add(size).is_none_or(|end| end > length) {
        return Err(Wrong::Damaged("it ends too early"));
    }
    let mut packed = vec![0; size as usize];
    file.read_exact_at(&mut packed, at)?;
    if header(at, &packed) != found {
        return Err(Wrong::Damaged("the checksum of its contents differs"));
    }
    // Text that never ends is cut, and then it is none.
    let text = zstd::stream::read::Decoder::new(&packed[..])?.take(CONTENTS_LIMIT);
    let contents: Contents<T> = serde_json::from_reader(io::BufReader::new(text))
        .map_err(|error| Wrong::Contents(error.to_string()))?;
    check(&contents, length)?;
    Ok(contents)
}

/// Makes sure that each chunk is in the file, and of memory that there is.
fn check<T>(contents: &Contents<T>, length: u64) -> Result<(), Wrong> {
    if contents.memory % CHUNK != 0 || contents.memory > MEMORY_LIMIT {
        return Err(Wrong::Damaged("it has memory of another size"));
    }
    let count = contents.memory / CHUNK;
    let numbers = contents.chunks.iter().map(|chunk| chunk.number);
    if !numbers.is_sorted_by(|one, next| one < next) {
        return Err(Wrong::Damaged("chunks of memory are not in their order"));
    }
    for chunk in &contents.chunks {
        let there = chunk.at.checked_add(chunk.size);
        if chunk.number >= count || there.is_none_or(|end| end > length) {
            return Err(Wrong::Damaged("a chunk of memory lies outside"));
        }
        let mapped = (FIRST + chunk.number * CHUNK, CHUNK);
        if contents.form == Form::Mapped && (chunk.at, chunk.size) != mapped {
            return Err(Wrong::Damaged("a chunk of memory is not at its place"));
        }
    }
    // Memory that is mapped must be there: where the file ends, accesses would end the program.
    match contents.form {
        Form::Mapped if length < FIRST + contents.memory => {
            Err(Wrong::Damaged("it ends within its memory"))
        }
        _ => Ok(()),
    }
}

impl<T> Contents<T> {
    /// Makes guest memory of the file: compressed memory is read, and checked; other memory is
    /// mapped, and checked if that is asked for.
    pub(crate) fn load(&self, file: File, check: bool) -> Result<GuestMemory, Wrong> {
        match self.form {
            Form::Compressed => {
                let memory = memory::allocate(self.memory);
                let memory = memory.map_err(|error| Wrong::Read(io::Error::other(error)))?;
                self.unpack(&file, &memory)?;
                Ok(memory)
            }
            Form::Mapped => {
                if check {
                    self.verify(&file)?;
                }
                Ok(map(file, self.memory)?)
            }
        }
    }

    /// Reads compressed memory.
    fn unpack(&self, file: &File, memory: &GuestMemory) -> Result<(), Wrong> {
        let mut unpacker = zstd::bulk::Decompressor::new()?;
        let mut bytes = vec![0; CHUNK as usize];
        let bound = zstd::zstd_safe::compress_bound(CHUNK as usize) as u64;
        for chunk in &self.chunks {
            if chunk.size > bound {
                return Err(Wrong::Damaged("a chunk of memory is too long"));
            }
            let mut packed = vec![0; chunk.size as usize];
            file.read_exact_at(&mut packed, chunk.at)?;
            let count = unpacker.decompress_to_buffer(&packed, &mut bytes[..]);
            if count.ok() != Some(bytes.len()) || crc32fast::hash(&bytes) != chunk.sum {
                return Err(Wrong::Damaged("the checksum of its memory differs"));
            }
            let place = place(self.memory, chunk.number);
            memory
                .write_slice(&bytes, place)
                .map_err(|error| Wrong::Read(io::Error::other(error)))?;
        }
        Ok(())
    }

    /// Checks memory that will be mapped.
    fn verify(&self, file: &File) -> Result<(), Wrong> {
        let mut bytes = vec![0; CHUNK as usize];
        for chunk in &self.chunks {
            file.read_exact_at(&mut bytes, chunk.at)?;
            if crc32fast::hash(&bytes) != chunk.sum {
                return Err(Wrong::Damaged("the checksum of its memory differs"));
            }
        }
        Ok(())
    }
}

/// Guest memory that is the file's until it is written to: then the page is the guest's alone.
fn map(file: File, size: u64) -> io::Result<GuestMemory> {
    let file = Arc::new(file);
    let mut at = FIRST;
    let mut regions = Vec::new();
    for (start, size) in memory::ranges(size) {
        let length = usize::try_from(size).map_err(io::Error::other)?;
        let mapping = MmapRegion::<Tracking>::build(
            Some(FileOffset::from_arc(file.clone(), at)),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
        .map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start));
        regions.push(region.ok_or(io::ErrorKind::InvalidInput)?);
        at += size;
    }
    GuestMemory::from_regions(regions).map_err(io::Error::other)
}

/// Where a chunk is in guest memory. There are only whole chunks below the gap and above it.
fn place(size: u64, number: u64) -> GuestAddress {
    let mut offset = number * CHUNK;
    for (start, size) in memory::ranges(size) {
        if offset < size {
            return GuestAddress(start + offset);
        }
        offset -= size;
    }
    // Behind all memory, where accesses fail.
    GuestAddress(u64::MAX)
}

/// Whether all bytes are 0.
fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|piece| piece == &ZEROS[..piece.len()])
}

/// The frame of the contents of a good file.
#[cfg(test)]
pub(super) fn frame(good: &[u8]) -> &[u8] {
    let at = u64::from_le_bytes(good[16..24].try_into().unwrap_or_default());
    &good[at as usize..]
}

/// A good file with another text as its contents.
#[cfg(test)]
pub(super) fn around(good: &[u8], text: &[u8]) -> Vec<u8> {
    around_frame(good, &zstd::bulk::compress(text, LEVEL).unwrap_or_default())
}

/// A good file with another frame.
#[cfg(test)]
pub(super) fn around_frame(good: &[u8], packed: &[u8]) -> Vec<u8> {
    let at = good.len() - frame(good).len();
    let mut bytes = [&good[..at], packed].concat();
    bytes[..HEADER].copy_from_slice(&header(at as u64, packed));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestMemory as _, GuestMemoryRegion as _};

    const MIB: u64 = 1 << 20;

    /// Memory with some bytes here and there, and the first chunk all zeros.
    fn guest(size: u64) -> GuestMemory {
        let memory = memory::allocate(size).unwrap();
        for address in [MIB + 7, 2 * MIB - 8, size - 8] {
            memory.write_obj(address, GuestAddress(address)).unwrap();
        }
        memory
    }

    /// A file that no directory has.
    pub(crate) fn file() -> File {
        let number = nix::sys::memfd::memfd_create(c"saved", nix::sys::memfd::MFdFlags::empty());
        File::from(number.unwrap())
    }

    fn same(one: &GuestMemory, other: &GuestMemory, size: u64) {
        let (mut a, mut b) = (vec![0; MIB as usize], vec![1; MIB as usize]);
        for at in (0..size).step_by(MIB as usize).map(GuestAddress) {
            one.read_slice(&mut a, at).unwrap();
            other.read_slice(&mut b, at).unwrap();
            assert!(a == b, "{at:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let size = 4 * MIB;
        let memory = guest(size);
        for form in [Form::Compressed, Form::Mapped] {
            let file = file();
            let bytes = write(&file, form, (&memory, size), "state").unwrap();
            assert_eq!(bytes, file.metadata().unwrap().len());
            if form == Form::Compressed {
                assert!(bytes < 6000, "{bytes}");
            }
            let contents: Contents<String> = read(&file).unwrap();
            assert_eq!((&*contents.state, contents.memory), ("state", size));
            assert_eq!(contents.chunks.len(), 2);
            let copy = contents.load(file.try_clone().unwrap(), true).unwrap();
            same(&memory, &copy, size);
            assert!(copy.iter().all(|region| region.len() == size));
            // What is written to it is not in the file.
            copy.write_obj(1u8, GuestAddress(0)).unwrap();
            let again = contents.load(file, true).unwrap();
            assert_eq!(again.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let memory = guest(2 * MIB);
        for form in [Form::Compressed, Form::Mapped] {
            let file = file();
            let bytes = write(&file, form, (&memory, 2 * MIB), vec![7u8; 100]).unwrap();
            for end in [0, 1, 31, 32, 4095, 4096, bytes / 2, bytes - 1] {
                let cut = super::tests::file();
                let mut start = vec![0; end as usize];
                file.read_exact_at(&mut start, 0).unwrap();
                cut.write_all_at(&start, 0).unwrap();
                let error = read::<Vec<u8>>(&cut).unwrap_err();
                assert!(matches!(error, Wrong::Magic | Wrong::Damaged(_)), "{error}");
            }
            file.write_all_at(&2u32.to_le_bytes(), 8).unwrap();
            let error = read::<Vec<u8>>(&file).unwrap_err();
            assert!(matches!(error, Wrong::Version(2)), "{error}");
        }
    }

    #[test]
    fn memory_that_has_changed_is_seen() {
        let memory = guest(2 * MIB);
        for form in [Form::Compressed, Form::Mapped] {
            let file = file();
            write(&file, form, (&memory, 2 * MIB), ()).unwrap();
            let contents: Contents<()> = read(&file).unwrap();
            let at = contents.chunks[0].at + 20;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[!byte[0]], at).unwrap();
            let error = contents.load(file, true).unwrap_err();
            assert!(matches!(error, Wrong::Damaged(_)), "{error}");
        }
    }

    #[test]
    fn no_chunk_comes_twice() {
        let file = file();
        let bytes = write(&file, Form::Compressed, (&guest(4 * MIB), 4 * MIB), ()).unwrap();
        let mut good = vec![0; bytes as usize];
        file.read_exact_at(&mut good, 0).unwrap();
        for order in [&[0, 1][..], &[1, 0], &[0, 0], &[0, 1, 1]] {
            let mut contents: Contents<()> = read(&file).unwrap();
            contents.chunks = order.iter().map(|nth| contents.chunks[*nth]).collect();
            let other = super::tests::file();
            let text = serde_json::to_vec(&contents).unwrap();
            other.write_all_at(&around(&good, &text), 0).unwrap();
            let taken = read::<()>(&other).is_ok();
            assert_eq!(taken, order == [0, 1], "{order:?}");
        }
    }

    #[test]
    fn chunks_are_found_above_the_gap() {
        let size = memory::ranges(u64::MAX >> 1)[0].1 + 2 * MIB;
        let below = (size - 2 * MIB) / CHUNK;
        assert_eq!(place(size, below - 1).0, (below - 1) * CHUNK);
        assert_eq!(place(size, below + 1).0, (4 << 30) + CHUNK);
        assert_eq!(place(size, below + 2).0, u64::MAX);
    }
}
