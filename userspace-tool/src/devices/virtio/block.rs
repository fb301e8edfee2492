// SPDX-License-Identifier: GPL-2.0-only

//! The block device: a file, or a disk of the host (virtio 1.2, 5.2).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::errno::Errno;
use nix::fcntl::{fallocate, FallocateFlags};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::chain::{Chain, Failed, Served};
use super::lock;
use super::undo::Undo;
use super::worker::QueueAccess;
use super::{Device, Kind, QUEUE_SIZE};
use crate::error::{Error, Result};
use crate::fork::copy_disk;
use crate::memory::GuestMemory;

/// The unit of all addresses and sizes in requests.
const SECTOR: u64 = 512;
/// How much a request may move at once. Descriptors may name the same memory again and again, and a
/// thread that is in the midst of a transfer cannot be ended.
const TRANSFER_LIMIT: u64 = 64 << 20;
/// How many ranges a request to discard or to write zeros may name, and how long each may be.
const RANGES: u32 = 64;
const RANGE_SECTORS: u32 = 1 << 21;
/// The size of a range in a request: first sector, count, flags.
const RANGE_SIZE: usize = 16;
/// The size of a request's header: type, nothing, sector.
const HEADER_SIZE: usize = 16;
/// The only flag of a range: the space need not stay allocated.
const FLAG_UNMAP: u32 = 1;

/// What is to be a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Whether the guest may only read it.
    pub(crate) read_only: bool,
}

impl FromStr for DiskFile {
    type Err = String;

    /// The file's name, and `,ro` if the guest may not write.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (path, read_only) = match text.strip_suffix(",ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        match path {
            "" => Err("an empty name".into()),
            path => Ok(Self {
                path: path.into(),
                read_only,
            }),
        }
    }
}

impl fmt::Display for DiskFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read_only = if self.read_only { ",ro" } else { "" };
        write!(f, "{}{read_only}", self.path.display())
    }
}

/// The device.
pub(crate) struct Block {
    file: File,
    sectors: u64,
    read_only: bool,
    /// The driver will never ask for a flush: each write is finished at once.
    write_through: bool,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// What a snapshot needs of the disk.
    undo: Option<Undo>,
}

impl Block {
    /// Opens the file. One that another program uses is refused if one of both writes.
    pub(crate) fn open(disk: &DiskFile) -> Result<Self> {
        let failed = |error: io::Error| Error::File {
            what: "disk",
            path: disk.path.clone(),
            error,
        };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!disk.read_only).open(&disk.path);
        let mut file = file.map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        // Of a disk of the host, the metadata do not tell the size.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Self::new(file, size, disk)
    }

    /// The disk in a file that is open.
    pub(crate) fn given(mut file: File, disk: &DiskFile) -> Result<Self> {
        let size = file.seek(SeekFrom::End(0));
        let size = size.map_err(|error| Error::system("lseek", error))?;
        Self::new(file, size, disk)
    }

    fn new(file: File, size: u64, disk: &DiskFile) -> Result<Self> {
        let failed = |error: io::Error| Error::File {
            what: "disk",
            path: disk.path.clone(),
            error,
        };
        lock::lock(&file, disk.read_only).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::DiskInUse(disk.path.clone()),
            _ => failed(error),
        })?;
        Ok(Self {
            file,
            sectors: size / SECTOR,
            read_only: disk.read_only,
            write_through: false,
            id: id(&disk.path),
            undo: None,
        })
    }

    /// Does what a request asks for. The answer is its status.
    fn request(&mut self, memory: &GuestMemory, chain: &mut Chain) -> Served<u32> {
        let mut header = [0; HEADER_SIZE];
        chain.read(memory, &mut header)?;
        let kind = word(&header, 0);
        let sector = u64::from(word(&header, 8)) | u64::from(word(&header, 12)) << 32;
        match kind {
            VIRTIO_BLK_T_IN => {
                let count = chain.writable();
                self.seek(sector, count)?;
                chain.write_from(memory, &mut self.file, count)?;
            }
            VIRTIO_BLK_T_GET_ID => {
                let count = chain.writable().min(self.id.len() as u64) as usize;
                chain.write(memory, &self.id[..count])?;
            }
            VIRTIO_BLK_T_FLUSH => self.file.sync_data()?,
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                if self.read_only =>
            {
                return Err(Failed)
            }
            VIRTIO_BLK_T_OUT => {
                let count = chain.readable();
                let start = self.seek(sector, count)?;
                self.write(start, count)?;
                chain.read_to(memory, &mut self.file, count)?;
                self.written()?;
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                return self.ranges(memory, chain, kind == VIRTIO_BLK_T_WRITE_ZEROES)
            }
            _ => return Ok(VIRTIO_BLK_S_UNSUPP),
        }
        Ok(VIRTIO_BLK_S_OK)
    }

    /// Makes sure that whole sectors are meant that are there; returns where they begin, in bytes.
    fn check(&self, sector: u64, bytes: u64) -> Served<u64> {
        let last = sector.checked_add(bytes / SECTOR).ok_or(Failed)?;
        match bytes % SECTOR == 0 && last <= self.sectors {
            true => Ok(sector * SECTOR),
            false => Err(Failed),
        }
    }

    /// Goes to where the next transfer begins.
    fn seek(&mut self, sector: u64, bytes: u64) -> Served<u64> {
        if bytes > TRANSFER_LIMIT {
            return Err(Failed);
        }
        let start = self.check(sector, bytes)?;
        self.file.seek(SeekFrom::Start(start))?;
        Ok(start)
    }

    /// Something is about to be written there, where the file's position is then.
    fn write(&mut self, start: u64, bytes: u64) -> io::Result<()> {
        if let Some(undo) = &mut self.undo {
            undo.keep(&self.file, start..start + bytes)?;
            self.file.seek(SeekFrom::Start(start))?;
        }
        Ok(())
    }

    /// Something has been written.
    fn written(&mut self) -> io::Result<()> {
        match self.write_through {
            true => self.file.sync_data(),
            false => Ok(()),
        }
    }

    /// Discards ranges, or fills them with zeros.
    fn ranges(&mut self, memory: &GuestMemory, chain: &mut Chain, zero: bool) -> Served<u32> {
        let count = chain.readable() / RANGE_SIZE as u64;
        if chain.readable() % RANGE_SIZE as u64 != 0 || count > u64::from(RANGES) {
            return Err(Failed);
        }
        let mut ranges = Vec::new();
        for _ in 0..count {
            let mut range = [0; RANGE_SIZE];
            chain.read(memory, &mut range)?;
            let first = u64::from(word(&range, 0)) | u64::from(word(&range, 4)) << 32;
            let (sectors, flags) = (word(&range, 8), word(&range, 12));
            // The flag belongs to zeros only (5.2.6.2).
            if flags & !(u32::from(zero) * FLAG_UNMAP) != 0 {
                return Ok(VIRTIO_BLK_S_UNSUPP);
            }
            if sectors > RANGE_SECTORS {
                return Err(Failed);
            }
            let length = u64::from(sectors) * SECTOR;
            let start = self.check(first, length)?;
            ranges.push((start, length, flags & FLAG_UNMAP != 0));
        }
        // All are good before the first is touched.
        for (start, length, unmap) in ranges {
            if length > 0 {
                self.write(start, length)?;
                self.clear(start, length, zero && !unmap)?;
            }
        }
        self.written()?;
        Ok(VIRTIO_BLK_S_OK)
    }

    /// Makes a range read as zeros. Its space is given back, unless it is to stay and can.
    fn clear(&self, start: u64, length: u64, stay: bool) -> nix::Result<()> {
        let (start, length) = (start as libc::off_t, length as libc::off_t);
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let zero = keep | FallocateFlags::FALLOC_FL_ZERO_RANGE;
        let punch = keep | FallocateFlags::FALLOC_FL_PUNCH_HOLE;
        match stay.then(|| fallocate(&self.file, zero, start, length)) {
            Some(Ok(())) => Ok(()),
            None | Some(Err(Errno::EOPNOTSUPP)) => fallocate(&self.file, punch, start, length),
            Some(error) => error,
        }
    }
}

/// A disk's name in the guest (`/sys/block/vda/serial`): the end of its file's.
fn id(path: &Path) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let end = &name[name.len().saturating_sub(id.len())..];
    id[..end.len()].copy_from_slice(end);
    id
}

/// A word of a header.
fn word(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind {
            number: VIRTIO_ID_BLOCK as u16,
            name: "block",
            class: [0x00, 0x80, 0x01],
        }
    }

    fn features(&self) -> u64 {
        let always =
            1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        always
            | match self.read_only {
                true => 1 << VIRTIO_BLK_F_RO,
                false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn queues(&self) -> usize {
        1
    }

    /// The numbers are the fields' offsets (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |offset: usize, bytes: &[u8]| {
            config[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.sectors.to_le_bytes());
        // Header and status take a descriptor each.
        put(12, &(u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(36, &RANGE_SECTORS.to_le_bytes());
        put(40, &RANGES.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &RANGE_SECTORS.to_le_bytes());
        put(52, &RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn start(&mut self, features: u64) {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn keep(&mut self, kept: bool) -> io::Result<()> {
        let undo = (kept && !self.read_only).then(|| Undo::new(self.sectors * SECTOR));
        self.undo = undo.transpose()?;
        Ok(())
    }

    fn copy(&mut self, file: &File) -> io::Result<()> {
        match self.read_only {
            true => Ok(()),
            false => copy_disk(&self.file, file),
        }
    }

    fn is_kept(&self) -> bool {
        self.undo.as_ref().is_none_or(Undo::is_whole)
    }

    fn go_back(&mut self) -> io::Result<()> {
        let undo = self.undo.as_mut();
        undo.map_or(Ok(()), |undo| undo.put_back(&self.file))
    }

    fn serve(&mut self, index: usize, queues: &mut [QueueAccess]) {
        let Some(queue) = queues.get_mut(index) else {
            return;
        };
        queue.each(|memory, chain| {
            if let Ok(status) = chain.take_status() {
                let answer = self.request(memory, chain).unwrap_or(VIRTIO_BLK_S_IOERR);
                chain.finish(memory, &status, answer as u8);
            }
        });
    }
}
