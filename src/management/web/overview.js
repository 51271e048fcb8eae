// The overview: totals, alarms, and ten minutes of messages, rates, memory, disk and flash.

import { h, session, count, counted, bytes, rate, byteRate, span, link, prose, ageOf } from './kit.js';
import { card, chart, facts, resourceBars, state, table } from './widgets.js';

/** The numbers of ready and unacknowledged messages of a queue, or of all. */
export const DEPTHS = [{ name: 'ready', label: 'Ready' }, { name: 'unacknowledged', label: 'Unacknowledged' }];

const FLOWS = [
  { name: 'publish', label: 'Published' }, { name: 'deliver_get', label: 'Delivered' },
  { name: 'ack', label: 'Acknowledged' }, { name: 'redeliver', label: 'Redelivered' },
];
const COUNTERS = ['publish', 'confirm', 'deliver_get', 'redeliver', 'ack', 'written'];
const SLOTS_MAX = 121;
// The broker needs as many samples to say that a queue grows.
const GROWTH_SAMPLES = 5;

let past = [];
let stepMs = 5000;

/** The sums of a list of differences. */
function sums(differences) {
  let sum = 0;
  return differences.map((difference) => { sum += difference; return sum; });
}

/** Append the samples of a status to the history. `mergeHistory.last` is the slot of the newest one, `at` its time. */
export function mergeHistory({ history, totals }) {
  if (!history) return;
  const isNew = history.last !== mergeHistory.last;
  const names = Object.keys(history).filter((name) => Array.isArray(history[name]));
  const lists = Object.fromEntries(names.map((name) => [name, sums(history[name])]));
  const length = Math.max(0, ...names.map((name) => history[name].length));
  const isRestarted = history.last < mergeHistory.last || history.last - length > mergeHistory.last;
  if (isRestarted) past = [];
  stepMs = history.step_ms;
  for (let at = 0; at < length; at += 1) {
    const slot = history.last - length + 1 + at;
    if (!isRestarted && past.length && slot <= past.at(-1).slot) continue;
    past.push({ slot, values: Object.fromEntries(names.map((name) => [name, lists[name][at]])) });
  }
  past = past.slice(-SLOTS_MAX);
  mergeHistory.last = history.last;
  const [before, newest] = past.slice(-2).map(({ values }) => values.ready);
  if (isNew) mergeHistory.at = Date.now() - ageOf(totals?.messages_ready, newest, before);
}
mergeHistory.last = 0;

/** The history with rates instead of counters, oldest first. */
function samples() {
  const end = mergeHistory.at || Date.now();
  return past.map(({ slot, values }, at) => {
    const before = past[at - 1]?.slot === slot - 1 ? past[at - 1].values : null;
    const rates = COUNTERS.map((name) => [name, before && values[name] >= before[name]
      ? ((values[name] - before[name]) * 1000) / stepMs : null]);
    return { at: end - (mergeHistory.last - slot) * stepMs, values: { ...values, ...Object.fromEntries(rates) } };
  });
}

// ---- alarms ----

// An alarm's text says what to do; its first word determines the page that helps.
const LONGEST = ['queues?sort=message_bytes&down=1', 'The largest queues'];
const BRIDGES = ['bridges', 'The bridge'];
const WHERE = { memory: LONGEST, disk: LONGEST, room: LONGEST, store: ['device', 'The device'], parked: BRIDGES,
  outage: BRIDGES, budget: BRIDGES, held: BRIDGES, rule: BRIDGES, wear: ['device', 'The device'],
  sessions: ['mqtt', 'The MQTT sessions'] };

/** The alarms of this broker. */
export const alarmsOf = (ctx) => (ctx.status?.alarms || []).map(String);

/** The queue that an alarm names, and its virtual host. */
const namedIn = (text) => (text.match(/queue '(.+?)' \(virtual host '(.+?)'\)/) || []).slice(1);

/** The alarms that name a queue; null if there are none. */
export function alarmsAbout(ctx, vhost, queue) {
  const found = alarmsOf(ctx).filter((text) => namedIn(text)[0] === queue && namedIn(text)[1] === vhost);
  return found.length ? alarmItems(found) : null;
}

/** Alarms with links to the pages that help. */
export const alarmItems = (texts) => h('ul', { class: 'alarms' }, texts.map((text) => {
  const name = text.split(':')[0];
  const [where, label] = Object.hasOwn(WHERE, name) ? WHERE[name] : [];
  const [queue, vhost] = namedIn(text);
  // The cause is before the first semicolon; figures and the remedy follow.
  const end = text.includes(';') ? text.indexOf(';') + 1 : text.length;
  return h('li', { key: text, title: `The guide explains "${name}" in its chapter on troubleshooting.` },
    h('span', {}, h('b', {}, h('span', { 'aria-hidden': 'true' }, '▲ '), prose(text.slice(0, end))),
      prose(text.slice(end))),
    h('span', { class: 'links' }, queue ? link('queue', vhost, queue) : null,
      where ? h('a', { href: `#/${where}` }, label) : null));
}));

/** The alarms' texts, with links to the pages that help. */
export function alarmList(ctx) {
  const found = alarmsOf(ctx);
  if (!ctx.status) return h('p', { class: 'empty-note' }, 'The alarms are not known.');
  if (!found.length) return h('p', { class: 'empty-note' }, 'No alarms.');
  return alarmItems(found);
}

/** The queues that grow, and the bridges: what an engineer looks at although there is no alarm. */
function watched({ growing = [], growing_count: all = 0, bridges = [] }) {
  const names = [...new Set(bridges.map(({ name }) => name))];
  return [
    growing.length ? h('ul', { class: 'plain' }, growing.map((row) => h('li', { key: `${row.vhost}\n${row.name}` },
      h('b', {}, link('queue', row.vhost, row.name)), ` grows by ${rate(row.rate)}: ${counted(row.messages,
        'messages')}${row.unacknowledged ? `, of them ${count(row.unacknowledged)} unacknowledged` : ''}, `,
      row.consumers ? counted(row.consumers, 'consumers') : state('no consumer')))) : h('p', {
      class: 'empty-note' }, past.length < GROWTH_SAMPLES ? 'Growing queues are known 20 s after the start.'
      : 'No queue grew in the last minute.'),
    all > growing.length ? h('p', {}, h('a', { href: '#/queues?sort=messages_details.rate&down=1' },
      `${counted(all - growing.length, 'more queues')} grow${all - growing.length === 1 ? 's' : ''}`)) : null,
    names.map((name) => h('p', {}, h('a', { href: '#/bridges' }, `Bridge ${name}`), ': ',
      bridges.filter((row) => row.name === name).map((row) => [row.direction === 'forward' ? 'to the upstream '
        : 'from the upstream ', state(row.state), ' ']))),
  ];
}

/** How long the flash lasts, in words. */
export function lifetime(flash) {
  if (flash.endurance === null || flash.endurance === undefined) return 'not known: flash_endurance is not set';
  if (!Number.isFinite(flash.years_left)) return 'known after an hour';
  return flash.years_left > 100 ? 'more than 100 years' : `${flash.years_left} years`;
}

export const overviewView = {
  hasHistory: true,
  title: () => 'Overview',
  load: async () => null,
  draw(ctx) {
    const status = ctx.status || {};
    const { memory, disk, flash } = status;
    const totals = status.totals || ctx.overview.object_totals || {};
    const all = samples();
    // The figures of this poll end the lines, so that a chart and a tile show the same.
    const live = [...all, { at: Date.now(), values: { ready: totals.messages_ready,
      unacknowledged: totals.messages_unacknowledged, memory: memory?.used, log: disk?.log, live: disk?.live } }];
    const has = (name) => all.some(({ values }) => Number.isFinite(values[name]));
    const uptime = Number.isFinite(status.uptime_min) ? status.uptime_min * 60000 : null;
    return [
      h('div', { class: 'tiles' },
        [['queues', 'Queues', totals.queues], ['connections', 'Connections', totals.connections],
          ['channels', 'Channels', totals.channels], ['consumers', 'Consumers', totals.consumers],
          ['queues?sort=messages_ready&down=1', 'Ready', totals.messages_ready],
          ['queues?sort=messages_unacknowledged&down=1', 'Unacked', totals.messages_unacknowledged],
          ['exchanges', 'Exchanges', totals.exchanges]].map(
          ([to, label, number]) => h('a', { class: 'tile', href: `#/${to}` }, h('b', {}, count(number)),
            h('span', {}, label)))),
      card('Alarms', alarmList(ctx), null, true),
      status.growing ? card('Growing queues and bridges', watched(status), null, true) : null,
      h('div', { class: 'cards' },
        has('ready') ? card('Queued messages', chart({ title: 'Queued messages', samples: live, series: DEPTHS,
          format: count })) : null,
        has('publish') ? card('Message rates', chart({ title: 'Message rates', samples: all, series: FLOWS,
          format: rate })) : null,
        memory ? card('Memory and disk', resourceBars(status), h('a', { href: '#/device' }, 'More')) : null,
        card('Broker', facts([
          ['Version', `Leveret ${ctx.overview.leveret_version || ''}`],
          ['Compatible with', ctx.overview.rabbitmq_version && `RabbitMQ ${ctx.overview.rabbitmq_version}`],
          ['Node', ctx.overview.node],
          ['Cluster name', ctx.overview.cluster_name === ctx.overview.node ? null : ctx.overview.cluster_name],
          ['Up for', uptime === null ? null : uptime ? span(uptime) : 'less than 1 min'],
          ['Written to flash', flash && bytes(flash.written)],
          ['Per day', flash && (Number.isFinite(flash.per_day) ? bytes(flash.per_day) : 'known after an hour')],
          ['Flash lasts', flash && lifetime(flash)]])),
        has('memory') ? card('Memory', chart({ title: 'Memory', samples: live,
          series: [{ name: 'memory', label: 'Used' }], format: bytes, limit: memory?.limit })) : null,
        has('log') && disk ? card('Disk', chart({ title: 'Disk', samples: live,
          series: [{ name: 'log', label: 'Log' }, { name: 'live', label: 'Messages' }], format: bytes,
          limit: disk.log > disk.limit / 20 ? disk.limit : 0 })) : null,
        has('written') ? card('Written to flash', chart({ title: 'Written to flash', samples: all,
          series: [{ name: 'written', label: 'Written' }], format: byteRate })) : null,
        session.monitors() && ctx.overview.listeners ? card('Listeners', table({ caption: 'Listeners',
          key: (row) => `${row.protocol} ${row.ip_address} ${row.port}`,
          rows: ctx.overview.listeners.filter((row) => row.protocol !== 'clustering'), columns: [
            { label: 'Protocol', cell: (row) => row.protocol },
            { label: 'Address', brief: true, cell: (row) => row.ip_address },
            { label: 'Port', num: true, brief: true, cell: (row) => row.port }] })) : null),
    ];
  },
};
