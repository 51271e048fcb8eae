// amqplib of npm, the base of Node-RED's AMQP nodes: publishes with confirms, consumes with a prefetch, and
// postpones messages with a queue that has a time to live and dead-letters back.
'use strict';
const amqp = require('amqplib');
const fs = require('fs');

const pause = (ms) => new Promise((over) => setTimeout(over, ms));

async function declare(channel) {
  await channel.assertQueue('jobs.later',
    { durable: true, messageTtl: 300, deadLetterExchange: '', deadLetterRoutingKey: 'jobs' });
  await channel.assertQueue('jobs',
    { durable: true, maxPriority: 5, deadLetterExchange: '', deadLetterRoutingKey: 'jobs.later' });
}

async function again(what) {
  for (;;) {
    try {
      return await what();
    } catch (why) {
      console.log('again:', why.message);
      await pause(200);
    }
  }
}

async function connect() {
  const connection = await amqp.connect(`amqp://guest:guest@127.0.0.1:${process.env.AMQP_PORT}/%2F?heartbeat=10`);
  const gone = new Promise((_, fail) => {
    connection.on('error', fail);
    connection.on('close', () => fail(new Error('closed')));
  });
  gone.catch(() => {});
  return { connection, gone };
}

async function publish(first, end) {
  for (let from = first; from < end; from += 10) {
    await again(async () => {
      const { connection, gone } = await connect();
      const channel = await connection.createConfirmChannel();
      channel.on('error', () => {});
      await declare(channel);
      for (let number = from; number < from + 10; number += 1) {
        channel.publish('', 'jobs', Buffer.from(String(number)), { persistent: true, priority: number % 5 });
      }
      await Promise.race([channel.waitForConfirms(), gone]);
      await connection.close();
    });
  }
  console.log('ok');
}

async function work() {
  const { connection, gone } = await connect();
  const channel = await connection.createChannel();
  channel.on('error', () => {});
  await declare(channel);
  await channel.prefetch(5);
  let turn = Promise.resolve();
  await channel.consume('jobs', (message) => {
    turn = turn.then(async () => {
      const number = Number(message.content.toString());
      const deaths = message.properties.headers['x-death'];
      if (number % 10 === 9 && !deaths) {
        channel.nack(message, false, false);
        return;
      }
      if (number % 10 === 9 && deaths.map((death) => death.reason).sort().join() !== 'expired,rejected') {
        console.log('wrong deaths', JSON.stringify(deaths));
        process.exit(1);
      }
      fs.appendFileSync(process.env.LEDGER, `${number} ${message.fields.redelivered ? 'True' : 'False'}\n`);
      await pause(20);
      channel.ack(message);
    }).catch(() => {});
  });
  console.log('worker is ready');
  await gone;
}

if (process.argv[2] === 'work') {
  again(work);
} else {
  publish(Number(process.argv[3]), Number(process.argv[4]));
}
