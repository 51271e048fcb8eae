//! Computes how many of ten thousand devices reconnect in each second after an outage of their upstream, with
//! the back-off of bridges.
//!
//! Pauses come from `Backoff` itself and random numbers from a seed, so the result is always the same. The
//! guide shows it in a picture, which `LEVERET_DRAW=1` draws again.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use leveret_bridge::Backoff;
use leveret_core::time::Now;

use leveret_test_support::random::Random;

const DEVICES: usize = 10_000;
/// Default of `reconnect_max` of bridges, in milliseconds.
const RECONNECT_MAX_MS: u64 = 300_000;
const MINUTE_MS: u64 = 60_000;
const PICTURE: &str = "systemd/guide/fleet.svg";

/// Returns the connection attempts in each second since all devices lost their upstream. The first attempt
/// after the outage succeeds, and is the last of its device.
fn attempts(outage_ms: u64, mut chance: impl FnMut(Backoff) -> u64) -> Vec<usize> {
    let began = Now::from_ms(MINUTE_MS);
    let mut seconds = vec![0; ((outage_ms + RECONNECT_MAX_MS) / 1_000 + 2) as usize];
    for _ in 0..DEVICES {
        let mut backoff = Backoff::default();
        let (mut now, mut since) = (began, Some(Now::from_ms(0)));
        loop {
            let drawn = chance(backoff);
            let pause_ms = backoff.fail(now, since.take(), RECONNECT_MAX_MS, drawn).ms_left(now);
            now = Now::from_ms(now.as_ms() + pause_ms.expect("it is tried again"));
            let at_ms = now.ms_since(began);
            seconds[(at_ms / 1_000) as usize] += 1;
            if at_ms >= outage_ms {
                break;
            }
        }
    }
    seconds
}

/// Uses random numbers like a broker.
fn by_chance(outage_ms: u64) -> Vec<usize> {
    let mut random = Random::new(10_000);
    attempts(outage_ms, move |_| random.below(u64::MAX))
}

/// Uses the longest pause each time: 1, 2, 4 s and so on.
fn without_jitter(outage_ms: u64) -> Vec<usize> {
    attempts(outage_ms, |backoff| (1_000 << backoff.failures().min(20)).min(RECONNECT_MAX_MS))
}

/// Returns the highest number of attempts per second after the outage.
fn most_after(seconds: &[usize], outage_ms: u64) -> usize {
    seconds[(outage_ms / 1_000) as usize..].iter().copied().max().expect("there are seconds")
}

/// Returns the number of attempts per second up to which there is no herd.
///
/// It is three times the rate of attempts that are spread evenly over the outage, or over the longest pause
/// if the outage was longer.
const fn no_herd(outage_ms: u64) -> usize {
    let span_ms = if outage_ms < RECONNECT_MAX_MS { outage_ms } else { RECONNECT_MAX_MS };
    3 * DEVICES * 1_000 / span_ms as usize
}

#[test]
fn a_fleet_does_not_reconnect_all_at_once() {
    for minutes in [1, 5, 10, 60, 1_440] {
        let outage_ms = minutes * MINUTE_MS;
        let seconds = by_chance(outage_ms);
        let after: usize = seconds[(outage_ms / 1_000) as usize..].iter().sum();
        assert_eq!(after, DEVICES, "after {minutes} min each is back, within the longest pause");
        let most = most_after(&seconds, outage_ms);
        println!("{minutes} min: {most} in a second after the return, of {} allowed", no_herd(outage_ms));
        assert!(most <= no_herd(outage_ms), "after {minutes} min {most} come in a second");
        let all_at_once = most_after(&without_jitter(outage_ms), outage_ms);
        assert_eq!(all_at_once, DEVICES, "without jitter they would, and this would see it");
    }
}

#[test]
fn the_picture_in_the_guide_is_current() {
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join(PICTURE);
    let drawn = draw();
    if std::env::var_os("LEVERET_DRAW").is_some() {
        fs::write(&picture, &drawn).expect("it can be written");
    }
    let there = fs::read_to_string(&picture).unwrap_or_default();
    assert!(there == drawn, "{PICTURE} is not what comes out now: LEVERET_DRAW=1 draws it anew");
}

// ---- the picture

const OUTAGE_MS: u64 = 60 * MINUTE_MS;
/// Seconds shown before and after the return, and maximum number of attempts; one point per second.
const BEFORE_S: usize = 120;
const AFTER_S: usize = 330;
const TOP: usize = 125;
/// The origin of the axes, and points per attempt.
const LEFT: usize = 45;
const FLOOR: usize = 275;
const POINTS: usize = 2;
const HEAD: &str = r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 510 325"
 font-family="sans-serif" font-size="11">
<title>10,000 devices connect again after an hour</title>
<rect width="510" height="325" fill="white"/>
"#;

/// Draws a line between two points, with its text.
fn mark(picture: &mut String, (from, to): ((usize, usize), (usize, usize)), at: (usize, usize), text: &str) {
    let ((x, y), (right, bottom)) = (from, to);
    let line = format_args!(r#"<path d="M{x} {y}L{right} {bottom}" stroke="silver"/>"#);
    writeln!(picture, "{line}\n<text x=\"{}\" y=\"{}\">{text}</text>", at.0, at.1)
        .expect("a string takes it");
}

fn draw() -> String {
    let returns = (OUTAGE_MS / 1_000) as usize;
    let shown = &by_chance(OUTAGE_MS)[returns - BEFORE_S..];
    let (right, zero) = (LEFT + BEFORE_S + AFTER_S, LEFT + BEFORE_S);
    let mut picture = String::from(HEAD);
    for attempts in (0..=TOP).step_by(25) {
        let y = FLOOR - attempts * POINTS;
        mark(&mut picture, ((LEFT, y), (right, y)), (15, y + 4), &attempts.to_string());
    }
    for minute in 0..=5 {
        let x = zero + minute * 60;
        mark(&mut picture, ((x, FLOOR), (x, FLOOR + 5)), (x - 3, FLOOR + 18), &minute.to_string());
    }
    let alone = "without chance: 10,000 in one second";
    mark(&mut picture, ((zero, FLOOR - TOP * POINTS), (zero, FLOOR)), (zero + 5, 40), alone);
    picture.push_str("<text x=\"5\" y=\"15\">attempts in a second</text>\n");
    picture.push_str("<text x=\"165\" y=\"312\">minutes since the upstream is back</text>\n");
    picture.push_str("<polyline fill=\"none\" stroke=\"navy\" points=\"");
    for (second, attempts) in shown.iter().take(BEFORE_S + AFTER_S).enumerate() {
        let end = if second % 12 == 0 { '\n' } else { ' ' };
        write!(picture, "{end}{},{}", LEFT + second, FLOOR - attempts * POINTS).expect("a string takes it");
    }
    picture.push_str("\n\"/>\n</svg>\n");
    picture
}
