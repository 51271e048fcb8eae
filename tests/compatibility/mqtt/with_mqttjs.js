// A publisher and a subscriber with MQTT.js, which connect again by themselves. They print one line for each event:
// "subscribed", "acknowledged NUMBER", "received NUMBER" and "done".
//
//     node with_mqttjs.js ADDRESS VERSION QOS COUNT STEP
//
// It publishes one message after the other: the next one when the one before is acknowledged. After each STEP messages it
// waits for a line on standard input.
"use strict";

const mqtt = require("mqtt");

const [address, version, qos, count, step] = [process.argv[2], ...process.argv.slice(3).map(Number)];

function connect(clientId) {
  const options = {
    protocolVersion: version, clientId, clean: false, username: "guest", password: "guest", reconnectPeriod: 50,
    connectTimeout: 5000, resubscribe: false,
  };
  if (version === 5) {
    options.properties = { sessionExpiryInterval: 3600 };
  }
  const client = mqtt.connect(address, options);
  // Without a handler, a refused connection would end the program.
  client.on("error", () => {});
  return client;
}

const subscriber = connect("mqttjs-subscriber");
const publisher = connect("mqttjs-publisher");
const seen = new Set();
let acknowledged = 0;
let allowed = step;
let resume = () => {};

require("readline").createInterface({ input: process.stdin }).on("line", () => {
  allowed += step;
  resume();
});

function endIfDone() {
  if (seen.size === count && acknowledged === count) {
    console.log("done");
    publisher.end(false, {}, () => subscriber.end(false, {}, () => process.exit(0)));
  }
}

subscriber.on("message", (topic, payload, packet) => {
  console.log(`received ${payload} ${packet.qos} ${packet.dup}`);
  seen.add(String(payload));
  endIfDone();
});

function publish(number) {
  if (number === count) {
    return;
  }
  if (number >= allowed) {
    resume = () => {
      resume = () => {};
      publish(number);
    };
    return;
  }
  publisher.publish("mqttjs/numbers", String(number), { qos }, (error) => {
    if (error) {
      console.log(`failed ${number}: ${error}`);
      process.exit(1);
    }
    console.log(`acknowledged ${number}`);
    acknowledged += 1;
    publish(number + 1);
    endIfDone();
  });
}

subscriber.once("connect", () => subscriber.subscribe("mqttjs/#", { qos }, (error) => {
  console.log(error ? `failed: ${error}` : "subscribed");
  publish(0);
}));
