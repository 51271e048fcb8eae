//! Tests of the message pool: held messages are unchanged, released memory is free again.

use super::*;
use crate::mem::COMMAND_EXTENTS;
use crate::mem::memory::POOL_EXTENTS;

fn pool(messages_max: usize, body_bytes_max: usize, assembly_bytes_max: usize) -> Messages {
    Messages::new(MessageLimits { messages_max, body_bytes_max, assembly_bytes_max })
}

fn make(pool: &mut Messages, key: &str, properties: &[u8], body: &[u8]) -> MessageId {
    let id = pool.begin("amq.topic", key.as_bytes(), Share::Ordinary).unwrap();
    pool.reserve_content(id, properties, MessageFlags::NONE, body.len() as u32, Share::Ordinary).unwrap();
    for piece in body.chunks(77) {
        pool.append_body(id, piece);
    }
    pool.finish(id);
    id
}

fn body(pool: &Messages, id: MessageId, from: u32) -> Vec<u8> {
    let mut out = vec![0; (pool.body_len(id) - from) as usize];
    let mut cursor = pool.body_cursor(id, from);
    for piece in out.chunks_mut(53) {
        pool.read(id, &mut cursor, piece);
    }
    out
}

#[test]
fn streams_of_every_shape_read_back_as_written() {
    let mut pool = pool(64, 1 << 20, 1 << 20);
    for key_len in [0, 3, 82, 83, 84, 255] {
        for properties_len in [0, 3, 80, 92, 300, 5000] {
            for body_len in [0, 1, 16, 91, 92, 256, 300, 4096, 20_000] {
                let key = "k".repeat(key_len);
                let properties: Vec<u8> = (0..properties_len).map(|n| n as u8).collect();
                let bytes: Vec<u8> = (0..body_len).map(|n| (n / 3) as u8).collect();
                let id = make(&mut pool, &key, &properties, &bytes);
                let mut scratch = [0; 8192];
                assert_eq!(pool.properties(id, &mut scratch), properties);
                assert_eq!((pool.exchange(id), pool.routing_key(id)), ("amq.topic", key.as_bytes()));
                assert_eq!(body(&pool, id, 0), bytes);
                let middle = bytes.len() / 2;
                assert_eq!(body(&pool, id, middle as u32), bytes[middle..]);
                pool.release(id);
            }
        }
    }
    assert_eq!((pool.messages_used(), pool.body_bytes_used(), pool.assembly_bytes_used()), (0, 0, 0));
}

#[test]
fn other_properties_make_another_message_with_the_same_body() {
    let mut pool = pool(8, 1 << 20, 1 << 20);
    let bytes: Vec<u8> = (0..9_000).map(|n| n as u8).collect();
    let id = make(&mut pool, "key", b"old", &bytes);
    let other = pool.copy_with_properties(id, b"and now the new ones", MessageFlags::PERSISTENT).unwrap();
    assert_eq!(pool.properties(other, &mut [0; 64]), b"and now the new ones");
    assert_eq!((body(&pool, other, 0), pool.routing_key(other)), (bytes, &b"key"[..]));
    pool.discard(other);
    assert_eq!((pool.messages_used(), pool.frees()), (1, 0), "the old one is there, and no room was made");
}

#[test]
fn ordinary_publishers_leave_the_reserve_and_wait_until_the_low_mark() {
    let mut pool = pool(160, 1 << 20, 1 << 20);
    let mut held = Vec::new();
    while let Ok(id) = pool.begin("", b"q", Share::Ordinary) {
        held.push(id);
    }
    assert_eq!(held.len(), 150);
    assert!(pool.is_held() && !pool.lift_hold());
    let reserve = pool.begin("", b"q", Share::Reserve).unwrap();
    pool.release(reserve);
    pool.release(held.pop().unwrap());
    assert_eq!(
        pool.begin("", b"q", Share::Ordinary),
        Err(PoolFull::Messages),
        "off mark is apart from on mark"
    );
    for id in held.drain(100..) {
        pool.release(id);
    }
    assert!(pool.lift_hold());
    assert!(pool.begin("", b"q", Share::Ordinary).is_ok());
}

#[test]
fn incomplete_contents_share_the_assembly_share() {
    let mut pool = pool(100, 1 << 20, 64 << 10);
    let mut half = Vec::new();
    loop {
        let id = pool.begin("", b"q", Share::Ordinary).unwrap();
        let result = pool.reserve_content(id, b"", MessageFlags::NONE, 16 << 10, Share::Ordinary);
        half.push(id);
        if let Err(full) = result {
            assert_eq!((full, half.len()), (PoolFull::Assembly, 5));
            break;
        }
    }
    for id in half {
        pool.release(id);
    }
    assert_eq!((pool.assembly_bytes_used(), pool.body_bytes_used()), (0, 0));
}

#[test]
fn a_content_that_does_not_fit_changes_nothing() {
    let mut pool = pool(4, 8 * PAGE_BYTES, 1 << 20);
    let id = pool.begin("", b"q", Share::Reserve).unwrap();
    let full = pool.reserve_content(id, b"", MessageFlags::NONE, 9 * PAGE_BYTES as u32, Share::Reserve);
    assert_eq!(full, Err(PoolFull::Bodies));
    assert_eq!((pool.body_bytes_used(), pool.assembly_bytes_used()), (0, 0));
    pool.reserve_content(id, b"", MessageFlags::NONE, 10, Share::Reserve).unwrap();
}

/// Returns a message without content.
fn begun(pool: &mut Messages) -> MessageId {
    pool.begin("", b"q", Share::Ordinary).unwrap()
}

fn reserve(pool: &mut Messages, id: MessageId, pages: usize) -> Result<(), PoolFull> {
    let body_len = (pages * PAGE_BYTES) as u32;
    pool.reserve_content(id, &[], MessageFlags::NONE, body_len, Share::Ordinary)
}

#[test]
fn a_waiting_large_message_delays_no_small_one_and_is_admitted_after_one_turnover_of_the_pool() {
    // 960 pages are for ordinary publishers.
    let mut pool = pool(4_000, 1024 * PAGE_BYTES, 1024 * PAGE_BYTES);
    let mut small: std::collections::VecDeque<_> = (0..500).map(|_| begun(&mut pool)).collect();
    for id in small.clone() {
        reserve(&mut pool, id, 1).unwrap();
    }
    let large = begun(&mut pool);
    assert_eq!(reserve(&mut pool, large, 600), Err(PoolFull::Bodies));
    assert!(!pool.is_held(), "no other publisher has to wait for it");
    // No page was freed yet, so others may use all that are left.
    while let Ok(id) = pool.begin("", b"q", Share::Ordinary) {
        match reserve(&mut pool, id, 1) {
            Ok(()) => small.push_back(id),
            Err(_) => pool.release(id),
        }
    }
    assert!(small.len() >= 959, "{}", small.len());
    assert_eq!(reserve(&mut pool, large, 600), Err(PoolFull::Bodies));
    // For each message that leaves another one begins: the large one is admitted after as many as it has pages.
    let mut gone = 0;
    while reserve(&mut pool, large, 600).is_err() {
        pool.release(small.pop_front().expect("it came in before all others had gone"));
        gone += 1;
        pool.lift_hold();
        if let Ok(id) = pool.begin("", b"q", Share::Ordinary) {
            match reserve(&mut pool, id, 1) {
                Ok(()) => small.push_back(id),
                Err(_) => pool.release(id),
            }
        }
    }
    assert!((600..=700).contains(&gone), "{gone} messages had to leave first");
    // Pages reserved for a message that is released are available to others again.
    pool.release(large);
    assert!(pool.lift_hold());
    let another = begun(&mut pool);
    assert_eq!(reserve(&mut pool, another, 900), Err(PoolFull::Bodies));
    for id in small.drain(..) {
        pool.release(id);
    }
    pool.release(another);
    assert!(pool.lift_hold() && !pool.claim_fits());
    let all = begun(&mut pool);
    assert_eq!(reserve(&mut pool, all, 960), Ok(()));
}

/// Small messages may begin once nothing is reserved any more, although no message left the pool.
#[test]
fn the_end_of_a_claim_frees_capacity_for_others() {
    let mut pool = pool(4_000, 1024 * PAGE_BYTES, 1024 * PAGE_BYTES);
    let small: Vec<_> = (0..500).map(|_| begun(&mut pool)).collect();
    for &id in &small {
        reserve(&mut pool, id, 1).unwrap();
    }
    let large = begun(&mut pool);
    assert_eq!(reserve(&mut pool, large, 600), Err(PoolFull::Bodies));
    for &id in &small[..200] {
        pool.release(id);
    }
    let before = pool.capacity_freed();
    assert_eq!(reserve(&mut pool, large, 600), Ok(()));
    assert!(pool.capacity_freed() > before, "200 pages were set aside for it");
}

#[test]
fn a_content_that_waits_for_the_assembly_share_is_not_overtaken_forever() {
    let mut pool = pool(100, 4 << 20, 16 * PAGE_BYTES);
    let mut half: Vec<MessageId> = (0..6).map(|_| begun(&mut pool)).collect();
    for &id in &half {
        assert_eq!(reserve(&mut pool, id, 2), Ok(()));
    }
    let large = begun(&mut pool);
    assert_eq!((reserve(&mut pool, large, 9), pool.awaits_assembly()), (Err(PoolFull::Assembly), Some(0)));
    // Free memory is for others, memory freed later is not. The reserve's share does not wait.
    let (second, third) = (begun(&mut pool), begun(&mut pool));
    assert_eq!(reserve(&mut pool, second, 3), Ok(()));
    pool.release(half.remove(0));
    assert_eq!(reserve(&mut pool, third, 2), Err(PoolFull::Assembly));
    let urgent = begun(&mut pool);
    assert_eq!(pool.reserve_content(urgent, b"", MessageFlags::NONE, 4000, Share::Reserve), Ok(()));
    pool.release(urgent);
    for _ in 0..3 {
        assert_eq!(reserve(&mut pool, large, 9), Err(PoolFull::Assembly));
        pool.release(half.remove(0));
        assert_eq!(reserve(&mut pool, third, 2), Err(PoolFull::Assembly));
    }
    // Nine pages were freed since it began to wait: they are reserved for it.
    assert_eq!(reserve(&mut pool, large, 9), Ok(()));
    assert_eq!(pool.awaits_assembly(), None);
    pool.release(half.remove(0));
    assert_eq!(reserve(&mut pool, third, 2), Ok(()));
    // The claim ends with the message that is released.
    let (fourth, fifth) = (begun(&mut pool), begun(&mut pool));
    assert_eq!(reserve(&mut pool, fourth, 12), Err(PoolFull::Assembly));
    assert_eq!(pool.awaits_assembly(), Some(1));
    pool.release(large);
    assert_eq!(reserve(&mut pool, fifth, 9), Err(PoolFull::Assembly));
    pool.release(fourth);
    assert_eq!((pool.awaits_assembly(), reserve(&mut pool, fifth, 9)), (None, Ok(())));
    for id in [half.remove(0), second, third, fifth] {
        pool.release(id);
    }
    assert_eq!((pool.messages_used(), pool.assembly_bytes_used()), (0, 0));
}

#[test]
fn the_footprint_of_a_message_is_what_it_occupies() {
    for key_len in [0, 81, 82, 120, 247, 248, 255] {
        for (properties_len, body_len) in [(0, 0), (0, 1), (0, 90), (200, 0), (30, 300), (0, 3000), (5, 9000)]
        {
            let mut pool = pool(64, 1 << 20, 1 << 20);
            let (key, properties) = ("k".repeat(key_len), vec![1; properties_len]);
            // Sixteen equal messages fill the pages that they share.
            let ids: Vec<_> =
                (0..16).map(|_| make(&mut pool, &key, &properties, &vec![2; body_len])).collect();
            let counted: usize =
                ids.iter().map(|&id| pool.footprint_bytes(id) as usize - MESSAGE_SLOT_BYTES).sum();
            assert_eq!(pool.body_bytes_used(), counted, "{key_len}, {properties_len}, {body_len}");
        }
    }
}

#[test]
fn names_that_do_not_fit_into_the_slot_take_a_unit_instead_of_a_page() {
    let mut pool = pool(64, 1 << 20, 1 << 20);
    for _ in 0..16 {
        make(&mut pool, &"k".repeat(120), b"", b"23.5");
    }
    assert_eq!(pool.body_bytes_used(), PAGE_BYTES);
}

#[test]
fn a_discarded_message_reports_no_capacity() {
    let mut pool = pool(64, 1 << 20, 1 << 20);
    let key = [b'k'; 200];
    let kept = make(&mut pool, "key", b"", &[7; 5000]);
    let before = pool.capacity_freed();
    let begun = pool.begin("amq.topic", &key, Share::Ordinary).unwrap();
    pool.reserve_content(begun, b"", MessageFlags::NONE, 2 << 20, Share::Ordinary).unwrap_err();
    pool.discard(begun);
    assert_eq!(pool.capacity_freed(), before, "begun");
    let copy = pool
        .copy_as(
            kept,
            MessageNames { exchange: "amq.topic", routing_key: &key },
            b"",
            MessageFlags::NONE,
            Share::Reserve,
        )
        .unwrap();
    pool.discard(copy);
    assert_eq!(pool.capacity_freed(), before, "copied");
    pool.release(kept);
    assert!(pool.capacity_freed() > before, "a message that leaves makes room");
}

/// Discarding a copy takes back only what the copy counted. Capacity from a message that left meanwhile stays.
#[test]
fn a_discarded_copy_takes_back_no_capacity_that_other_messages_freed() {
    for count in 2..40 {
        let mut pool = pool(64, 1 << 20, 1 << 20);
        let held: Vec<_> = (0..count).map(|_| make(&mut pool, "key", b"", &[7; 10])).collect();
        let before = pool.capacity_freed();
        let copy = pool.copy_with_properties(held[0], b"", MessageFlags::NONE).unwrap();
        pool.release(held[count - 1]);
        pool.discard(copy);
        assert!(pool.capacity_freed() > before, "one of {count} messages left, but no capacity is reported");
    }
}

/// Expired messages that were read back may take all memory that read-back can take. A dead letter replaces its message,
/// so one slot is enough for all of them to leave.
#[test]
fn a_dead_letter_has_a_slot_when_messages_that_were_read_back_fill_the_pool() {
    let mut pool = pool(64, 1 << 20, 1 << 20);
    let mut read_back = Vec::new();
    while let Ok(id) = pool.begin("", b"q", Share::ReadBack) {
        read_back.push(id);
    }
    assert_eq!(read_back.len(), 63);
    for id in read_back {
        let names = MessageNames { exchange: "dead", routing_key: &b"letter"[..] };
        assert!(pool.copy_as(id, names, b"", MessageFlags::NONE, Share::Reserve).is_err());
        let letter = pool.copy_as(id, names, b"", MessageFlags::NONE, Share::DeadLetter).unwrap();
        assert!(pool.copy_as(id, names, b"", MessageFlags::NONE, Share::DeadLetter).is_err());
        pool.release(id);
        assert_eq!(pool.messages_used(), 63, "{letter:?} is in the place of its message");
    }
}

/// Returns a pool without a maximum of its own, with a memory of this many extents.
fn pool_of_extents(extents: usize) -> Messages {
    let limits =
        MessageLimits { messages_max: 1 << 20, body_bytes_max: 1 << 30, assembly_bytes_max: 1 << 30 };
    Messages::in_memory(limits, &Memory::new(extents + COMMAND_EXTENTS, [0; 3]))
}

/// Publishes messages with bodies of `pages` pages until the pool refuses one.
fn fill(pool: &mut Messages, pages: usize) -> (Vec<MessageId>, PoolFull) {
    let mut all = Vec::new();
    loop {
        let id = match pool.begin("", b"q", Share::Ordinary) {
            Ok(id) => id,
            Err(full) => return (all, full),
        };
        if let Err(full) = reserve(pool, id, pages) {
            pool.discard(id);
            return (all, full);
        }
        pool.append_body(id, &vec![7; pages * PAGE_BYTES]);
        pool.finish(id);
        all.push(id);
    }
}

fn held_extents(pool: &Messages) -> usize {
    pool.slots.places().account().held() + pool.blocks.places().account().held()
}

#[test]
fn slots_and_blocks_take_what_the_other_does_not_use() {
    let mut pool = pool_of_extents(256);
    let bytes = 256 * EXTENT_BYTES;
    for pages in [1, 0, 3, 0] {
        let (all, full) = fill(&mut pool, pages);
        assert_eq!(full, PoolFull::Memory);
        let used = all.len() * (MESSAGE_SLOT_BYTES + pages * PAGE_BYTES);
        assert!(used > bytes / 16 * 14, "{used} of {bytes} with {pages} pages each");
        assert!(held_extents(&pool) <= 244, "a sixteenth is for connections whose progress frees memory");
        let reserve = pool.begin("", b"q", Share::Reserve).unwrap();
        pool.release(reserve);
        all.into_iter().for_each(|id| pool.release(id));
        assert!(pool.lift_hold());
    }
}

/// One small message stays in each extent of all slots. Bodies then find no extent, although most memory is free.
/// Small messages go on in the free slots, and each extent is returned with its last message.
#[test]
fn messages_that_stay_in_every_extent_keep_it_from_bodies_and_not_from_small_messages() {
    let mut pool = pool_of_extents(256);
    let (all, _) = fill(&mut pool, 0);
    let each = EXTENT_BYTES / MESSAGE_SLOT_BYTES;
    let (kept, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|id| id.index() % each == 9);
    others.into_iter().for_each(|id| pool.release(id));
    assert!(pool.lift_hold() && kept.len() >= 232);
    let large = begun(&mut pool);
    assert_eq!(reserve(&mut pool, large, 40), Err(PoolFull::Memory));
    assert!(!pool.is_held(), "others need no extent");
    let small: Vec<_> = (0..1_000).map(|_| begun(&mut pool)).collect();
    small.into_iter().for_each(|id| pool.release(id));
    kept.into_iter().for_each(|id| pool.release(id));
    assert_eq!(reserve(&mut pool, large, 40), Ok(()));
}

/// A large message that waits is admitted when small ones that need no pages have left, and others do not take its memory.
#[test]
fn slots_that_become_free_are_claimed_for_a_large_body() {
    let mut pool = pool_of_extents(64);
    let (all, _) = fill(&mut pool, 0);
    let mut all = std::collections::VecDeque::from(all);
    pool.release(all.pop_front().unwrap());
    pool.release(all.pop_front().unwrap());
    pool.lift_hold();
    let large = pool.begin("", b"q", Share::Reserve).unwrap();
    assert_eq!(reserve(&mut pool, large, 40), Err(PoolFull::Memory));
    let mut turns = 0;
    while reserve(&mut pool, large, 40).is_err() {
        turns += 1;
        pool.release(all.pop_front().expect("it is admitted after one turnover"));
        if turns % 2 == 0
            && let Ok(id) = pool.begin("", b"q", Share::Ordinary)
        {
            all.push_back(id);
        }
        pool.lift_hold();
    }
}

/// Definitions have taken so much that a large message does not fit even with all others gone. It waits, and the memory that
/// others free stays for them.
#[test]
fn a_message_that_cannot_fit_claims_no_memory() {
    let memory = Memory::new(256 + COMMAND_EXTENTS, [0; 3]);
    let limits =
        MessageLimits { messages_max: 1 << 20, body_bytes_max: 1 << 30, assembly_bytes_max: 1 << 30 };
    let mut pool = Messages::in_memory(limits, &memory);
    let mut definitions = memory.account(Class::Definitions, 0);
    assert!(definitions.take(160));
    let large = pool.begin("", b"q", Share::Ordinary).unwrap();
    assert_eq!(reserve(&mut pool, large, 120), Err(PoolFull::Memory));
    for _ in 0..200 {
        let id = pool.begin("", b"q", Share::Ordinary).unwrap();
        assert_eq!(reserve(&mut pool, id, 4), Ok(()));
        pool.release(id);
    }
    definitions.give(160);
    assert_eq!(reserve(&mut pool, large, 120), Ok(()));
}

/// Whatever is refused, nothing is half done, and the pools never hold more extents than the memory has.
#[test]
fn a_memory_of_few_extents_refuses_and_changes_nothing() {
    let shares = [Share::Ordinary, Share::Transaction, Share::Reserve, Share::ReadBack, Share::DeadLetter];
    for extents in 2 * POOL_EXTENTS..2 * POOL_EXTENTS + 40 {
        let mut pool = pool_of_extents(extents);
        let mut random = super::super::random(extents as u64);
        let mut alive: Vec<(MessageId, usize)> = Vec::new();
        let mut refused = 0;
        for _ in 0..4_000 {
            let (share, bytes) = (shares[random(5)], random(3) * random(9_000));
            let before = (pool.messages_used(), pool.body_bytes_used());
            if random(5) < 2 && !alive.is_empty() {
                let (id, bytes) = alive.swap_remove(random(alive.len()));
                assert!(body(&pool, id, 0).iter().all(|byte| *byte == bytes as u8));
                pool.release(id);
                continue;
            }
            match pool.begin("amq.topic", &vec![b'k'; random(256)], share) {
                Ok(id) => {
                    let content = pool.reserve_content(id, b"p", MessageFlags::NONE, bytes as u32, share);
                    if content.is_ok() {
                        pool.append_body(id, &vec![bytes as u8; bytes]);
                        pool.finish(id);
                        alive.push((id, bytes));
                    } else {
                        refused += 1;
                        pool.discard(id);
                        assert_eq!((pool.messages_used(), pool.body_bytes_used()), before);
                    }
                }
                Err(_) => {
                    refused += 1;
                    assert_eq!((pool.messages_used(), pool.body_bytes_used()), before);
                }
            }
            pool.lift_hold();
            assert!(held_extents(&pool) <= extents);
            if random(100) == 0 {
                while !pool.trim() {}
            }
        }
        assert!(refused > 0, "{extents} extents");
        alive.into_iter().for_each(|(id, _)| pool.release(id));
        while !pool.trim() {}
        assert_eq!(
            (held_extents(&pool), pool.messages_used(), pool.bytes_free()),
            (0, 0, extents * EXTENT_BYTES)
        );
    }
}

#[test]
fn no_share_gets_less_than_ordinary_publishers_in_a_memory_of_few_extents() {
    for extents in 2..40 {
        for pages_used in 0..extents * PAGES_PER_EXTENT {
            let mut pool = pool_of_extents(extents);
            for _ in 0..pages_used {
                let Ok(id) = pool.begin("", b"q", Share::DeadLetter) else { break };
                let bytes = PAGE_BYTES as u32;
                if pool.reserve_content(id, b"", MessageFlags::NONE, bytes, Share::DeadLetter).is_err() {
                    break;
                }
            }
            let mut is_admitted = |pages: usize, share| {
                pool.lift_hold();
                let Ok(id) = pool.begin("", b"q", share) else { return false };
                let bytes = (pages * PAGE_BYTES) as u32;
                let reserved = pool.reserve_content(id, b"", MessageFlags::NONE, bytes, share);
                pool.discard(id);
                reserved.is_ok()
            };
            for pages in [1, 2, 5, 12] {
                let is_ordinary_admitted = is_admitted(pages, Share::Ordinary);
                for share in [Share::Transaction, Share::Reserve] {
                    let is_too_few = is_ordinary_admitted && !is_admitted(pages, share);
                    assert!(!is_too_few, "{extents} extents, {pages_used} pages used, {pages} for {share:?}");
                }
            }
        }
    }
}

/// The block for long names takes the last extent, and no slot is left: the block is given back.
#[test]
fn a_message_that_gets_only_one_of_two_extents_changes_nothing() {
    let mut pool = pool_of_extents(2 * POOL_EXTENTS + 1);
    let first = pool.begin("", b"q", Share::DeadLetter).unwrap();
    let body_len = (POOL_EXTENTS * PAGES_PER_EXTENT * PAGE_BYTES) as u32;
    let slots = POOL_EXTENTS * SLOTS_PER_EXTENT;
    pool.reserve_whole(first, &[], MessageFlags::NONE, body_len, Share::DeadLetter).unwrap();
    while pool.messages_used() < slots {
        pool.begin("", b"q", Share::DeadLetter).unwrap();
    }
    let before = pool.body_bytes_used();
    assert_eq!(pool.begin("amq.topic", &[b'k'; 250], Share::DeadLetter), Err(PoolFull::Memory));
    assert_eq!((pool.messages_used(), pool.body_bytes_used()), (slots, before));
}
