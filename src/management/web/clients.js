// Connections, channels and consumers.

import {
  h, api, rarely, seg, count, bytes, rate, byteRate, span, clock, statRate, session, say, button, link, remember,
  samplesOf, breakable,
} from './kit.js';
import {
  ask, table, listTools, listQuery, pageOf, facts, card, state, chart, chosen, columnMenu,
} from './widgets.js';
import { consumerTable, consumerColumns, connectionLink, clientLink } from './queues.js';
import { alarmItems, alarmsOf } from './overview.js';

const CONNECTION_COLUMNS = ['name', 'user_provided_name', 'client_id', 'client_properties', 'user', 'vhost', 'protocol',
  'state', 'ssl', 'channels', 'connected_at', 'peer_host', 'peer_port', 'recv_oct_details', 'send_oct_details',
  'blocked_ms'].join(',');

/** The name that a client gives itself. */
const clientOf = (row) => row.user_provided_name || row.client_id || row.client_properties?.connection_name
  || row.client_properties?.client_id || row.client_properties?.product || '';

const addressOf = (row) => (row.peer_host === 'unix' ? row.name : row.peer_host ? `${row.peer_host}:${row.peer_port}`
  : String(row.name).split(' -> ')[0]);

/** An address that breaks before its port. An IPv6 address is too long to stay on one line. */
function addressCell(row) {
  const [, host, port] = addressOf(row).match(/^([\d.]+)(:\d+)$/) || [];
  return host ? [h('span', { class: 'time' }, host), h('wbr'), port] : breakable(addressOf(row));
}

/** The state, with the time for which a publisher has been blocked. */
const stateOf = (row) => state(Number.isFinite(row.blocked_ms) ? `blocked for ${span(row.blocked_ms)}`
  : row.state || 'running');

const protocolOf = (row) => String(row.protocol || '').replace('AMQP 0-9-1', 'AMQP');

const searchedInConnection = (row) => [clientOf(row), row.name, row.user, row.client_id].join('\n');

const connectionColumns = (ctx) => [
  { label: 'Client', sort: 'user_provided_name', cell: (row) => connectionLink(row.name,
    clientOf(row) || addressOf(row)) },
  { label: 'Address', sort: 'name', kind: 'long', cell: addressCell },
  { label: 'User', sort: 'user', brief: true, kind: 'long', cell: (row) => breakable(row.user) },
  { label: 'Virtual host', sort: 'vhost', kind: 'long', off: (ctx.vhosts?.length || 0) < 2,
    cell: (row) => breakable(row.vhost) },
  { label: 'Protocol', sort: 'protocol', cell: protocolOf },
  { label: 'State', sort: 'state', brief: true, cell: stateOf },
  { label: 'TLS', sort: 'ssl', cell: (row) => (row.ssl ? 'yes' : 'no') },
  { label: 'Channels', sort: 'channels', num: true, cell: (row) => count(row.channels) },
  { label: 'Received', sort: 'recv_oct_details.rate', num: true, brief: true,
    cell: (row) => byteRate(row.recv_oct_details?.rate) },
  { label: 'Sent', sort: 'send_oct_details.rate', num: true, brief: true,
    cell: (row) => byteRate(row.send_oct_details?.rate) },
  { label: 'Connected', sort: 'connected_at', cell: (row) => clock(row.connected_at) },
];

export const connectionsView = {
  title: () => 'Connections',
  // The broker searches in addresses only, so a search asks for the whole list and is carried out here.
  load: (ctx) => api(ctx.query.name ? `connections?columns=${CONNECTION_COLUMNS}`
    : `connections?${listQuery(ctx.query, 'name', CONNECTION_COLUMNS.split(','))}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'name', searchedInConnection);
    const all = connectionColumns(ctx);
    return [listTools({ ctx, list, what: 'connections', by: 'client, user or address',
      extra: columnMenu('connections', all) }),
    table({ caption: 'Connections', isTight: true, ctx, sort: 'name', rows: list.rows, key: (row) => row.name,
      columns: chosen('connections', all, ctx.query.sort), empty: ctx.query.name
        ? 'No connected client has this in its name, user or address.' : 'No client is connected.' })];
  },
};

const closeConnection = (row) => ask({
  title: 'Close this connection?', danger: true, verb: 'Close connection',
  text: `${clientOf(row) || row.name}. Its unacknowledged messages are requeued. `
    + 'Most clients connect again automatically.',
  fields: [{ name: 'reason', label: 'Reason for the client and the log', value: 'closed by the operator' }],
  run: async ({ reason }) => {
    await api(`connections/${seg(row.name)}?reason=${seg(reason)}`, 'DELETE');
    say('The connection was closed.');
    location.hash = '#/connections';
  },
});

const CHANNEL_COLUMNS = 'name,pid,user_provided_name,number,connection,connection_details,user,vhost,transactional,'
  + 'confirm,prefetch_count,global_prefetch_count,consumer_count,messages_unacknowledged,messages_uncommitted,'
  + 'message_stats';
const CHANNEL_SORT = 'user_provided_name';
// The alarms that can be why a publisher is blocked.
const BLOCKING = /^(disk|memory|room|store):/;

const CONSUMERS = 'consumers?columns=queue_name,vhost,queue,channel_pid,channel_details,consumer_tag,ack_required,'
  + 'exclusive,prefetch_count,active,activity_status,priority,ack_details,user_provided_name';

export const connectionView = {
  asksTwice: true,
  title: (ctx, data) => (data && clientOf(data.row)) || ctx.parts[0],
  async load(ctx) {
    const name = ctx.parts[0];
    const path = `connections/${seg(name)}`;
    const [whole, channels, consumers] = await Promise.all([api(path), api(`channels?columns=${CHANNEL_COLUMNS}`),
      api(CONSUMERS)]);
    // The time is written only on request.
    const row = whole.state === 'blocked' ? { ...whole, ...await api(`${path}?columns=blocked_ms`) } : whole;
    remember(`connection ${name}`, { received: row.recv_oct_details?.rate, sent: row.send_oct_details?.rate });
    const owned = row.protocol?.startsWith('MQTT') ? [] : await rarely('queues?columns=name,vhost,owner_pid');
    return { row, channels: channels.filter((one) => one.connection === row.pid),
      consumers: consumers.filter((one) => one.channel_details?.connection_name === name),
      owned: owned.filter((one) => one.owner_pid && one.owner_pid === row.pid) };
  },
  draw(ctx, { row, channels, consumers, owned }) {
    const used = [...new Set(consumers.map((one) => one.queue_name))].sort();
    return [Number.isFinite(row.blocked_ms) ? alarmItems(alarmsOf(ctx).filter((text) => BLOCKING.test(text))) : null,
    h('div', { class: 'cards' },
      card('Connection', facts([
        ['State', stateOf(row)], ['Client', clientOf(row)], ['User', row.user], ['Virtual host', row.vhost],
        ['Protocol', row.protocol], ['MQTT client id', row.client_id], ['Address', addressOf(row)],
        ['TLS', row.ssl ? `${row.ssl_protocol || 'yes'} ${row.ssl_cipher || ''}` : 'no'],
        ['Connected', Number.isFinite(row.connected_at) ? clock(row.connected_at) : null],
        ['Heartbeat', row.timeout && `${row.timeout} s`], ['Largest frame', row.frame_max && bytes(row.frame_max)],
        ['Received', `${bytes(row.recv_oct)}, ${byteRate(row.recv_oct_details?.rate)}`],
        ['Sent', `${bytes(row.send_oct)}, ${byteRate(row.send_oct_details?.rate)}`],
        ['Consumes from', used.length ? h('span', { class: 'links' }, used.map((name) => link('queue', row.vhost,
          name))) : 'no queue'],
        ['Exclusive queues', owned.length ? h('span', { class: 'links' }, owned.map((one) => link('queue', one.vhost,
          one.name))) : null],
      ]), button('Close…', 'this connection', () => closeConnection(row), 'danger')),
      card('Bytes per second', [chart({ title: 'Bytes per second', samples: samplesOf(`connection ${row.name}`),
        series: [{ name: 'received', label: 'Received' }, { name: 'sent', label: 'Sent' }], format: byteRate }),
      h('h3', {}, 'Client properties'), facts(Object.entries(row.client_properties || {}).map(([key, value]) => [key,
        value && typeof value === 'object' ? Object.keys(value).join(', ') : String(value)]))])),
    card('Channels', channelTable(channels, null, channelColumns(null)), null, true),
    card('Consumers', consumerTable(consumers, 'This connection has no consumer.', true), null, true)];
  },
};

/** The text of a channel in which the search looks. */
const searchedInChannel = (row) => [row.user_provided_name, row.name, row.user].join('\n');

function channelColumns(ctx) {
  const flow = (name, label) => ({ label, num: true, brief: true, sort: `message_stats.${name}_details.rate`,
    cell: (row) => rate(statRate(row, name)) });
  return [
      { label: 'Channel', sort: CHANNEL_SORT, cell: (row) => clientLink(row, row.name) },
      ...(ctx ? [{ label: 'User', sort: 'user', cell: (row) => row.user },
        { label: 'Virtual host', sort: 'vhost', off: (ctx.vhosts?.length || 0) < 2, cell: (row) => row.vhost }] : []),
      { label: 'Mode', cell: (row) => (row.transactional ? 'transactions' : row.confirm ? 'confirms' : 'plain') },
      { label: 'Prefetch', sort: 'prefetch_count', num: true, cell: (row) => row.prefetch_count || 'no limit' },
      { label: 'Consumers', sort: 'consumer_count', num: true, cell: (row) => count(row.consumer_count) },
      { label: 'Unacked', sort: 'messages_unacknowledged', num: true, brief: true,
        cell: (row) => count(row.messages_unacknowledged) },
      { label: 'Uncommitted', sort: 'messages_uncommitted', num: true, cell: (row) => count(row.messages_uncommitted) },
      flow('publish', 'Published'), flow('deliver_get', 'Delivered'), { ...flow('ack', 'Acked'), brief: false },
    ];
}

const channelTable = (rows, ctx, columns) => table({ caption: 'Channels', ctx, sort: CHANNEL_SORT, rows, columns,
  key: (row) => `${row.name} ${row.pid ?? ''}`,
  empty: ctx?.query.name ? 'No channel matches.' : 'No channel is open.' });

export const channelsView = {
  title: () => 'Channels',
  // The broker searches in addresses only, so a search asks for the whole list and is carried out here.
  load: (ctx) => api(ctx.query.name ? `channels?columns=${CHANNEL_COLUMNS}`
    : `channels?${listQuery(ctx.query, CHANNEL_SORT, CHANNEL_COLUMNS.split(','))}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, CHANNEL_SORT, searchedInChannel);
    const all = channelColumns(ctx);
    return [listTools({ ctx, list, what: 'channels', by: 'client, user or address',
      extra: columnMenu('channels', all) }), channelTable(list.rows, ctx, chosen('channels', all, ctx.query.sort))];
  },
};

export const consumersView = {
  title: () => 'Consumers',
  load: () => api(CONSUMERS),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'queue_name', (one) => [one.queue_name, one.consumer_tag,
      one.user_provided_name, one.channel_details?.user, one.channel_details?.name].join('\n'));
    const all = consumerColumns(true);
    return [listTools({ ctx, list, what: 'consumers', by: 'queue, client, user or tag',
      extra: columnMenu('consumers', all) }),
      consumerTable(list.rows, ctx.query.name ? 'No consumer matches.' : session.monitors()
        ? 'No client consumes from a queue.' : 'No consumer is visible to this user.', true, ctx,
        chosen('consumers', all, ctx.query.sort))];
  },
};
