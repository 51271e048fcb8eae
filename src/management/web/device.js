// The device: limits, pools, wear and node; and its log.

import {
  h, api, maybe, seg, count, bytes, span, clock, session, frame, button, prose,
} from './kit.js';
import { card, facts, resourceBars, share, state, table, listTools } from './widgets.js';
import { alarmList, lifetime } from './overview.js';

const NODE_COLUMNS = 'name,running,uptime,os_pid,fd_used,fd_total,sockets_used,sockets_total,db_dir,disk_free,'
  + 'io_write_bytes,io_sync_count';

export const deviceView = {
  hasHistory: true,
  title: () => 'Device',
  async load() {
    if (!session.monitors()) return null;
    const [nodes, pools, memory] = await Promise.all([maybe(`nodes?columns=${NODE_COLUMNS}`),
      session.can('pools') ? api('leveret/pools') : null, session.can('memory') ? maybe('leveret/memory') : null]);
    return { node: nodes?.[0] || {}, pools, memory: memory || [] };
  },
  draw(ctx, data) {
    if (!data) return [h('p', { class: 'empty-note' },
      'This user may not see the device: the tag monitoring is needed.')];
    const { node, pools } = data;
    const { flash, memory, disk } = ctx.status || {};
    const byName = new Map();
    for (const part of data.memory) byName.set(part.name, (byName.get(part.name) || 0) + part.bytes);
    const parts = [...byName].map(([name, size]) => ({ name, bytes: size })).sort((one,
      other) => other.bytes - one.bytes);
    const sum = Math.max(1, parts.reduce((all, { bytes: part }) => all + part, 0));
    return [card('Alarms', alarmList(ctx), null, true),
      h('div', { class: 'cards' }, card('Memory and disk', [resourceBars(ctx.status),
        disk ? facts([['Free on the file system', bytes(disk.free)]]) : null]),
      flash ? card('Flash', [facts([['Written', bytes(flash.written)],
        ['Per day', Number.isFinite(flash.per_day) ? bytes(flash.per_day) : 'known after an hour'],
        ['Endurance (flash_endurance)', flash.endurance ? bytes(flash.endurance) : 'not set'],
        ['Lasts', lifetime(flash)],
        ['Syncs', Number.isFinite(node.io_sync_count) ? `${count(node.io_sync_count)} since the start` : null]]),
      h('p', { class: 'muted' }, 'These figures count the bytes that this broker writes. The file system and the card '
        + 'write more.')]) : null,
 ),
      card('Node', h('div', { class: 'two' }, facts([['Version', `Leveret ${ctx.overview.leveret_version || ''}`],
        ['Compatible with', ctx.overview.rabbitmq_version && `RabbitMQ ${ctx.overview.rabbitmq_version}`],
        ['Name', node.name], ['Up for', span(node.uptime)], ['Process', node.os_pid],
        ['File descriptors', `${count(node.fd_used)} of ${count(node.fd_total)}`],
        ['Sockets', `${count(node.sockets_used)} of ${count(node.sockets_total)}`],
        ['Data directory', node.db_dir]])), null, true),
      memory?.classes ? card('Shared memory', [h('p', { class: 'muted' }, 'What memory_limit leaves after the program and its '
        + 'buffers. The limit of a class is what it could have while the others stay as they are.'),
      table({ caption: 'Shared memory', rows: memory.classes, key: (row) => row.name, columns: [
        { label: 'Class', cell: (row) => row.name },
        { label: 'Share', cell: (row) => share(row.used / row.limit, row.name) },
        { label: 'Used', num: true, brief: true, cell: (row) => bytes(row.used, row.limit) },
        { label: 'Limit', num: true, brief: true, cell: (row) => bytes(row.limit) },
        { label: 'Guaranteed', num: true, cell: (row) => bytes(row.floor) },
        { label: 'Most by', cell: (row) => holder(row.largest) }] })], null, true) : null,
      pools?.length ? card('Pools', [h('p', { class: 'muted' }, 'All pools share the memory that memory_limit leaves. The limit of a pool is what it could have alone. The line '
        + 'marks the highest sample since the start; samples are taken every 5 s. '
        + 'Predeclared exchanges are not counted.'),
      table({ caption: 'Pools', rows: [...pools].sort((one, other) => other.used / other.limit - one.used / one.limit),
        key: (row) => row.name, columns: [
          { label: 'Pool', cell: (row) => h('code', {}, row.name) },
          { label: 'Share', cell: (row) => share(row.used / row.limit, row.name, row.peak / row.limit) },
          { label: 'Used', num: true, brief: true, cell: (row) => amount(row, row.used) },
          { label: 'Peak', num: true, brief: true, cell: (row) => amount(row, row.peak) },
          { label: 'Limit', num: true, brief: true, cell: (row) => amount(row, row.limit) }] })], null, true) : null,
      parts.length ? card('Memory by part', [h('p', { class: 'muted' }, 'The most that each part may use. The sum is '
        + `${bytes(sum, memory?.limit)} of ${bytes(memory?.limit)}.`),
      h('details', {}, h('summary', {}, `All ${count(parts.length)} parts`), table({ caption: 'Memory by part',
        rows: parts, key: (row) => row.name, columns: [
        { label: 'Key or part', cell: (row) => h('code', {}, row.name) },
        { label: 'Share', cell: (row) => share(row.bytes / sum, row.name) },
        { label: 'At most', num: true, brief: true, cell: (row) => bytes(row.bytes) }] }))], null, true) : null];
  },
};

/** What uses most of a class of the shared memory. */
const holder = (largest) => largest && largest.kind
  + `${largest.name ? ` ${largest.name}` : ''}${largest.vhost ? ` in ${largest.vhost}` : ''}`
  + `${largest.user ? ` of ${largest.user}` : ''}, ${bytes(largest.bytes)}`;

/** A value of a pool: bytes if its key says so. */
const amount = (row, value) => (/bytes/.test(row.name) ? bytes(value, row.limit) : count(value));

// ---- log ----

const EVENTS_MAX = 1000;
const SERIOUS = /error|warn|alarm|fail|panic/;
// The choice of the events of all serious kinds.
const ONLY_SERIOUS = 'serious';
const logged = { events: [], last: 0, reason: null, isPaused: false, kind: '' };

export const logView = {
  title: () => 'Log',
  enter: () => Object.assign(logged, { events: [], last: 0, isPaused: false, kind: '' }),
  async load() {
    if (logged.isPaused) return logged;
    const answer = await api(`leveret/log?since=${logged.last}`);
    const known = new Set(logged.events.map(({ number }) => number));
    // A smaller number means a restart of the broker.
    if (answer.last < logged.last) logged.events = [];
    logged.events = [...logged.events, ...answer.events.filter(({ number }) => !known.has(number))].slice(-EVENTS_MAX);
    Object.assign(logged, { last: answer.last, reason: answer.is_recorded ? null : answer.reason });
    return logged;
  },
  draw(ctx, { events, reason, isPaused }) {
    const kinds = [...new Set(events.map(({ kind }) => kind))].sort();
    const wanted = (ctx.query.name || '').toLowerCase();
    const found = events.filter(({ kind, text }) => (!logged.kind || kind === logged.kind
      || (logged.kind === ONLY_SERIOUS && SERIOUS.test(kind)))
      && `${kind} ${text}`.toLowerCase().includes(wanted)).reverse();
    if (reason) {
      return [h('p', { class: 'trouble' }, `No events are recorded: ${reason}.`),
        h('p', { class: 'empty-note' }, 'To see the events of the broker here, set ', h('code', {},
          'flight_recorder = "/run/leveret/flight"'), ' in the configuration. The log of the service has them too: ',
        h('code', {}, 'journalctl -u leveret'))];
    }
    return [listTools({ ctx, what: 'events', by: 'text', list: { found: found.length, all: events.length, pages: 1 },
      extra: [h('label', { class: 'sr-only', for: 'kind' }, 'Kind'),
        h('select', { id: 'kind', value: logged.kind, onchange: (event) => {
          logged.kind = event.target.value;
          frame.redraw();
        } }, h('option', { value: '' }, 'All kinds'), h('option', { value: ONLY_SERIOUS },
          'Warnings and errors'), kinds.map((kind) => h('option', { value: kind }, kind))),
        button(isPaused ? 'Continue' : 'Pause', 'the log', () => {
          logged.isPaused = !isPaused;
          frame.refresh();
        })] }),
    table({ caption: 'Log', rows: found.slice(0, 500), key: ({ number }) => String(number), empty: 'No event.',
      columns: [
      { label: 'Time', kind: 'time', cell: ({ unix_ms: ms }) => clock(ms) },
      { label: 'Kind', brief: true, kind: 'bare', cell: ({ kind }) => (SERIOUS.test(kind)
        ? state(/warn/.test(kind) ? 'warning' : 'error', kind) : kind) },
      { label: 'Event', brief: true, kind: 'bare', cell: ({ text }) => eventText(text) }] })];
  },
};

/** The text of an event. The address of a client at its start is a link, unless its connection has ended. */
function eventText(text) {
  const [, address, rest] = text.match(/^((?:[\d.]+|\[[\da-f:]+\]):\d+)(.*)$/s) || [];
  return address && !/closed|refused/.test(rest)
    ? [h('a', { href: `#/connections?name=${seg(address)}` }, address), prose(rest)] : prose(text);
}
