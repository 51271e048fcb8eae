//! A connection behaves the same however the network splits its bytes: random scripts, split anywhere on
//! input, and written in any portions.
//!
//! A run follows from a seed, which a failure prints.

use std::collections::HashMap;

use leveret_amqp::{FrameKind, Method, Table, next_frame};
use leveret_connection::{Stage, Suspension};
use leveret_test_support::random::Random;
use leveret_test_support::single_connection::*;

const SEEDS: u64 = if cfg!(debug_assertions) { 40 } else { 400 };

/// Returns a random but valid script of a client on three channels.
fn script(random: &mut Random, acts: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for channel in 1..=3 {
        bytes.extend(open_channel(channel));
    }
    bytes.extend(method(1, &Method::ConfirmSelect { no_wait: false }));
    bytes.extend(method(2, &Method::ConfirmSelect { no_wait: true }));
    for _ in 0..acts {
        let channel = 1 + random.below(3) as u16;
        bytes.extend(act(random, channel));
    }
    bytes
}

fn act(random: &mut Random, channel: u16) -> Vec<u8> {
    let sizes = [0, 1, 5, 16, 91, 300, 4096, 20_000, 150_000];
    let choice = if random.below(8) == 0 { 9 } else { 6 };
    let size = sizes[random.below(choice) as usize];
    let body: Vec<u8> = (0..size).map(|at: usize| (at / 7) as u8 ^ channel as u8).collect();
    let piece = 1 + random.below((size as u64 + 1).min(131_064)) as usize;
    match random.below(12) {
        0 => method(channel, &Method::BasicQos { prefetch_size: 0, prefetch_count: 5, global: false }),
        1 => method(channel, &declare("a queue")),
        2 => method(channel, &Method::BasicAck { delivery_tag: 1, multiple: false }),
        3 => method(channel, &Method::BasicCancel { consumer_tag: "some tag", no_wait: false }),
        4 => publish_in(channel, "refuse", false, &body, piece),
        5 => publish_in(channel, "return", true, &body, piece),
        6 | 7 => publish_in(channel, "deliver", false, &body, piece),
        8 => get(channel),
        9 => frame(8, 0, b""),
        10 => {
            let consume = Method::BasicConsume {
                queue: "q",
                consumer_tag: "tag",
                no_local: false,
                no_ack: false,
                exclusive: false,
                no_wait: false,
                arguments: Table::EMPTY,
            };
            method(channel, &consume)
        }
        _ => publish_in(channel, "k", false, &body, piece),
    }
}

/// Feeds a script in portions, and lets the socket accept random amounts in between.
fn live(script: &[u8], random: &mut Random, portion: u64, appetite: u64) -> (Vec<String>, Vec<u8>) {
    let mut environment = Environment::new(small_limits());
    let mut host = open(&mut environment);
    host.out_bytes = 600 + random.below(70_000) as usize;
    let mut fed = 0;
    let mut suspended: Option<Suspension> = None;
    while fed < script.len() || suspended.is_some() {
        if suspended.is_none() {
            let take = (1 + random.below(portion) as usize).min(script.len() - fed);
            suspended = host.feed(&mut environment, &script[fed..fed + take]);
            fed += take;
        } else {
            suspended = host.feed(&mut environment, b"");
        }
        if suspended.is_some() || random.below(3) == 0 {
            host.flush_once(&mut environment, |filled| (random.below(appetite + 1) as usize).min(filled));
        }
    }
    while host.flush_once(&mut environment, |filled| (1 + random.below(appetite) as usize).min(filled)) > 0 {}
    let (log, output) = (core::mem::take(&mut host.rules.log), core::mem::take(&mut host.output));
    assert!(!host.connection.has_output() && !host.connection.has_remainder());
    host.end(&mut environment);
    (log, output)
}

/// Checks what any client may expect of any output.
fn check_output(mut bytes: &[u8]) {
    let mut content: HashMap<u16, u64> = HashMap::new();
    let mut returned: HashMap<u16, u64> = HashMap::new();
    let mut confirmed: HashMap<u16, u64> = HashMap::new();
    while !bytes.is_empty() {
        let frame = next_frame(bytes, 1 << 20).unwrap().expect("whole frames");
        bytes = &bytes[frame.input_len()..];
        let channel = frame.header.channel;
        match frame.header.kind().unwrap() {
            FrameKind::Method => {
                assert!(!content.contains_key(&channel), "a method inside a content of channel {channel}");
                match Method::parse(frame.payload).unwrap() {
                    Method::BasicDeliver { .. } | Method::BasicGetOk { .. } => {
                        content.insert(channel, u64::MAX);
                    }
                    Method::BasicReturn { .. } => {
                        content.insert(channel, u64::MAX);
                        *returned.entry(channel).or_default() += 1;
                    }
                    Method::BasicAck { delivery_tag, multiple }
                    | Method::BasicNack { delivery_tag, multiple, .. } => {
                        let told = confirmed.entry(channel).or_default();
                        assert!(delivery_tag > *told, "told twice");
                        assert!(multiple || delivery_tag == *told + 1, "a confirm is missing");
                        *told = delivery_tag;
                    }
                    _ => {}
                }
            }
            FrameKind::Header => {
                let len = u64::from_be_bytes(frame.payload[4..12].try_into().unwrap());
                assert_eq!(content.remove(&channel), Some(u64::MAX), "a header without a method");
                if len > 0 {
                    content.insert(channel, len);
                }
            }
            FrameKind::Body => {
                let left = content.remove(&channel).expect("a body without a header");
                assert!(left != u64::MAX, "a body before its header");
                let left = left.checked_sub(frame.payload.len() as u64).expect("no more than announced");
                if left > 0 {
                    content.insert(channel, left);
                }
            }
            FrameKind::Heartbeat => {}
        }
    }
    assert!(content.is_empty(), "every content is complete");
}

/// Returns the replies of one channel without confirms and deliveries, whose position may vary.
fn replies(bytes: &[u8], channel: u16) -> Vec<String> {
    let is_reply = |line: &String| {
        let prefix = format!("{channel} ");
        let asides = ["BasicAck", "BasicNack", "BasicDeliver", "BasicReturn", "BasicGetOk", "header", "body"];
        line.starts_with(&prefix) && !asides.iter().any(|aside| line.contains(aside))
    };
    show(bytes).into_iter().filter(is_reply).collect()
}

/// Returns the number of content bytes of one channel.
fn contents(bytes: &[u8], channel: u16) -> u64 {
    let mut sum = 0_u64;
    let mut rest = bytes;
    while !rest.is_empty() {
        let frame = next_frame(rest, 1 << 20).unwrap().unwrap();
        rest = &rest[frame.input_len()..];
        let is_method = frame.header.kind() == Some(FrameKind::Method);
        let is_confirm = is_method && matches!(frame.payload[3], 80 | 120);
        let is_content = !is_method || matches!(frame.payload[..4], [0, 60, 0, 50 | 60 | 71]);
        if frame.header.channel == channel && is_content && !is_confirm {
            sum = sum.wrapping_mul(31).wrapping_add(checksum(frame.payload));
        }
    }
    sum
}

/// Returns the highest confirmed number of a channel.
fn confirmed(bytes: &[u8], channel: u16) -> Option<u64> {
    let mut rest = bytes;
    let mut highest = None;
    while !rest.is_empty() {
        let frame = next_frame(rest, 1 << 20).unwrap().unwrap();
        rest = &rest[frame.input_len()..];
        if frame.header.channel == channel && frame.header.kind() == Some(FrameKind::Method) {
            match Method::parse(frame.payload).unwrap() {
                Method::BasicAck { delivery_tag, .. } | Method::BasicNack { delivery_tag, .. } => {
                    highest = Some(delivery_tag);
                }
                _ => {}
            }
        }
    }
    highest
}

#[test]
fn any_cuts_give_the_same_commands_and_a_sound_output() {
    for seed in 1..=SEEDS {
        let mut random = Random::new(seed);
        let script = script(&mut random, 40);
        let (log, output) = live(&script, &mut random, u64::MAX >> 1, u64::MAX >> 1);
        check_output(&output);
        let counts: Vec<usize> = (1..=3)
            .map(|channel| log.iter().filter(|line| line.starts_with(&format!("{channel} "))).count())
            .collect();
        for (portion, appetite) in [(1, 1 << 20), (50, 40), (3000, 3000), (100_000, 1), (7, 100_000)] {
            if appetite == 1 && output.len() > 100_000 {
                continue;
            }
            let (other_log, other_output) = live(&script, &mut random, portion, appetite);
            assert_eq!(log, other_log, "seed {seed}, portions of {portion}");
            check_output(&other_output);
            for channel in 1..=3 {
                assert_eq!(replies(&output, channel), replies(&other_output, channel), "seed {seed}");
                assert_eq!(contents(&output, channel), contents(&other_output, channel), "seed {seed}");
            }
            for channel in 1..=2 {
                let expected = counts[usize::from(channel) - 1] as u64;
                assert_eq!(confirmed(&other_output, channel).unwrap_or(0), expected, "seed {seed}");
            }
        }
    }
}

/// Returns the output without its confirms, and the confirms of each channel.
///
/// Which of two channels is confirmed first may depend on where a write was split.
fn apart(bytes: &[u8]) -> (Vec<u8>, HashMap<u16, Vec<u8>>) {
    let (mut others, mut confirms, mut rest) = (Vec::new(), HashMap::<u16, Vec<u8>>::new(), bytes);
    while !rest.is_empty() {
        let frame = next_frame(rest, 1 << 20).unwrap().unwrap();
        let (bytes, behind) = rest.split_at(frame.input_len());
        rest = behind;
        let is_method = frame.header.kind() == Some(FrameKind::Method);
        if is_method && matches!(frame.payload[..4], [0, 60, 0, 80 | 120]) {
            confirms.entry(frame.header.channel).or_default().extend(bytes);
        } else {
            others.extend(bytes);
        }
    }
    (others, confirms)
}

/// Everything is there before anything is written. Then the bytes themselves are equal.
#[test]
fn any_write_sizes_give_the_same_bytes() {
    for seed in 1..=SEEDS {
        let mut random = Random::new(seed ^ 0xD134_2543);
        let script = script(&mut random, 12);
        let mut expected = None;
        for (appetite, out_bytes) in
            [(u64::MAX >> 1, 8 << 20), (1 << 20, 600), (10, 700), (1000, 100_000), (100_000, 5000)]
        {
            let mut environment = Environment::new(small_limits());
            let mut host = open(&mut environment);
            host.rules.tells_counts = seed % 2 == 0;
            let suspended = host.feed(&mut environment, &script);
            host.connection.block(environment.now, false);
            host.later(&mut environment, 100);
            host.out_bytes = out_bytes;
            while host
                .flush_once(&mut environment, |filled| (random.below(appetite + 1) as usize).min(filled))
                > 0
            {}
            assert!(suspended.is_none() || suspended == Some(Suspension::ReplySpace));
            let output = core::mem::take(&mut host.output);
            check_output(&output);
            let sorted = apart(&output);
            let expected = expected.get_or_insert_with(|| sorted.clone());
            assert!(*expected == sorted, "seed {seed}, appetite {appetite}, pages of {out_bytes}");
            host.end(&mut environment);
        }
    }
}

/// A peer's bytes can do nothing worse than end its connection.
#[test]
fn random_bytes_end_connections_and_leave_the_pools_complete() {
    for seed in 1..=10 * SEEDS {
        let mut random = Random::new(seed ^ 0xA076_1D64);
        let mut environment = Environment::new(small_limits());
        let mut host = if random.below(4) == 0 { Host::new(&environment) } else { open(&mut environment) };
        let mut script = if matches!(host.connection.stage(), Stage::Open | Stage::Over) {
            script(&mut random, 6)
        } else {
            handshake(&CAPABLE, b"\0guest\0guest", 131_072, 60)
        };
        script.truncate(3000);
        for _ in 0..1 + random.below(6) {
            let at = random.below(script.len() as u64) as usize;
            match random.below(3) {
                0 => script[at] = random.below(256) as u8,
                1 => drop(script.remove(at)),
                _ => script.insert(at, random.below(256) as u8),
            }
        }
        for piece in script.chunks(1 + random.below(500) as usize) {
            host.feed(&mut environment, piece);
            host.flush_once(&mut environment, |filled| random.below(filled as u64 + 1) as usize);
        }
        for _ in 0..20 {
            if host.connection.deadline().ms_left(environment.now).is_none() {
                break;
            }
            host.pass_time(&mut environment);
            host.flush(&mut environment);
        }
        host.end(&mut environment);
    }
}
