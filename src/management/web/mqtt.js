// MQTT: sessions and retained messages.

import {
  h, api, seg, count, bytes, span, clock, session, change, button, link, breakable,
} from './kit.js';
import { ask, table, listTools, listQuery, pageOf, facts, state } from './widgets.js';
import { pathOfList } from './queues.js';

// The expiry of a session that never expires.
const NEVER_S = 4294967295;
const TOPICS_SHOWN = 3;

const endSession = (row) => ask({
  title: `Delete the session of ${row.client_id}?`, danger: true, verb: 'Delete session',
  text: `Its ${count(row.subscriptions)} subscriptions and ${count(row.messages_ready)} waiting messages are deleted. `
    + 'A connected client is disconnected. This cannot be undone.',
  run: () => change(`The session of ${row.client_id} was deleted.`,
    `leveret/mqtt-sessions/${seg(row.vhost)}/${seg(row.client_id)}`, 'DELETE'),
});

// The first topics of a session, and how many more it has.
function topicsOf(row) {
  const shown = (row.topics || []).slice(0, TOPICS_SHOWN);
  const more = row.subscriptions - shown.length;
  return shown.join(', ') + (more > 0 ? ` and ${count(more)} more` : '');
}

export const mqttView = {
  title: () => 'MQTT sessions',
  load: (ctx) => api(`${pathOfList(ctx, 'leveret/mqtt-sessions')}?${listQuery(ctx.query, 'client_id')}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'client_id', (row) => row.client_id);
    const number = (name, label, brief) => ({ label, num: true, sort: name, brief, cell: (row) => count(row[name]) });
    return [listTools({ ctx, list, what: 'sessions', by: 'client id', vhosts: ctx.vhosts }),
      table({ caption: 'MQTT sessions', ctx, sort: 'client_id', rows: list.rows,
        key: (row) => `${row.vhost}\n${row.client_id}`, empty: ctx.query.name ? 'No client id contains this.'
          : 'There is no MQTT session.', columns: [
          { label: 'Client id', sort: 'client_id', cell: (row) => (row.queue ? link('queue', row.vhost, row.queue,
            row.client_id) : row.client_id) },
          { label: 'State', sort: 'state', brief: true, cell: (row) => state(row.state === 'connected' ? row.state
            : `${row.state} for ${span(row.last_seen * 1000)}`) },
          { label: 'User', sort: 'user', cell: (row) => row.user },
          ...((ctx.vhosts?.length || 0) > 1 ? [{ label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost }]
            : []),
          { label: 'Topics', sort: 'subscriptions', cell: (row) => breakable(topicsOf(row)) }, number('messages_ready', 'Ready', true),
          number('messages_unacknowledged', 'Unacked', true), number('messages_dropped', 'Dropped', true),
          { label: 'Expires after', sort: 'expiry', cell: (row) => (row.expiry >= NEVER_S ? 'never'
            : row.expiry ? span(row.expiry * 1000) : 'disconnection') },
          { label: 'Will', cell: (row) => (row.has_will ? 'yes' : 'no') },
          ...(session.is('administrator') ? [{ label: '', cell: (row) => button('Delete', row.client_id,
            () => endSession(row), 'small danger') }] : [])] })];
  },
};

// ---- retained messages ----

const retainedPath = (row) => `leveret/retained/${seg(row.vhost)}/${seg(row.topic)}`;

async function showRetained(row) {
  const message = await api(retainedPath(row));
  const { headers, ...properties } = message.properties || {};
  ask({ title: row.topic, wide: true, body: [facts([['QoS', String(row.qos)], ['Payload', bytes(message.payload_bytes)],
    ...Object.entries({ ...properties, ...headers }).map(([name, value]) => [name, name === 'timestamp'
      ? clock(value * 1000) : JSON.stringify(value)])]),
  h('pre', { tabindex: 0, role: 'region', 'aria-label': 'Payload' }, prettyJson(message))] });
}

function prettyJson(message) {
  if (message.payload_encoding === 'base64') return message.payload;
  try {
    return JSON.stringify(JSON.parse(message.payload), null, 2);
  } catch {
    return message.payload;
  }
}

const deleteRetained = (row) => ask({
  title: 'Delete this retained message?', danger: true, verb: 'Delete message', text: row.topic,
  run: () => change('The retained message was deleted.', retainedPath(row), 'DELETE'),
});

export const retainedView = {
  title: () => 'Retained messages',
  load: (ctx) => api(`${pathOfList(ctx, 'leveret/retained')}?${listQuery(ctx.query, 'topic')}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'topic', (row) => row.topic);
    const isAdmin = session.is('administrator');
    return [listTools({ ctx, list, what: 'retained messages', by: 'topic', vhosts: ctx.vhosts }),
      table({ caption: 'Retained messages', ctx, sort: 'topic', rows: list.rows,
        key: (row) => `${row.vhost}\n${row.topic}`,
        empty: ctx.query.name ? 'No topic contains this.' : 'There is no retained message.', columns: [
          { label: 'Topic', sort: 'topic', cell: (row) => breakable(row.topic) },
          ...((ctx.vhosts?.length || 0) > 1 ? [{ label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost }]
            : []),
          { label: 'QoS', num: true, sort: 'qos', brief: true, cell: (row) => String(row.qos) },
          { label: 'Payload', num: true, sort: 'payload_bytes', brief: true, cell: (row) => bytes(row.payload_bytes) },
          { label: 'Content', cell: (row) => breakable(row.preview) },
          { label: 'Age', num: true, sort: 'age', cell: (row) => span(row.age * 1000) },
          { label: 'Expires', cell: (row) => (row.expires ? 'yes' : 'no') },
          ...(isAdmin ? [{ label: '', cell: (row) => h('span', { class: 'actions' },
            button('Show', row.topic, () => showRetained(row), 'small'),
            button('Delete', row.topic, () => deleteRetained(row), 'small danger')) }] : [])] })];
  },
};
