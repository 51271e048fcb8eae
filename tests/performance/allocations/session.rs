//! Nothing is allocated once a connection exists: publishes whole and in pieces, confirms, deliveries,
//! acknowledgements, replies and heartbeats.

use crate::counting::Count;
use leveret_amqp::Method;
use leveret_connection::{Context, InputStep};
use leveret_core::batch::Batch;
use leveret_core::command::{
    Answer, ChannelAnswer, ChannelCommand, ChannelId, Command, DefinitionAnswer, Delivery, DeliveryKind,
    GetAnswer, OpenChannel, Outbox, PublishAnswer, PublishCommand,
};
use leveret_core::mem::MessageId;
use leveret_test_support::single_connection::*;

static COUNT: Count = Count::new();

/// Deliveries of one message, as many as asked for.
struct Copies {
    message: MessageId,
    left: u64,
}

impl Outbox for Copies {
    fn peek(&self) -> Option<Delivery<'_>> {
        let kind = DeliveryKind::Deliver { consumer_tag: "ctag" };
        (self.left > 0).then_some(Delivery {
            sequence: 1000 - self.left,
            channel: 1,
            kind,
            delivery_tag: 1,
            redelivered: false,
            delivery_count: None,
            message: self.message,
            is_withdrawn: false,
            batch: Batch::NONE,
        })
    }

    fn advance(&mut self) {
        self.left -= 1;
    }
}

#[test]
fn nothing_is_allocated_while_messages_flow() {
    let mut environment = Environment::new(small_limits());
    let mut host = open_with(&mut environment, 10, &CAPABLE);
    host.run(&mut environment, &open_channel(1));
    host.run(&mut environment, &select(1));
    let mut script = Vec::new();
    for size in [0, 16, 300, 5000, 200_000] {
        script.extend(publish_in(1, "a.routing.key", false, &vec![1; size], 100_000));
        script.extend(method(1, &Method::BasicAck { delivery_tag: 1, multiple: false }));
        script.extend(method(1, &Method::BasicQos { prefetch_size: 0, prefetch_count: 9, global: false }));
        script.extend(get(1));
    }
    let large = message(&mut environment, &vec![7; 300_000]);
    let mut out = vec![0; 256 << 10];
    let mut handled = 0;

    COUNT.this_thread();
    let before = COUNT.allocations();
    for round in 0..50 {
        let portion = if round % 2 == 0 { script.len() } else { 1 + round * 97 };
        let (mut end, mut at) = (0, 0);
        while at < script.len() {
            end = (end + portion).min(script.len());
            loop {
                let (mut context, names) = environment.context_and_names();
                match host.connection.next(&mut context, names, &script[..end], &mut at) {
                    InputStep::Command(command) => {
                        handled += 1;
                        let answer = answer(&mut context, command);
                        host.connection.answer(&mut context, Ok(answer), 0, leveret_core::batch::Batch::NONE);
                    }
                    InputStep::NeedMore => break,
                    InputStep::Suspended(_) | InputStep::Finished => {
                        end -= portion.min(end - at);
                        break;
                    }
                }
            }
            environment.now = leveret_core::time::Now::from_ms(environment.now.as_ms() + 1000);
            let mut context = environment.context();
            host.connection.handle_timeout(&mut context);
            let mut outbox = Copies { message: large, left: 3 };
            host.connection.fill(&mut context, &mut out, &mut outbox);
        }
    }
    assert_eq!(COUNT.allocations() - before, 0);
    assert_eq!(handled, 50 * 20);
}

fn answer(context: &mut Context<'_>, command: Command<'_>) -> Answer {
    match command {
        Command::Publish(_, PublishCommand::Publish { message, .. }) => {
            context.messages.release(message);
            Answer::Publish(PublishAnswer::Published)
        }
        Command::Login(_) => Answer::LoggedIn,
        Command::OpenVhost(_) => Answer::OpenVhost,
        Command::OpenChannel(OpenChannel { number }) => {
            Answer::OpenChannel(ChannelId::from_index(number.into()))
        }
        Command::Get(..) => Answer::Get(GetAnswer::Empty),
        Command::Channel(_, ChannelCommand::ConfirmSelect) => {
            Answer::Channel(ChannelAnswer::ConfirmsSelected)
        }
        Command::Channel(..) => Answer::Channel(ChannelAnswer::Done),
        Command::Definition(..) => Answer::Definition(DefinitionAnswer::Done),
        Command::Publish(..) | Command::OpenSession(_) | Command::Mqtt(..) => panic!("{command:?}"),
    }
}
