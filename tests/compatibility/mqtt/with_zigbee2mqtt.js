// Zigbee2MQTT with a radio that is only simulated. Its database has devices of many vendors, so that it publishes their
// real definitions.
//
//     with_zigbee2mqtt PORT VERSION COUNT
//
// ZIGBEE2MQTT_DATA names its folder. It prints `started`, and after each line on standard input the retained messages that
// it has published, as one line of JSON: the payloads by topic. It ends with standard input.
"use strict";

const fs = require("fs");
const path = require("path");
const { EventEmitter } = require("events");

const [port, version, count] = process.argv.slice(2).map(Number);
const folder = process.env.ZIGBEE2MQTT_DATA;
const COORDINATOR = "0x00124b0000000000";

function address(number) {
  return `0x00158d${String(number).padStart(10, "0")}`;
}

// Models at equal distances in the list of all definitions, because neighbours are alike.
function models() {
  const all = require("zigbee-herdsman-converters/devices/index").default;
  const found = all.filter((definition) => definition.zigbeeModel && definition.zigbeeModel.length && definition.exposes);
  const step = Math.floor(found.length / count);
  return Array.from({ length: count }, (_, number) => found[number * step].zigbeeModel[0]);
}

function endpoint(inputs) {
  return {
    profId: 260, epId: 1, devId: 770, inClusterList: inputs, outClusterList: [25], clusters: {}, binds: [],
    configuredReportings: [], meta: {},
  };
}

function write() {
  const coordinator = {
    id: 1, type: "Coordinator", ieeeAddr: COORDINATOR, nwkAddr: 0, manufId: 0, epList: [1], endpoints: { 1: endpoint([0]) },
    interviewCompleted: true, meta: {}, lastSeen: null,
  };
  const devices = models().map((modelId, number) => ({
    id: number + 2, type: "EndDevice", ieeeAddr: address(number), nwkAddr: 4096 + number, manufId: 4447,
    manufName: "Vendor", powerSource: "Battery", modelId, epList: [1], endpoints: { 1: endpoint([0, 1, 3, 6, 8, 768, 1026]) },
    interviewCompleted: true, interviewState: "SUCCESSFUL", meta: { configured: 1 }, lastSeen: 1764345600000,
  }));
  const lines = [coordinator, ...devices].map((entry) => JSON.stringify(entry));
  fs.writeFileSync(path.join(folder, "database.db"), lines.join("\n"));
  const states = {};
  const named = {};
  devices.forEach(({ ieeeAddr }, number) => {
    states[ieeeAddr] = { battery: number, linkquality: 120, temperature: 21.5 };
    named[ieeeAddr] = { friendly_name: `Raum ${number}/Gerät`, retain: true };
  });
  fs.writeFileSync(path.join(folder, "state.json"), JSON.stringify(states));
  // JSON is YAML too.
  fs.writeFileSync(path.join(folder, "configuration.yaml"), JSON.stringify({
    version: 4, homeassistant: { enabled: true }, frontend: { enabled: false }, availability: { enabled: true },
    mqtt: { base_topic: "zigbee2mqtt", server: `mqtt://127.0.0.1:${port}`, user: "guest", password: "guest", version },
    serial: { port: "/dev/null", adapter: "zstack" }, devices: named,
    advanced: {
      log_output: ["console"], log_level: "warning", network_key: Array(16).fill(1), pan_id: 6754,
      ext_pan_id: Array(8).fill(221), channel: 11,
    },
  }));
}

class Radio extends EventEmitter {
  manufacturerID = 0;
  hasZdoMessageOverhead = false;
  async start() { return "resumed"; }
  async stop() {}
  async getCoordinatorIEEE() { return COORDINATOR; }
  async getCoordinatorVersion() { return { type: "zStack3x0", meta: { revision: 20250321 } }; }
  async getNetworkParameters() {
    return { panID: 6754, extendedPanID: "0xdddddddddddddddd", channel: 11, nwkUpdateID: 0 };
  }
  async supportsBackup() { return false; }
  async permitJoin() {}
  async sendZdo() { throw new Error("no device answers"); }
  async sendZclFrameToEndpoint() { throw new Error("no device answers"); }
  async sendZclFrameToGroup() {}
  async sendZclFrameToAll() {}
}

async function main() {
  if (!fs.existsSync(path.join(folder, "database.db"))) {
    write();
  }
  require("zigbee-herdsman/dist/adapter/adapter").Adapter.create = async () => new Radio();
  const { Controller } = require("zigbee2mqtt/dist/controller");
  const controller = new Controller(async () => {}, (code) => process.exit(code || 1));
  await controller.start();
  console.log("started");
  const input = require("readline").createInterface({ input: process.stdin });
  for await (const _ of input) {
    const retained = {};
    for (const [topic, { payload }] of Object.entries(controller.mqtt.retainedMessages)) {
      retained[topic] = payload;
    }
    console.log(`retained ${JSON.stringify(retained)}`);
  }
  process.exit(0);
}

main().catch((error) => {
  console.log(error);
  process.exit(1);
});
