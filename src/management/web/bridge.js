// Bridges: the device, its links and the upstream.

import {
  h, api, maybe, seg, count, counted, bytes, rate, byteRate, span, session, change, remember, samplesOf, button, link,
  prose, ageOf, say, explain,
} from './kit.js';
import {
  ask, bar, card, chart, facts, shapeOf, state, table, toneClass, toneOf,
} from './widgets.js';

const seconds = (number) => (Number.isFinite(number) ? span(number * 1000) : null);

/** Give an order to a bridge, after a confirmation: it stays in force after a restart. */
const order = (name, verb, path, text, danger) => ask({
  title: `${verb} the bridge ${name}?`, verb: verb.replace(/ of$/, ''), text, danger,
  run: () => change(`The order was given to the bridge ${name}.`, `leveret/bridges/${seg(name)}/${path}`, 'POST') });

function orderButtons({ name, links }) {
  if (!session.can('bridge-orders') || !session.is('administrator')) return null;
  const parked = parkedOf(links);
  const has = (word) => links.some((one) => one.state === word);
  const isHeld = links.some((one) => (one.rules || []).some((rule) => rule.state === 'held'));
  return h('span', { class: 'actions' },
    parked ? button('Retry parked…', `of ${name}`, () => order(name, 'Retry the parked messages of', 'retry',
      `${counted(parked, 'messages')} are sent to their targets again.`)) : null,
    isHeld && !has('paused') ? button('Try held rules…', `of ${name}`, () => order(name, 'Try the held rules of',
      'resume', 'The first message of each held rule is sent again now.'), 'main') : null,
    // A single attempt to connect does no harm, so it needs no confirmation.
    has('waiting') && !has('paused') ? button('Try now', name, () => change(`The bridge ${name} connects now.`,
      `leveret/bridges/${seg(name)}/resume`, 'POST').catch((failure) => say(explain(failure))), 'main') : null,
    has('resting') ? button('Connect…', name, () => order(name, 'Connect', 'resume',
      'It connects now, in both directions, and disconnects when nothing is left to move.')) : null,
    has('paused') ? button('Resume…', name, () => order(name, 'Resume', 'resume',
      'It connects now, in both directions.'), 'main')
      : button('Pause…', name, () => order(name, 'Pause', 'pause',
        'Messages in flight are settled first. Then nothing is '
        + 'moved until it is resumed, also after a restart.', true), 'danger'));
}

const parkedOf = (links) => Math.max(0, ...links.map((one) => one.parked || 0));

/** The state of a link in words. If some of its rules move nothing, their number is told. */
function stateWord(row) {
  const rules = row.rules || [];
  const held = rules.filter((rule) => rule.state === row.state).length;
  if (!['held', 'budget used', 'blocked'].includes(row.state) || held === rules.length) return row.state;
  return `${row.state}: ${held} of ${counted(rules.length, 'rules')}`;
}

/** The last error, unless the link has been connected since. */
function errorOf(row) {
  const isMended = Number.isFinite(row.up_for) && row.up_for < (row.last_error_ago ?? Infinity);
  return row.last_error && !isMended ? `${row.last_error} (${seconds(row.last_error_ago)} ago)` : null;
}

/** Messages and bytes per second of a link or a rule, from the last two samples. */
function flowOf(name) {
  const [before, now] = samplesOf(name).slice(-2);
  if (!now) return {};
  const ms = now.at - before.at;
  const per = (key) => (Number.isFinite(now.values[key]) && now.values[key] >= before.values[key]
    ? ((now.values[key] - before.values[key]) * 1000) / ms : null);
  return { messages: per('moved'), bytes: per('bytes') };
}

// The most queues of which the history of a backlog is requested.
const BACKLOG_QUEUES_MAX = 8;

const linkName = (row) => `bridge ${row.name} ${row.direction}`;
/** Where a rule publishes: a queue, or an exchange with a key. */
const targetOf = ({ to_exchange: exchange, to_key: key }) => (exchange === '' ? key : [exchange ?? 'its exchange',
  key ?? 'its key'].join(' / '));
const ruleName = (row, rule) => `${linkName(row)} ${rule.queue} ${targetOf(rule)}`;

/** Remember the backlog of the last ten minutes, from the broker's samples of the queues of a link's rules. */
async function rememberBacklog(row) {
  const sums = new Map();
  const queues = [...new Set((row.rules || []).map(({ queue }) => queue))].slice(0, BACKLOG_QUEUES_MAX);
  const found = await Promise.all(queues.map((queue) => maybe(`queues/${seg(row.vhost)}/${seg(queue)}`
    + '?columns=messages_ready_details&lengths_age=600&lengths_incr=5')));
  for (const { timestamp, sample } of found.flatMap((one) => one?.messages_ready_details?.samples || [])) {
    sums.set(timestamp, (sums.get(timestamp) || 0) + sample);
  }
  const times = [...sums.keys()].sort((one, other) => one - other);
  const end = Date.now() - ageOf(row.backlog, sums.get(times.at(-1)), sums.get(times.at(-2)));
  times.forEach((time) => remember(linkName(row), { backlog: sums.get(time) }, end - (times.at(-1) - time)));
}

export const bridgesView = {
  // Rates need a second sample.
  asksTwice: true,
  title: () => 'Bridge',
  async load() {
    if (!session.monitors()) return null;
    const rows = await api('leveret/bridges');
    const isNew = (row) => row.backlog !== null && !samplesOf(linkName(row)).length;
    await Promise.all(rows.filter(isNew).map(rememberBacklog));
    return rows;
  },
  draw(ctx, rows) {
    if (!rows) {
      return [h('p', { class: 'empty-note' }, 'This user may not see bridges: the tag monitoring is needed.')];
    }
    if (!rows.length) {
      return [h('p', { class: 'empty-note' }, 'No bridge is configured: this broker is linked to no other.')];
    }
    const byName = new Map();
    for (const row of rows) {
      // The bytes of this direction. `day_bytes` is the sum of both.
      const { sent = 0, received = 0 } = row.day_bytes_by_kind || {};
      remember(linkName(row), { backlog: row.backlog, moved: row.moved, bytes: sent + received });
      (row.rules || []).forEach((rule) => remember(ruleName(row, rule), { moved: rule.moved }));
      byName.set(row.name, [...(byName.get(row.name) || []), row]);
    }
    return [...byName].map(([name, links]) => card(name, [
      sketch(name, links, ctx),
      h('p', { class: 'muted' }, 'Upstream: ', h('code', {}, links[0].upstream),
        `. Virtual host here: ${links[0].vhost}.`),
      budgetBar(links[0]),
      h('div', { class: 'cards inner' }, parts(links)),
      ruleTable(name, links),
    ], orderButtons({ name, links }), true));
  },
};

/** The bytes of a bridge in both directions, beside its budget. */
function budgetBar({ day_bytes: today, day_bytes_max: most, yesterday_bytes: before }) {
  const past = before ? `, ${bytes(before)} yesterday` : '';
  if (!most) return facts([['Bytes today, both ways', `${bytes(today)}${past}`]]);
  return bar({ label: 'Bytes today, both ways', text: `${bytes(today)} of ${bytes(most)}${past}`, limit: most,
    over: today >= most, parts: [{ value: today, label: 'today' }] });
}

// ---- the drawing ----

/**
 * The device, the upstream and the links between them. Nothing is scaled: both ends are anchored at their side, and the
 * links stretch between them, so that all texts have the size of the other charts.
 */
function sketch(name, links, ctx) {
  const first = links[0];
  const isNarrow = window.innerWidth < 700;
  const box = isNarrow ? 92 : 210;
  const most = isNarrow ? 12 : 26;
  const cut = (text) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const upstream = String(first.upstream).replace(/^amqps?:\/\/([^@]*@)?/, '');
  const high = 36 + 54 * links.length;
  const backlog = Math.max(0, ...links.map((one) => one.backlog || 0));
  const end = (left, title, lines) => [h('rect', { class: 'end', x: left + 1, y: 8, width: box - 2, height: high - 16,
    rx: 12 }),
    h('text', { class: 'end-name', x: left + box / 2, y: 34, 'text-anchor': 'middle' }, title),
    lines.filter(Boolean).map((line, at) => h('text', { class: 'end-fact', x: left + box / 2, y: 54 + at * 17,
      'text-anchor': 'middle' }, cut(line)))];
  const tip = (row, at) => {
    const y = 40 + at * 54;
    const [x, back] = row.direction === 'forward' ? [-box - 6, -9] : [box + 6, 9];
    return h('path', { class: toneClass('tip', row.state), d: `M${x} ${y}l${back} -6v12z` });
  };
  const isForward = (row) => row.direction === 'forward';
  const spoken = links.map((row) => `${isForward(row) ? 'to' : 'from'} the upstream: ${stateWord(row)}`);
  return h('svg', { class: 'sketch', height: high, role: 'img',
    'aria-label': `Bridge ${name}. ${spoken.join('. ')}.` },
  // The box of the upstream covers the end of a line, whose position is not known in pixels.
  links.map((row, at) => {
    const y = 40 + at * 54;
    const word = stateWord(row);
    const flow = flowOf(linkName(row));
    const speed = flow.messages > 0 ? `, ${rate(flow.messages)}${isNarrow ? '' : `, ${byteRate(flow.bytes)}`}` : '';
    return [h('line', { class: toneClass('wire', row.state), x1: box + 6, x2: '99%', y1: y, y2: y }),
      h('text', { class: toneClass('wire-text', row.state), x: '50%', y: y - 8, 'text-anchor': 'middle' },
        // On a phone there is space for the state alone; the figures below tell the rest.
        `${toneOf(row.state) ? shapeOf(row.state) : ''}${isNarrow ? row.state : `${word}${speed}`}`),
      h('text', { class: 'wire-fact', x: '50%', y: y + 16, 'text-anchor': 'middle' },
        isNarrow ? `${count(row.moved)} moved` : `${count(row.moved)} moved, ${count(row.pending)} in flight`)];
  }),
  end(0, isNarrow ? 'Device' : 'This device', [isNarrow ? null : ctx.overview.node, backlog
    ? `${count(backlog)} waiting` : 'no backlog']),
  links.map((row, at) => (isForward(row) ? null : tip(row, at))),
  h('svg', { x: '100%', overflow: 'visible' },
    end(-box, 'Upstream', [upstream.split('/')[0], isNarrow ? null : upstream.split('/').slice(1).join('/')
      .replace(/^%2f$/i, 'vhost /')]),
    links.map((row, at) => (isForward(row) ? tip(row, at) : null))));
}

// ---- figures ----

/** The part of a link's bytes in one category, unless it is 0. */
const spentOn = (kinds, name) => (kinds?.[name] ? bytes(kinds[name]) : null);

function linkPart(row) {
  const parked = `bridge.${row.name}.parked`;
  return h('section', { class: 'part', 'aria-label': `${row.name} ${row.direction}` },
    h('h3', {}, row.direction === 'forward' ? 'To the upstream' : 'From the upstream'),
    h('div', {}, facts([['State', state(stateWord(row))],
      ['Last error', errorOf(row) && !(row.rules || []).some((rule) => rule.error === row.last_error)
        ? prose(errorOf(row)) : null],
      ['Connected for', seconds(row.up_for)], ['Not connected for', seconds(row.down_for)],
      [row.state === 'resting' ? 'Connects automatically in' : 'Tries again in', seconds(row.retry_in)],
      ['Moved', count(row.moved)], ['In flight', count(row.pending)],
      ['Parked', row.parked ? link('queue', row.vhost, parked, counted(row.parked, 'messages')) : null],
      ['Last retry', row.retried],
      ['Too large, remain at the upstream', row.held ? counted(row.held, 'messages') : null],
      ['Sent again', row.repeats ? counted(row.repeats, 'times') : null],
      ['Sent today', spentOn(row.day_bytes_by_kind, 'sent')],
      ['Sent again today', row.direction === 'forward' ? spentOn(row.day_bytes_by_kind, 'repeated') : null],
      ['Received today', spentOn(row.day_bytes_by_kind, 'received')],
      ['Received again today', row.direction === 'forward' ? null : spentOn(row.day_bytes_by_kind, 'repeated')],
      ['Messages per day', row.inflow_per_day === null ? null : count(row.inflow_per_day)],
      ['Disk full after', row.direction === 'forward' ? fullAfter(row) : null]])));
}

/** The figures of the links. The chart of what waits for a link is beside its figures. */
const parts = (links) => links.map((row) => [linkPart(row), row.backlog === null ? null : backlogChart(row)]);

/** The number of messages that wait for a link. */
const backlogChart = (row) => h('section', { class: 'part', 'aria-label': `Backlog of ${row.name}` },
  h('h3', {}, 'Backlog to the upstream'), chart({ title: `Backlog of ${row.name}`, samples: samplesOf(linkName(row)),
    series: [{ name: 'backlog', label: 'Backlog' }], format: count }));

/** How long the disk lasts without the upstream. */
function fullAfter({ outage_days: days, inflow_per_day: inflow }) {
  if (days !== null) return `${days} days without the upstream`;
  return inflow === null ? 'known after an hour' : 'no messages arrive';
}

function ruleTable(name, links) {
  const rows = links.flatMap((row) => (row.rules || []).map((rule) => ({ ...rule, row })));
  if (!rows.length) return null;
  return [h('h3', {}, 'Rules'), table({ caption: `Rules of ${name}`, rows,
    key: ({ row, ...rule }) => `${row.direction} ${rule.queue} ${targetOf(rule)}`, columns: [
      { label: 'Rule', cell: ({ row, ...rule }) => (row.direction === 'forward'
        ? h('span', {}, link('queue', row.vhost, rule.queue), ` → ${targetOf(rule)}`)
        : `${rule.queue} → ${targetOf(rule)}`) },
      { label: 'Urgent', cell: ({ urgent }) => (urgent ? 'yes' : 'no') },
      { label: 'State', brief: true, cell: ({ state: word }) => state(word) },
      { label: 'Flow', num: true, brief: true, cell: ({ row, ...rule }) => rate(flowOf(ruleName(row, rule)).messages) },
      { label: 'Moved', num: true, cell: ({ moved }) => count(moved) },
      { label: 'Backlog', num: true, brief: true, cell: ({ row, queue, backlog }) => (Number.isFinite(backlog)
        ? link('queue', row.vhost, queue, count(backlog)) : '–') },
      { label: 'Last error', cell: (rule) => prose(rule.error || '') },
    ] })];
}
