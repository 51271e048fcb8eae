// The messages of a queue: browsing, filtering, moving, copying, getting and publishing.

import {
  h, api, seg, count, counted, bytes, clock, session, say, explain, frame, parsed, button, exchangeName, Mistyped,
} from './kit.js';
import { ask, card, facts, selectionBar } from './widgets.js';

const PAGE_MESSAGES = 20;
// The most of a payload that a page of messages shows, and that a search examines.
const SHOWN_BYTES = 4096;
const SEARCH_MESSAGES = 100;
const PAYLOAD_BYTES_MAX = 50000;
const MOVE_MAX = 100;
const HEX_BYTES_MAX = 4096;
const PAYLOAD_VIEWS = [['auto', 'JSON or text'], ['text', 'Text'], ['hex', 'Hex'], ['base64', 'Base64']];

// Messages that were browsed or taken stay on the page while its figures are refreshed.
const browsed = {};
const pickedMessages = new Set();

/** Forget the messages that are shown: the queue is another one. */
export function resetMessages() {
  pickedMessages.clear();
  Object.assign(browsed, { rows: null, told: '', view: browsed.view || 'auto', position: 0, next: null, filter: '',
    isTaken: false, search: null, open: new Set() });
}

resetMessages();

/** The path of a queue in the API. */
export const queuePath = (row) => `queues/${seg(row.vhost)}/${seg(row.name)}`;

// ---- payloads ----

const octets = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const toBase64 = (raw) => btoa(Array.from(raw, (octet) => String.fromCharCode(octet)).join(''));

/** A payload as text, JSON, hex or base64, as chosen. Always text, never markup. */
function payloadText(message, view) {
  const isCoded = message.payload_encoding === 'base64';
  let raw;
  try {
    raw = isCoded ? octets(message.payload) : new TextEncoder().encode(message.payload);
  } catch {
    return String(message.payload);
  }
  if (view === 'base64') return toBase64(raw);
  if (view === 'hex' || (view === 'auto' && isCoded)) return hexOf(raw);
  const text = isCoded ? new TextDecoder().decode(raw) : message.payload;
  if (view === 'auto' && /^\s*[[{]/.test(text)) {
    try {
      return JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      return text;
    }
  }
  return text;
}

function hexOf(raw) {
  const lines = [];
  for (let at = 0; at < Math.min(raw.length, HEX_BYTES_MAX); at += 16) {
    const row = [...raw.slice(at, at + 16)];
    const hex = row.map((octet) => octet.toString(16).padStart(2, '0')).join(' ');
    const shown = row.map((octet) => (octet > 31 && octet < 127 ? String.fromCharCode(octet) : '·')).join('');
    lines.push(`${at.toString(16).padStart(6, '0')}  ${hex.padEnd(47)}  ${shown}`);
  }
  if (raw.length > HEX_BYTES_MAX) lines.push(`… ${raw.length - HEX_BYTES_MAX} bytes more`);
  return lines.join('\n');
}

// ---- dead letters ----

const DEATHS = { expired: 'expired in', rejected: 'rejected in', maxlen: 'dropped at the length limit of',
  delivery_limit: 'delivered too often from' };

/** The queue in which a message died first; null if it is no dead letter. */
function firstDeath(message) {
  const headers = message.properties?.headers || {};
  const deaths = Array.isArray(headers['x-death']) ? headers['x-death'] : [];
  const first = deaths.find((one) => one?.queue === headers['x-first-death-queue']) || deaths.at(-1);
  const queue = headers['x-first-death-queue'] ?? first?.queue;
  if (typeof queue !== 'string') return null;
  return { queue, reason: headers['x-first-death-reason'] ?? first?.reason, at: Number(first?.time) * 1000,
    attempts: Number(first?.count) };
}

/** Why a dead letter died first, in words; null for other messages. */
function deathText(message) {
  const death = firstDeath(message);
  return death && deathWords(death);
}

function deathWords(entry) {
  const death = { at: Number(entry.time) * 1000, attempts: Number(entry.count), ...entry };
  const how = Object.hasOwn(DEATHS, death.reason) ? DEATHS[death.reason] : `${death.reason} in`;
  return `${how} ${death.queue}${Number.isFinite(death.at) ? ` at ${clock(death.at)}` : ''}${death.attempts > 1
    ? `, after ${death.attempts} attempts` : ''}`;
}

// ---- browsing ----

/** The text in which the filter looks. */
const searchText = (message) => `${message.routing_key}\n${message.exchange}\n${JSON.stringify(message.properties)}\n${
  payloadText(message, 'text')}`.toLowerCase();

const fetchMessages = (row, position,
  most) => api(`leveret/${queuePath(row)}/messages?position=${position}&count=${most}`
  + `&truncate=${SHOWN_BYTES}`);

/** Which messages are shown, and of how many: `20 of 27,298 messages`, `21 to 40 of 27,298 messages`. */
function placesOf(position, shown, ready) {
  if (!position && shown === ready) return counted(shown, 'messages');
  const places = position ? `${count(position + 1)} to ${count(position + shown)}` : count(shown);
  return `${places} of ${counted(ready, 'messages')}`;
}

async function look(row, position) {
  const filter = (document.getElementById('filter')?.value || '').trim().toLowerCase();
  browsed.search?.stop();
  pickedMessages.clear();
  const search = { isStopped: false, examined: 0, stop() { this.isStopped = true; } };
  Object.assign(browsed, { search, filter, isTaken: false, position });
  try {
    if (filter) await lookFor(row, position, filter, search);
    else {
      const found = [];
      let answer;
      // An answer with long payloads has fewer messages than requested.
      do {
        const at = position + found.length;
        answer = await fetchMessages(row, at, PAGE_MESSAGES - found.length);
        if (browsed.search !== search) return;
        found.push(...answer.messages);
      } while (answer.messages.length && answer.next !== null && found.length < PAGE_MESSAGES);
      const rows = found.map((message, at) => ({ ...message, position: position + at }));
      if (rows.length === 1) browsed.open.add(keyOfMessage(rows[0]));
      Object.assign(browsed, { rows, next: answer.next, told: rows.length
        ? `Looked at ${placesOf(position, rows.length, answer.ready)}; none was changed.` : 'Looked: there is no message here.' });
    }
  } catch (failure) {
    browsed.told = explain(failure);
  }
  if (browsed.search === search) browsed.search = null;
  frame.redraw();
}

/** Look through the queue from a position until a page of matches is found, the end is reached, or it is stopped. */
async function lookFor(row, position, filter, search) {
  Object.assign(browsed, { rows: [], next: null });
  let at = position;
  while (at !== null && !search.isStopped && browsed.rows.length < PAGE_MESSAGES) {
    const answer = await fetchMessages(row, at, SEARCH_MESSAGES);
    if (browsed.search !== search) return;
    answer.messages.forEach((message, index) => {
      if (searchText(message).includes(filter)) browsed.rows.push({ ...message, position: at + index });
    });
    search.examined += answer.messages.length;
    at = answer.next;
    browsed.told = `Looked at ${counted(search.examined, 'messages')}, found ${count(browsed.rows.length)}${
      at === null ? '.' : search.isStopped ? '; stopped.' : '…'}`;
    browsed.next = at;
    frame.redraw();
  }
}

/** The card with the messages of a queue. */
export function messagesCard(ctx, row) {
  if (!session.can('messages') && !session.can('get')) return null;
  const canLook = session.can('messages');
  const { rows, search } = browsed;
  return card('Messages', [
    h('form', { class: 'tools', onsubmit: (event) => {
      event.preventDefault();
      look(row, 0);
    } },
    canLook ? [h('label', { class: 'sr-only', for: 'filter' }, 'Filter by text or header'),
      h('input', { id: 'filter', type: 'search', placeholder: 'Filter by text or header', autocomplete: 'off',
        spellcheck: 'false' }),
      h('button', { type: 'submit', class: 'main' }, 'Look'),
      search && browsed.filter ? button('Stop', '', () => search.stop()) : null] : null,
    session.can('get') ? button('Get…', '', () => get(ctx, row)) : null,
    session.can('move') ? button('Move all…', '', () => moveDialog(row, null, false)) : null,
    h('span', { class: 'grow' }),
    h('label', { for: 'view' }, 'Payloads as'),
    h('select', { id: 'view', value: browsed.view, onchange: (event) => {
      browsed.view = event.target.value;
      frame.redraw();
    } }, PAYLOAD_VIEWS.map(([value, label]) => h('option', { value }, label)))),
    h('p', { class: 'muted', 'aria-live': 'polite' }, browsed.told || (canLook
      ? 'Look shows messages in their order. Nothing is delivered, marked or moved.' : '')),
    rows?.some((message) => message.id) && session.can('move') && !browsed.isTaken ? messageActions(row, rows) : null,
    rows?.length ? h('ol', { class: 'messages' }, rows.map((message) => messageRow(message))) : null,
    rows && !browsed.isTaken && (browsed.position || browsed.next !== null) ? h('div', { class: 'tools after' },
      h('button', { type: 'button', disabled: !browsed.position || Boolean(browsed.filter),
        onclick: () => look(row, Math.max(0, browsed.position - PAGE_MESSAGES)) }, 'Earlier'),
      h('button', { type: 'button', disabled: browsed.next === null,
        onclick: () => look(row, browsed.next) }, 'Later')) : null,
  ], null, true);
}

const keyOfMessage = (message) => message.id ?? `at ${message.position}`;

function messageActions(row, rows) {
  const picked = rows.filter((message) => pickedMessages.has(keyOfMessage(message)));
  const hasDead = picked.length > 0 && picked.every((message) => firstDeath(message));
  if (!pickedMessages.size) {
    return button('Select all', 'messages shown', () => {
      rows.forEach((message) => pickedMessages.add(keyOfMessage(message)));
      frame.redraw();
    }, 'small select-all');
  }
  return selectionBar(pickedMessages, 'messages', [
    hasDead ? button('Send back…', 'to the queue where they died first', () => sendBack(row, picked), 'main') : null,
    button('Move…', 'the selected messages', () => moveDialog(row, picked, false)),
    button('Copy…', 'the selected messages', () => moveDialog(row, picked, true))]);
}

/** The first characters of a payload in one line. */
const snippet = (message) => payloadText(message, message.payload_encoding === 'base64' ? 'base64' : 'text').slice(0,
  160)
  .replace(/\s+/g, ' ');

function messageRow(message) {
  const own = keyOfMessage(message);
  const isOpen = browsed.open.has(own);
  const death = deathText(message);
  const toggle = () => {
    if (!browsed.open.delete(own)) browsed.open.add(own);
    frame.redraw();
  };
  const canPick = session.can('move') && !browsed.isTaken && message.id;
  const time = Number(message.properties?.timestamp);
  return h('li', { key: own, class: 'row message', tabindex: '-1' },
    h('div', { class: 'message-line' },
      canPick ? h('input', { type: 'checkbox', 'aria-label': `Select message ${message.position + 1}`,
        checked: pickedMessages.has(own), onchange: (event) => {
          if (event.target.checked) pickedMessages.add(own);
          else pickedMessages.delete(own);
          frame.redraw();
        } }) : null,
      h('button', { type: 'button', class: 'opens', 'aria-expanded': String(isOpen), onclick: toggle },
        h('span', { class: 'n' }, `${message.position + 1}`),
        h('span', { class: 'key' }, message.routing_key || exchangeName(message.exchange)),
        h('code', { class: 'snippet' }, snippet(message)),
        h('span', { class: 'size' }, bytes(message.payload_bytes ?? message.payload.length)))),
    death ? h('p', { class: 'death' }, h('span', { 'aria-hidden': 'true' }, '† '), death) : null,
    isOpen ? h('div', { class: 'message-body' },
      facts([['Exchange', exchangeName(message.exchange)], ['Routing key', h('code', {}, message.routing_key)],
        ['Redelivered', message.redelivered ? 'yes' : null],
        ['Time', time ? clock(time * 1000) : null], ...propertyRows(message)]),
      h('pre', { tabindex: 0, role: 'region', 'aria-label': `Payload of message ${message.position + 1}` },
        payloadText(message, browsed.view)),
      message.payload_bytes > SHOWN_BYTES && !browsed.isTaken
        ? h('p', { class: 'muted' }, `The first ${bytes(SHOWN_BYTES)} of ${bytes(message.payload_bytes)}.`) : null)
          : null);
}

function propertyRows(message) {
  const { headers, timestamp, delivery_mode: mode, ...rest } = message.properties || {};
  const text = (value) => (typeof value === 'object' ? h('code', {}, JSON.stringify(value)) : String(value));
  return [['Delivery', mode === 2 ? 'persistent' : mode === 1 ? 'transient' : null],
    ...Object.entries(rest).map(([key, value]) => [key.replaceAll('_', ' '), text(value)]),
    ...Object.entries(headers || {}).map(([key, value]) => (key === 'x-death' && Array.isArray(value)
      ? ['Deaths', h('span', {}, value.map((death) => h('div', {}, deathWords(death))))] : [h('code', {}, key),
        text(value)]))];
}

// ---- moving ----

/** Send requests of at most 100 messages, and tell the sums. */
async function moveBy(row, bodies, done) {
  let moved = 0;
  let gone = 0;
  for (const body of bodies) {
    const answer = await api(`leveret/${queuePath(row)}/messages/move`, 'POST', body);
    moved += answer.moved;
    gone += answer.gone;
    if (!answer.moved && !answer.gone) break;
  }
  pickedMessages.clear();
  say(`${counted(moved, 'messages')} ${moved === 1 ? 'was' : 'were'} ${done}${gone
    ? `; no longer in the queue: ${count(gone)}` : ''}.`);
  if (browsed.rows && !browsed.isTaken && browsed.rows.length) await look(row, browsed.position);
  frame.refresh();
}

const chunks = (ids, rest) => Array.from({ length: Math.ceil(ids.length / MOVE_MAX) }, (_, at) => ({
  ids: ids.slice(at * MOVE_MAX, (at + 1) * MOVE_MAX), ...rest }));

/** Move or copy the picked messages, or the first ones of the queue if `picked` is null. */
const moveDialog = (row, picked, isCopy) => ask({
  title: picked ? `${isCopy ? 'Copy' : 'Move'} ${counted(picked.length, 'messages')}`
    : `Move the messages of ${row.name}`,
  verb: isCopy ? 'Copy messages' : 'Move messages',
  text: `${isCopy ? 'They also remain here.' : 'They leave this queue.'} At most ${MOVE_MAX} messages are ${
    isCopy ? 'copied' : 'moved'} per commit: after a power failure all of them are at the target, or none is.`,
  fields: [
    { name: 'kind', label: 'To', type: 'select', value: 'queue', options: [['queue', 'Queue'], ['exchange',
      'Exchange']] },
    { name: 'name', label: 'Name', required: true },
    { name: 'key', label: 'Routing key', hint: 'For an exchange. If empty, each message keeps its own.' },
    ...(picked ? [] : [{ name: 'most', label: 'At most', type: 'number', value: row.messages_ready, min: 1,
      required: true }])],
  run: ({ kind, name, key, most }) => {
    const to = kind === 'queue' ? { queue: name } : { exchange: name, ...(key && { routing_key: key }) };
    const rest = { to, copy: isCopy };
    const bodies = picked ? chunks(picked.map((message) => message.id), rest)
      : Array.from({ length: Math.ceil(most / MOVE_MAX) }, (_, at) => ({
        count: Math.min(MOVE_MAX, most - at * MOVE_MAX), ...rest }));
    return moveBy(row, bodies, isCopy ? 'copied' : 'moved');
  },
});

const sendBack = (row, picked) => {
  const queues = new Map();
  for (const message of picked) {
    const { queue } = firstDeath(message);
    queues.set(queue, [...(queues.get(queue) || []), message.id]);
  }
  ask({ title: `Send ${counted(picked.length, 'messages')} back`, verb: 'Send back',
    text: [...queues].map(([queue, ids]) => (ids.length === 1 ? `1 message goes to ${queue}, where it died first.`
      : `${count(ids.length)} messages go to ${queue}, where they died first.`)).join(' ')
      .concat(picked.length === 1 ? ' It leaves this queue.' : ' They leave this queue.'),
    run: () => moveBy(row, [...queues].flatMap(([queue, ids]) => chunks(ids, { to: { queue }, copy: false })),
      'sent back') });
};

// ---- getting ----

const get = (ctx, row) => ask({
  title: `Get messages of ${row.name}`, verb: 'Get',
  text: 'Getting delivers messages. Requeued ones are marked as redelivered; acknowledged ones are deleted.',
  fields: [{ name: 'count', label: 'At most', type: 'number', value: 1, min: 1, required: true },
    { name: 'ackmode', label: 'Then', type: 'select', value: 'ack_requeue_true',
      options: [['ack_requeue_true', 'Requeue them'], ['ack_requeue_false', 'Acknowledge them: they leave the queue'],
        ['reject_requeue_false', 'Reject them (to the dead-letter exchange if there is one)']] }],
  run: async (values) => {
    if (values.ackmode === 'ack_requeue_true') return take(row, values);
    // A second confirmation for an irreversible loss, after this dialog has closed.
    setTimeout(() => ask({ title: 'Remove these messages for good?', danger: true, verb: 'Remove messages',
      text: `Up to ${count(values.count)} messages leave ${row.name}. They are shown here once.`,
      run: () => take(row, values) }));
    return null;
  },
});

async function take(row, { count: most, ackmode }) {
  const shownOpen = browsed.open;
  const rows = await api(`${queuePath(row)}/get`, 'POST',
    { count: most, ackmode, encoding: 'auto', truncate: PAYLOAD_BYTES_MAX });
  // Another queue is shown by now. Messages that were taken for good are shown all the same.
  if (browsed.open !== shownOpen && ackmode === 'ack_requeue_true') return;
  const after = ackmode === 'ack_requeue_true' ? 'requeued' : 'removed from the queue';
  browsed.search?.stop();
  Object.assign(browsed, { rows: rows.map((message, position) => ({ ...message, position })), position: 0, next: null,
    isTaken: true, search: null, told: rows.length ? `Got ${counted(rows.length, 'messages')}, ${after}.`
      : 'The queue is empty.' });
  frame.refresh();
}

// ---- publishing ----

const PROPERTIES = [['content_type', 'Content type'], ['content_encoding', 'Content encoding'],
  ['priority', 'Priority', 'number'], ['correlation_id', 'Correlation id'], ['reply_to', 'Reply to'],
  ['expiration', 'Expiration', 'text', 'Milliseconds'], ['message_id', 'Message id'],
  ['timestamp', 'Timestamp', 'number', 'Seconds since 1970'], ['type', 'Type'], ['user_id', 'User id'],
  ['app_id', 'App id'], ['cluster_id', 'Cluster id']];

/** Publish a message to an exchange, or to a queue through the default exchange. */
export const publishDialog = (ctx, vhost, exchange, key) => ask({
  title: `Publish to ${exchange ? `exchange ${exchange}` : `queue ${key}`}`, verb: 'Publish', wide: true, fields: [
    { name: 'routing_key', label: 'Routing key', value: key },
    { name: 'payload', label: 'Payload', type: 'textarea' },
    { name: 'encoding', label: 'Encoding', type: 'select', value: 'string',
      options: [['string', 'Text'], ['base64', 'Base64']] },
    { name: 'persistent', label: 'Persistent: survives a restart in durable queues', type: 'checkbox', value: true },
    { name: 'headers', label: 'Headers (JSON)', type: 'textarea', value: '{}', rows: 3 },
    ...PROPERTIES.map(([name, label, type, hint]) => ({ name, label, type, hint, more: true }))],
  run: async (values) => {
    const properties = { delivery_mode: values.persistent ? 2 : 1, headers: parsed(values.headers) };
    for (const [name] of PROPERTIES) if (values[name] !== '' && values[name] !== null) properties[name] = values[name];
    if (values.encoding === 'base64') {
      try {
        octets(values.payload.trim());
      } catch {
        throw new Mistyped('The payload is not base64.');
      }
    }
    const payload = values.encoding === 'base64' ? values.payload.trim() : values.payload;
    const done = await api(`exchanges/${seg(vhost)}/${seg(exchange || 'amq.default')}/publish`, 'POST', {
      properties, routing_key: values.routing_key, payload, payload_encoding: values.encoding });
    say(done.routed ? 'Published: a queue has the message.'
      : 'Published, but no queue is bound for it: it was dropped.');
    frame.refresh();
  },
});
