//! A store with damage anywhere: it opens, and everything it gives is as it was written.
//!
//! The octets are damages, three at a time: where (two) and what is done to the byte there.
#![no_main]

use std::collections::BTreeMap;
use std::io;

use leveret_storage::{is_beside_the_log, Body, Disk, Identity, Log, Message, Record, Settings, Target, Targets, Urgency};
use leveret_core::time::Now;

const SEGMENT_BYTES: u32 = 64 << 10;

/// Files in memory.
#[derive(Clone, Default)]
struct Memory(BTreeMap<u32, Vec<u8>>);

impl Disk for Memory {
    fn lock(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn slots(&mut self) -> io::Result<Vec<u32>> {
        Ok(self.0.keys().copied().filter(|slot| !is_beside_the_log(*slot)).collect())
    }

    fn create(&mut self, slot: u32) -> io::Result<()> {
        self.0.entry(slot).or_default();
        Ok(())
    }

    fn read(&mut self, slot: u32, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let file = self.0.get(&slot).ok_or(io::ErrorKind::NotFound)?;
        let rest = file.get(at as usize..).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write(&mut self, slot: u32, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.0.get_mut(&slot).ok_or(io::ErrorKind::NotFound)?;
        let end = at as usize + bytes.len();
        file.resize(file.len().max(end), 0);
        file[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, slot: u32, at: u64, bytes: u32) -> io::Result<()> {
        self.write(slot, at, &vec![0; bytes as usize])
    }

    fn sync(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open(disk: &mut Memory) -> Log {
    let settings = Settings {
        segment_bytes: SEGMENT_BYTES,
        commit_bytes: 16 << 10,
        segments_max: 12,
        ..Settings::default()
    };
    let identity = Identity { id: *b"0123456789abcdef", secret: 42 };
    Log::open(disk, settings, identity, Now::from_ms(0)).expect("whatever the bytes, it opens").0
}

fn body(offset: u64) -> Vec<u8> {
    vec![offset as u8; 100 + offset as usize * 7 % 900]
}

/// A store with some hundred messages in three segments.
fn written() -> Memory {
    let mut disk = Memory::default();
    let mut log = open(&mut disk);
    for offset in 0..300 {
        let body = body(offset);
        let targets = [Target { queue: 1 + offset % 3, offset }];
        let message = Message {
            targets: Targets::List(&targets),
            enqueued_ms: offset,
            expiration_ms: None,
            exchange: b"",
            key: b"key",
            properties: &[0, 0],
            body: Body::Inline(&body),
        };
        log.append(&Record::Message(message), Urgency::Awaited, Now::from_ms(0)).expect("there is room");
        if offset % 10 == 9 {
            while let Some(job) = log.next_prepare() {
                log.prepare_done(job.run(&mut disk)).expect("memory does not fail");
            }
            let job = log.next_commit(Now::from_ms(0)).expect("one is due");
            log.commit_done(job.run(&mut disk)).expect("memory does not fail");
        }
    }
    disk
}

thread_local! {
    static WRITTEN: Memory = written();
}

libfuzzer_sys::fuzz_target!(|octets: &[u8]| {
    let mut disk = WRITTEN.with(Memory::clone);
    let used = 4 * SEGMENT_BYTES as usize;
    for damage in octets.chunks_exact(3).take(64) {
        let at = usize::from(u16::from_le_bytes([damage[0], damage[1]])) * 5 % used;
        let (file, at) = (at / SEGMENT_BYTES as usize, at % SEGMENT_BYTES as usize);
        if let Some(byte) = disk.0.get_mut(&(file as u32)).and_then(|file| file.get_mut(at)) {
            *byte ^= damage[2];
        }
    }
    let log = open(&mut disk);
    let read = log.read_live(&mut disk, |record| {
        if let Record::Message(message) = record {
            let target = message.targets.iter().next().expect("it has one");
            assert_eq!(message.body, Body::Inline(&body(target.offset)), "what is given is as it was");
        }
    });
    assert!(read.is_ok());
});
