<?php
// php-amqplib as Debian has it: publishes with confirms; works with a prefetch, and puts off what it cannot do now,
// by a queue with a time to live that dead-letters back (as Symfony's Messenger does).
require '/usr/share/php/PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

function open_channel()
{
    $port = (int) getenv('AMQP_PORT');
    $connection = new AMQPStreamConnection('127.0.0.1', $port, 'guest', 'guest', '/', false, 'AMQPLAIN', null, 'en_US',
        3.0, 30.0, null, true, 10);
    $channel = $connection->channel();
    $back = new AMQPTable(['x-dead-letter-exchange' => '', 'x-dead-letter-routing-key' => 'jobs',
        'x-message-ttl' => 300]);
    $channel->queue_declare('jobs.later', false, true, false, false, false, $back);
    $away = new AMQPTable(['x-dead-letter-exchange' => '', 'x-dead-letter-routing-key' => 'jobs.later']);
    $channel->queue_declare('jobs', false, true, false, false, false, $away);
    return $channel;
}

function again($what)
{
    while (true) {
        try {
            return $what();
        } catch (Exception $why) { // whatever it makes of a broker that has gone
            echo 'again: ', $why->getMessage(), "\n";
            usleep(200000);
        }
    }
}

function publish(int $first, int $end)
{
    for ($from = $first; $from < $end; $from += 10) {
        again(function () use ($from) {
            $channel = open_channel();
            $channel->confirm_select();
            $channel->set_nack_handler(function () {
                throw new Exception('nacked');
            });
            for ($number = $from; $number < $from + 10; $number++) {
                $channel->basic_publish(new AMQPMessage("$number", ['delivery_mode' => 2]), '', 'jobs');
            }
            $channel->wait_for_pending_acks(10);
            $channel->getConnection()->close();
        });
    }
    echo "ok\n";
}

function work()
{
    $channel = open_channel();
    $channel->basic_qos(0, 5, false);
    $channel->basic_consume('jobs', '', false, false, false, false, function ($message) {
        $number = (int) $message->getBody();
        $headers = $message->has('application_headers') ? $message->get('application_headers')->getNativeData() : [];
        if ($number % 10 == 9 && !isset($headers['x-death'])) {
            $message->nack();
            return;
        }
        if ($number % 10 == 9) {
            $reasons = array_column($headers['x-death'], 'reason');
            sort($reasons);
            if ($reasons != ['expired', 'rejected']) {
                throw new Error('deaths: ' . json_encode($headers));
            }
        }
        $mark = $message->isRedelivered() ? 'True' : 'False';
        file_put_contents(getenv('LEDGER'), "$number $mark\n", FILE_APPEND);
        usleep(20000);
        $message->ack();
    });
    echo "worker is ready\n";
    while ($channel->is_consuming()) {
        $channel->wait();
    }
}

$argv[1] == 'work' ? again('work') : publish((int) $argv[2], (int) $argv[3]);
