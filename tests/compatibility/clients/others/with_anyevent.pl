# AnyEvent::RabbitMQ as Debian has it: publishes in confirm mode, works with a prefetch, and answers what is asked.
use strict;
use warnings;
use AnyEvent;
use AnyEvent::RabbitMQ;
use IO::Handle;

STDOUT->autoflush(1);
AnyEvent::RabbitMQ->load_xml_spec();

# Does something with a channel until it sends to the condition variable; dies when the broker has gone.
sub with_channel {
    my ($what) = @_;
    my $over = AE::cv;
    my $gone = sub { $over->croak('gone: ' . (ref $_[0] || $_[0] || '')) };
    my $client = AnyEvent::RabbitMQ->new;
    $client->connect(
        host => '127.0.0.1', port => $ENV{AMQP_PORT}, user => 'guest', pass => 'guest', vhost => '/', timeout => 5,
        tune => { heartbeat => 10 },
        on_failure => $gone, on_close => $gone, on_read_failure => $gone,
        on_success => sub {
            shift->open_channel(
                on_failure => $gone, on_close => $gone,
                on_success => sub {
                    my $channel = shift;
                    $channel->declare_queue(queue => 'jobs', durable => 1, on_failure => $gone,
                        on_success => sub { $what->($channel, $over, $gone) });
                });
        });
    my $result = $over->recv;
    my $closed = AE::cv;
    $client->close(on_success => sub { $closed->send }, on_failure => sub { $closed->send });
    $closed->recv;
    return $result;
}

sub again {
    my ($what) = @_;
    while (1) {
        my $done = eval { with_channel($what); 1 };
        return if $done;
        print "again: $@";
        select(undef, undef, undef, 0.2);
    }
}

sub publish_ten {
    my ($from, $channel, $over, $gone) = @_;
    my $left = 10;
    $channel->confirm(on_failure => $gone, on_success => sub {
        for my $number ($from .. $from + 9) {
            $channel->publish(exchange => '', routing_key => 'jobs', body => "$number",
                header => { delivery_mode => 2 },
                on_ack => sub { $over->send if --$left == 0 }, on_nack => $gone, on_return => $gone);
        }
    });
}

sub work {
    my ($channel, $over, $gone) = @_;
    my @waiting;
    $channel->qos(prefetch_count => 5, on_failure => $gone, on_success => sub {
        $channel->consume(queue => 'jobs', no_ack => 0, on_failure => $gone, on_cancel => $gone,
            on_success => sub { print "worker is ready\n" },
            on_consume => sub {
                my $deliver = shift;
                my $frame = $deliver->{deliver}->method_frame;
                my $mark = $frame->redelivered ? 'True' : 'False';
                open my $ledger, '>>', $ENV{LEDGER} or die $!;
                print $ledger $deliver->{body}->to_raw_payload . " $mark\n";
                close $ledger;
                select(undef, undef, undef, 0.02);
                $channel->ack(delivery_tag => $frame->delivery_tag);
            });
    });
}

if ($ARGV[0] eq 'work') {
    again(\&work);
} else {
    for (my $from = $ARGV[1]; $from < $ARGV[2]; $from += 10) {
        my $first = $from;
        again(sub { publish_ten($first, @_) });
    }
    print "ok\n";
}
