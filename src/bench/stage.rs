//! One run: everybody connects, everybody starts, everybody ends, and the count is right or it is an error.
//!
//! Always true: when one thread fails all others are cut loose, so a run ends soon after its first trouble,
//! and the trouble reported is the one that came first.

use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use super::consume::{Consumed, Consumer};
use super::error::BenchError;
use super::histogram::Histogram;
use super::link::{Link, cut};
use super::options::Options;
use super::plan::Plan;
use super::process::CpuTime;
use super::publish::{Published, Publisher};
use super::run::Run;
use super::url::Url;

/// What a stage measured.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) published: u64,
    /// Until the broker had taken the last message, or confirmed it.
    pub(super) publish_time: Duration,
    pub(super) delivered: u64,
    /// Until the last message was received.
    pub(super) delivery_time: Duration,
    /// From being sent to being received; empty unless sent at a rate.
    pub(super) latency: Histogram,
    /// From being written to being confirmed; empty without confirms.
    pub(super) confirm_times: Histogram,
    pub(super) broker_cpu: Option<CpuTime>,
    pub(super) client_cpu: Option<CpuTime>,
}

/// Everybody who takes part.
#[derive(Debug)]
struct Cast {
    publishers: Vec<Publisher>,
    consumers: Vec<Consumer>,
    /// Of all of them.
    sockets: Vec<TcpStream>,
}

/// A publisher or consumer has ended.
enum Ended {
    Publisher(u16, Published),
    Consumer(Consumed),
    InTrouble(BenchError),
}

/// Runs it.
pub(super) fn play(
    options: &Options,
    plan: &Plan,
    url: &Url,
    broker: Option<u32>,
) -> Result<Outcome, BenchError> {
    let cast = Cast::connect(options, plan, url)?;
    let cpu = || (broker.and_then(CpuTime::of_process), CpuTime::of_process(std::process::id()));
    let (broker_before, client_before) = cpu();
    let ended = cast.perform(options, plan)?;
    let (broker_after, client_after) = cpu();
    ended.check(options, plan)?;
    let cost = |after: Option<CpuTime>, before: Option<CpuTime>| Some(after?.since(before?));
    Ok(Outcome {
        broker_cpu: cost(broker_after, broker_before),
        client_cpu: cost(client_after, client_before),
        ..ended.sum()
    })
}

impl Cast {
    fn connect(options: &Options, plan: &Plan, url: &Url) -> Result<Self, BenchError> {
        let consumer = |id| Consumer::connect(options, plan, Link::connect(url)?, id);
        let publisher = |id| Publisher::connect(options, plan, Link::connect(url)?, id);
        let consumers = (0..options.consumers).map(consumer).collect::<Result<Vec<_>, _>>()?;
        let publishers = (0..options.publishers).map(publisher).collect::<Result<Vec<_>, _>>()?;
        let sockets = consumers.iter().map(Consumer::socket).chain(publishers.iter().map(Publisher::socket));
        let sockets = sockets.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { publishers, consumers, sockets })
    }

    fn perform(self, options: &Options, plan: &Plan) -> Result<AllEnded, BenchError> {
        let Self { publishers, consumers, sockets } = self;
        let run = Run::new(options.queues);
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            for consumer in consumers {
                let (tell, run) = (tell.clone(), &run);
                scope.spawn(move || {
                    let end = consumer.run(run).and_then(|(consumed, link)| link.close().map(|()| consumed));
                    // If nobody is told, everybody has ended.
                    let _ = tell.send(end.map_or_else(Ended::InTrouble, Ended::Consumer));
                });
            }
            for (id, publisher) in (0..).zip(publishers) {
                let (tell, run) = (tell.clone(), &run);
                scope.spawn(move || {
                    let end = publisher.run(run).map(|published| Ended::Publisher(id, published));
                    let _ = tell.send(end.unwrap_or_else(Ended::InTrouble));
                });
            }
            drop(tell);
            AllEnded::gather(&told, &run, options, plan).inspect_err(|_| {
                run.give_up();
                sockets.iter().for_each(cut);
            })
        })
    }
}

/// What everybody did.
#[derive(Debug, Default)]
struct AllEnded {
    /// By publisher.
    published: Vec<u64>,
    publish_time: Duration,
    confirm_times: Histogram,
    consumed: Vec<Consumed>,
}

impl AllEnded {
    /// Hears everybody out, or until the first trouble.
    fn gather(told: &Receiver<Ended>, run: &Run, options: &Options, plan: &Plan) -> Result<Self, BenchError> {
        let mut all = Self { published: vec![0; usize::from(options.publishers)], ..Self::default() };
        let mut publishing = options.publishers;
        for ended in told {
            match ended {
                Ended::InTrouble(trouble) => return Err(trouble),
                Ended::Consumer(consumed) => all.consumed.push(consumed),
                Ended::Publisher(id, published) => {
                    all.published[usize::from(id)] = published.count;
                    all.publish_time = all.publish_time.max(published.ended);
                    all.confirm_times.add(&published.confirm_times);
                    publishing -= 1;
                    if publishing == 0 {
                        let queues = 0..options.queues;
                        queues.for_each(|q| run.set_due(q, plan.expected_in(q, &all.published)));
                    }
                }
            }
        }
        Ok(all)
    }

    /// Whether exactly what was published has been consumed.
    fn check(&self, options: &Options, plan: &Plan) -> Result<(), BenchError> {
        if options.consumers == 0 {
            return Ok(());
        }
        let expected: u64 = (0..options.queues).map(|queue| plan.expected_in(queue, &self.published)).sum();
        let received: u64 = self.consumed.iter().map(|consumed| consumed.count).sum();
        if received != expected {
            return Err(BenchError::Wrong(format!("{received} messages came where {expected} were due")));
        }
        if !options.is_numbered() {
            return Ok(());
        }
        for queue in 0..options.queues {
            for publisher in 0..options.publishers {
                self.check_lane(plan, publisher, queue)?;
            }
        }
        Ok(())
    }

    fn check_lane(&self, plan: &Plan, publisher: u16, queue: u32) -> Result<(), BenchError> {
        let Some(share) = plan.share(publisher, queue) else { return Ok(()) };
        let published = self.published[usize::from(publisher)];
        let publishers = self.published.len();
        let mut found = super::body::Tally::default();
        for consumed in &self.consumed {
            let at = consumed.queues.iter().position(|other| *other == queue);
            let tally = at.and_then(|at| consumed.tallies.get(at * publishers + usize::from(publisher)));
            found.add(tally.copied().unwrap_or_default());
        }
        // One consumer that saw every number in its place needs only be counted.
        let is_right = if plan.consumers_are_alone() {
            found.count == share.count(published)
        } else {
            found == share.tally(published)
        };
        if is_right {
            return Ok(());
        }
        let due = share.count(published);
        let name = plan.queue(queue);
        Err(BenchError::Wrong(format!(
            "of {due} messages of publisher {publisher} through {name}, {} came, and not each of them once",
            found.count
        )))
    }

    fn sum(self) -> Outcome {
        let mut outcome = Outcome {
            published: self.published.iter().sum(),
            publish_time: self.publish_time,
            confirm_times: self.confirm_times,
            ..Outcome::default()
        };
        for consumed in self.consumed {
            outcome.delivered += consumed.count;
            outcome.delivery_time = outcome.delivery_time.max(consumed.ended);
            outcome.latency.add(&consumed.times);
        }
        outcome
    }
}
