// The views of the overview, connections, channels, exchanges and queues, and of the messages of a queue.

import {
  h, api, maybe, seg, count, bytes, rate, span, remember, history, words, session, Mistyped, ask, say, explain,
  listQuery, pageOf, table, listTools, facts, card, state, bar, chart, payloadText,
} from './kit.js';


/** The address of an object's own page. */
export const link = (kind, vhost, name, text) => h('a', { href: `#/${kind}/${seg(vhost)}/${seg(name)}` }, text ?? name);

/** An exchange's name, with a word for the default exchange, whose name is empty. */
export const exchangeName = (name) => name || '(default)';

/** Markers such as durable or exclusive, with the arguments as a tooltip. */
export function marks(row) {
  const found = [row.durable && 'durable', row.auto_delete && 'auto-delete', row.exclusive && 'exclusive',
    row.internal && 'internal', row.policy && `policy ${row.policy}`].filter(Boolean);
  const keys = Object.keys(row.arguments || {});
  if (!found.length && !keys.length) return null;
  return h('span', {}, found.map((word) => h('span', { class: 'mark' }, word)),
    keys.map((key) => h('span', { class: 'mark', title: `${key} = ${JSON.stringify(row.arguments[key])}` }, key)));
}

/** The rates of a queue, an exchange or all. */
export const RATES = [
  { name: 'publish', label: 'Published' }, { name: 'deliver_get', label: 'Delivered' },
  { name: 'ack', label: 'Acknowledged' }, { name: 'redeliver', label: 'Redelivered' },
];

/** The samples of a `message_stats`. */
export function ratesOf(stats) {
  return Object.fromEntries(RATES.map(({ name }) => [name, stats?.[`${name}_details`]?.rate]));
}

/** The broker's samples of all queues together, oldest first, without the newest. */
export function past(overview) {
  const series = DEPTHS.map(({ name }) => [name, overview.queue_totals?.[`${name}_details`]?.samples || []]);
  const counts = RATES.map(({ name }) => [name, overview.message_stats?.[`${name}_details`]?.samples || []]);
  const newest = series[0][1][0]?.timestamp;
  return series[0][1].slice(1).map(({ timestamp }, at) => ({
    // The board's clock may differ.
    at: Date.now() - (newest - timestamp),
    values: Object.fromEntries([...series.map(([name, row]) => [name, row[at + 1]?.sample]),
      ...counts.map(([name, row]) => [name, row[at + 2] && (row[at + 1].sample - row[at + 2].sample) * 1000
        / (row[at + 1].timestamp - row[at + 2].timestamp)])]),
  })).reverse();
}

/** The numbers of ready and unacknowledged messages of a queue, or of all. */
export const DEPTHS = [
  { name: 'messages_ready', label: 'Ready' }, { name: 'messages_unacknowledged', label: 'Unacknowledged' },
];

const listPath = (what, ctx) => (ctx.query.vhost ? `${what}/${seg(ctx.query.vhost)}` : what);

// ---- overview ----

// An alarm's text says what to do; its first word determines the page.
const LONGEST = ['queues?sort=messages&down=1', 'See the longest queues.'];
const BRIDGES = ['bridges', 'See the bridges.'];
const WHERE = { memory: LONGEST, disk: LONGEST, parked: BRIDGES, outage: BRIDGES, budget: BRIDGES };

/** The alarms of this broker: its own, and RabbitMQ's two of a node. */
export function alarmsOf(ctx) {
  const found = (ctx.alarms || []).map(String);
  for (const node of ctx.nodes || []) {
    if (node.mem_alarm && !found.some((text) => /memory/i.test(text))) found.push('memory: the cap has been reached');
    if (node.disk_free_alarm && !found.some((text) => /disk/i.test(text))) {
      found.push('disk: less is free than the limit');
    }
    if (node.running === false) found.push(`node ${node.name} does not run`);
  }
  return found;
}

/** The alarms' texts, with links to the pages that help. */
export function alarmList(ctx) {
  const found = alarmsOf(ctx);
  if (!found.length) return h('p', { class: 'calm' }, 'No alarms. Nobody needs to do anything.');
  const list = h('ul', { class: 'alarms' }, found.map((text) => {
    const [where, label] = Object.hasOwn(WHERE, text.split(':')[0]) ? WHERE[text.split(':')[0]] : [];
    return h('li', { key: text }, h('b', {}, h('span', { 'aria-hidden': 'true' }, '▲ '), text),
      where ? h('span', {}, h('a', { href: `#/${where}` }, label)) : null);
  }));
  return [list, h('p', {}, 'Each name is a heading in the guide: troubleshooting.md')];
}

/** The bars of memory and disk. */
export function bars(node) {
  return [
    bar('Memory', node.mem_used, node.mem_limit, `${bytes(node.mem_used)} of ${bytes(node.mem_limit)}`, node.mem_alarm),
    diskBar(node),
  ];
}

/** The store's size and its limit. */
export const storeUsed = (node) => Math.max(0, node.leveret_store_bytes_max - node.leveret_store_room_bytes);

function diskBar(node) {
  const most = node.leveret_store_bytes_max;
  if (!most) return h('p', { class: 'quiet' }, 'Nothing is written to a disk.');
  const limit = node.leveret_disk_limit_bytes;
  const told = `${bytes(storeUsed(node))} of ${bytes(most)} usable, ${bytes(node.leveret_store_live_bytes)} by messages; `
    + `disk_limit is ${bytes(limit)}`;
  return bar('Disk', storeUsed(node), most, told, node.disk_free_alarm);
}

const byteRate = (number) => (Number.isFinite(number) ? `${bytes(number)}/s` : '–');

export const overview = {
  title: () => 'Overview',
  async load() { return null; },
  draw(ctx) {
    const all = ctx.overview;
    const samples = history('overview');
    const has = (name) => samples.some(({ values }) => Number.isFinite(values[name]));
    const totals = all.object_totals || {};
    const node = ctx.nodes?.[0];
    return [
      h('div', { class: 'tiles' },
        [['queues', 'Queues', totals.queues], ['connections', 'Connections', totals.connections],
          ['channels', 'Channels', totals.channels], ['exchanges', 'Exchanges', totals.exchanges]].map(
          ([to, label, number]) => h('a', { class: 'tile', href: `#/${to}` }, h('b', {}, count(number)),
            h('span', {}, label))),
        h('div', { class: 'tile' }, h('b', {}, count(totals.consumers)), h('span', {}, 'Consumers'))),
      node ? card('Alarms', alarmList(ctx), null, true) : null,
      h('div', { class: 'cards' },
        card('Queued messages', chart({ title: 'Queued messages', samples, series: DEPTHS, format: count })),
        has('publish') ? card('Message rates', chart({ title: 'Message rates', samples, series: RATES, format: rate }))
          : null,
        node ? card('Memory', chart({ title: 'Memory against its cap', samples,
          series: [{ name: 'mem', label: 'Used' }], format: bytes, limit: node.mem_limit })) : null,
        node?.leveret_store_bytes_max ? card('Disk', chart({ title: 'Disk against its cap', samples,
          series: [{ name: 'store', label: 'Used' }], format: bytes, limit: node.leveret_store_bytes_max })) : null,
        has('flash') ? card('Written to flash', chart({ title: 'Written to flash', samples,
          series: [{ name: 'flash', label: 'Now' }], format: byteRate })) : null,
        node ? card('Device', [bars(node), facts([
          ['Node', all.node], ['Cluster name', all.cluster_name],
          ['Version', all.product_version ? `${all.product_name} ${all.product_version}` : all.rabbitmq_version],
          ['Up for', span(node.uptime)],
          ['Written to the card', Number.isFinite(node.leveret_flash_written_bytes)
            ? bytes(node.leveret_flash_written_bytes) : null],
          ['A day', !Number.isFinite(node.leveret_flash_written_bytes) ? null
            : Number.isFinite(node.leveret_flash_bytes_per_day) ? bytes(node.leveret_flash_bytes_per_day)
              : 'known after an hour'],
          ['The card lasts', Number.isFinite(node.leveret_flash_years_left)
            ? `${node.leveret_flash_years_left} years, of ${bytes(node.leveret_flash_endurance_bytes)}` : null],
          ['File descriptors', `${count(node.fd_used)} of ${count(node.fd_total)}`],
        ])], h('a', { href: '#/device' }, 'More')) : null,
        card('Listeners', table({ caption: 'Listeners', key: (row) => `${row.protocol} ${row.ip_address} ${row.port}`,
          rows: (all.listeners || []).filter((row) => row.protocol !== 'clustering'), columns: [
            { label: 'Protocol', cell: (row) => row.protocol }, { label: 'Address', cell: (row) => row.ip_address },
            { label: 'Port', num: true, cell: (row) => row.port }] }))),
    ];
  },
};

// ---- connections and channels ----

export const connections = {
  title: () => 'Connections',
  load: (ctx) => api(`connections?${listQuery(ctx.query, 'name')}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'name');
    return [listTools({ ctx, list, what: 'connections' }), table({
      caption: 'Connections', ctx, sort: 'name', rows: list.rows, key: (row) => row.name,
      empty: 'No client is connected.', columns: [
        { label: 'Name', sort: 'name', cell: (row) => h('a', { href: `#/connection/${seg(row.name)}` },
          row.client_properties?.connection_name || row.name) },
        { label: 'User', sort: 'user', cell: (row) => row.user },
        { label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost },
        { label: 'State', sort: 'state', cell: (row) => state(row.state || 'running') },
        { label: 'TLS', sort: 'ssl', cell: (row) => (row.ssl ? 'yes' : 'no') },
        { label: 'Channels', sort: 'channels', num: true, cell: (row) => count(row.channels) },
        { label: 'Since', sort: 'connected_at', cell: (row) => new Date(row.connected_at).toLocaleString() },
      ] })];
  },
};

const closeConnection = (name) => ask({
  title: 'Close this connection?', danger: true, verb: 'Close connection',
  text: `${name}. Its unacknowledged messages go back to their queues. Most clients connect again by themselves.`,
  fields: [{ name: 'reason', label: 'Reason, told to the client', value: 'closed by the operator' }],
  run: async () => {
    await api(`connections/${seg(name)}`, 'DELETE');
    say('The connection is closed.');
    location.hash = '#/connections';
  },
});

export const connection = {
  title: (ctx) => ctx.parts[0],
  async load(ctx) {
    const own = `connections/${seg(ctx.parts[0])}`;
    const row = await api(own);
    return { row, channels: (await api('channels')).filter((one) => one.connection === row.pid) };
  },
  draw(ctx, { row, channels: open }) {
    return [h('div', { class: 'cards' },
      card('Connection', facts([
        ['State', state(row.state || 'running')], ['User', row.user], ['Virtual host', row.vhost],
        ['Protocol', row.protocol], ['From', row.peer_host && `${row.peer_host}:${row.peer_port}`],
        ['TLS', row.ssl ? `${row.ssl_protocol || 'yes'} ${row.ssl_cipher || ''}` : 'no'],
        ['Since', row.connected_at && new Date(row.connected_at).toLocaleString()],
        ['Heartbeat', row.timeout && `${row.timeout} s`], ['Largest frame', bytes(row.frame_max)],
      ]), h('button', { type: 'button', class: 'danger', onclick: () => closeConnection(row.name) }, 'Close…')),
      card('Client says of itself', facts(Object.entries(row.client_properties || {}).map(([key, value]) => [key,
        typeof value === 'object' ? Object.keys(value).join(', ') : String(value)])))),
    card('Channels', channelTable(open, null), null, true)];
  },
};

function channelTable(rows, ctx) {
  return table({ caption: 'Channels', ctx, sort: 'name', rows, key: (row) => row.name, empty: 'No channel is open.',
    columns: [
      { label: 'Channel', sort: 'name', cell: (row) => h('a', {
        href: `#/connection/${seg(row.name.replace(/ \(\d+\)$/, ''))}` }, row.name) },
      { label: 'User', sort: 'user', cell: (row) => row.user },
      { label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost },
      { label: 'Mode', cell: (row) => (row.transactional ? 'transactions' : row.confirm ? 'confirms' : 'plain') },
      { label: 'Prefetch', sort: 'prefetch_count', num: true, cell: (row) => row.prefetch_count || 'no limit' },
      { label: 'Consumers', sort: 'consumer_count', num: true, cell: (row) => count(row.consumer_count) },
      { label: 'Unacknowledged', sort: 'messages_unacknowledged', num: true,
        cell: (row) => count(row.messages_unacknowledged) },
      { label: 'Uncommitted', sort: 'messages_uncommitted', num: true,
        cell: (row) => count(row.messages_uncommitted) },
    ] });
}

export const channels = {
  title: () => 'Channels',
  load: (ctx) => api(`channels?${listQuery(ctx.query, 'name')}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'name');
    return [listTools({ ctx, list, what: 'channels' }), channelTable(list.rows, ctx)];
  },
};

// ---- exchanges ----

/** A field of a dialog to choose a virtual host. */
export const vhostField = (ctx) => ({
  name: 'vhost', label: 'Virtual host', type: 'select', value: ctx.query.vhost || ctx.vhosts?.[0]?.name || '/',
  options: (ctx.vhosts || [{ name: '/' }]).map(({ name }) => [name, name]),
});

/** A field for arguments in JSON, which are sent unchanged. */
export const argumentsField = {
  name: 'arguments', label: 'Arguments (JSON)', type: 'textarea', value: '{}',
  hint: 'For example {"x-max-length": 1000, "x-message-ttl": 60000}',
};

/** Parse JSON that was typed; an error has a readable message. */
export function parsed(text) {
  try {
    return JSON.parse(text.trim() || '{}');
  } catch (failure) {
    throw new Mistyped(`Not JSON: ${failure.message}`);
  }
}

const addExchange = (ctx) => ask({
  title: 'Add an exchange', verb: 'Add exchange', fields: [vhostField(ctx),
    { name: 'name', label: 'Name', required: true },
    { name: 'type', label: 'Type', type: 'select', value: 'direct',
      options: ['direct', 'fanout', 'topic', 'headers'].map((word) => [word, word]) },
    { name: 'durable', label: 'Durable: outlives a restart', type: 'checkbox', value: true },
    { name: 'auto_delete', label: 'Deleted when its last binding goes', type: 'checkbox' },
    { name: 'internal', label: 'Internal: no client publishes to it', type: 'checkbox' }, argumentsField],
  run: async ({ vhost, name, ...rest }) => {
    await api(`exchanges/${seg(vhost)}/${seg(name)}`, 'PUT', { ...rest, arguments: parsed(rest.arguments) });
    say(`The exchange ${name} is there.`);
    ctx.refresh();
  },
});

export const exchanges = {
  title: () => 'Exchanges',
  load: (ctx) => api(`${listPath('exchanges', ctx)}?${listQuery(ctx.query, 'name')}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'name');
    const rates = list.rows.some((row) => row.message_stats);
    return [listTools({ ctx, list, what: 'exchanges', vhosts: ctx.vhosts,
      extra: session.can('define') ? h('button', { type: 'button', class: 'main', onclick: () => addExchange(ctx) },
        'Add exchange') : null }),
    table({ caption: 'Exchanges', ctx, sort: 'name', rows: list.rows, key: (row) => `${row.vhost}\n${row.name}`,
      columns: [
        { label: 'Name', sort: 'name', cell: (row) => link('exchange', row.vhost, row.name, exchangeName(row.name)) },
        { label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost },
        { label: 'Type', sort: 'type', cell: (row) => row.type },
        { label: 'Features', cell: marks },
        ...(rates ? [{ label: 'In', num: true, sort: 'message_stats.publish_in_details.rate',
          cell: (row) => rate(row.message_stats?.publish_in_details?.rate) },
        { label: 'Out', num: true, sort: 'message_stats.publish_out_details.rate',
          cell: (row) => rate(row.message_stats?.publish_out_details?.rate) }] : []),
      ] })];
  },
};

const exchangePath = (ctx) => `exchanges/${seg(ctx.parts[0])}/${seg(ctx.parts[1])}`;

/** Publish by hand: to an exchange, or to a queue through the default exchange. */
export const publish = (ctx, vhost, exchange, key) => ask({
  title: `Publish to ${exchange ? `exchange ${exchange}` : `queue ${key}`}`, verb: 'Publish', fields: [
    { name: 'routing_key', label: 'Routing key', value: key },
    { name: 'persistent', label: 'Persistent: kept over a restart in durable queues', type: 'checkbox', value: true },
    { name: 'content_type', label: 'Content type', placeholder: 'application/json' },
    { name: 'headers', label: 'Headers (JSON)', type: 'textarea', value: '{}' },
    { name: 'payload', label: 'Payload', type: 'textarea' }],
  run: async (values) => {
    const properties = { delivery_mode: values.persistent ? 2 : 1, headers: parsed(values.headers) };
    if (values.content_type) properties.content_type = values.content_type;
    const done = await api(`exchanges/${seg(vhost)}/${seg(exchange || 'amq.default')}/publish`, 'POST', {
      properties, routing_key: values.routing_key, payload: values.payload, payload_encoding: 'string' });
    say(done.routed ? 'Published: a queue has the message.' : 'Published, but no queue is bound for it: it is gone.');
    ctx.refresh();
  },
});

const deleteExchange = (ctx, row) => ask({
  title: `Delete the exchange ${row.name}?`, danger: true, verb: 'Delete exchange',
  text: 'Its bindings go with it. Clients that publish to it are refused. This cannot be undone.',
  run: async () => {
    await api(exchangePath(ctx), 'DELETE');
    say(`The exchange ${row.name} is deleted.`);
    location.hash = '#/exchanges';
  },
});

export const addBinding = (ctx, vhost, source, destination) => ask({
  title: 'Add a binding', verb: 'Bind', fields: [
    ...(source === undefined ? [{ name: 'source', label: 'From exchange', required: true }] : []),
    ...(destination === undefined ? [
      { name: 'kind', label: 'To', type: 'select', value: 'q', options: [['q', 'Queue'], ['e', 'Exchange']] },
      { name: 'destination', label: 'Named', required: true }] : []),
    { name: 'routing_key', label: 'Routing key' }, { ...argumentsField, hint: null }],
  run: async (values) => {
    const from = source ?? values.source;
    const to = destination ?? values.destination;
    await api(`bindings/${seg(vhost)}/e/${seg(from)}/${values.kind || 'q'}/${seg(to)}`, 'POST',
      { routing_key: values.routing_key, arguments: parsed(values.arguments) });
    say('Bound.');
    ctx.refresh();
  },
});

const unbind = (ctx, row) => ask({
  title: 'Remove this binding?', danger: true, verb: 'Remove binding',
  text: `From ${exchangeName(row.source)} to ${row.destination} with the key "${row.routing_key}".`,
  run: async () => {
    const kind = row.destination_type === 'queue' ? 'q' : 'e';
    await api(`bindings/${seg(row.vhost)}/e/${seg(row.source)}/${kind}/${seg(row.destination)}/`
      + seg(row.properties_key), 'DELETE');
    say('The binding is removed.');
    ctx.refresh();
  },
});

/** The bindings of one exchange or queue. */
export function bindingTable(ctx, rows, caption) {
  return table({ caption, rows, empty: 'Nothing is bound.',
    key: (row) => [row.source, row.destination_type, row.destination, row.properties_key].join('\n'), columns: [
      { label: 'From', cell: (row) => link('exchange', row.vhost, row.source, exchangeName(row.source)) },
      { label: 'Routing key', cell: (row) => h('code', {}, row.routing_key) },
      { label: 'To', cell: (row) => link(row.destination_type, row.vhost, row.destination) },
      { label: 'Arguments', cell: (row) => (Object.keys(row.arguments || {}).length
        ? h('code', {}, JSON.stringify(row.arguments)) : '') },
      ...(session.can('define') ? [{ label: '', cell: (row) => (row.source === '' ? null : h('button', { type: 'button',
        class: 'small', onclick: () => unbind(ctx, row) }, 'Unbind',
      h('span', { class: 'heard' }, ` ${row.destination}`))) }] : [])] });
}

export const exchange = {
  title: (ctx) => exchangeName(ctx.parts[1]),
  async load(ctx) {
    // The default exchange is bound to every queue by the queue's name, so that list is useless.
    const bound = ctx.parts[1] && session.can('bindings') ? await Promise.all(['source', 'destination'].map(
      (side) => api(`${exchangePath(ctx)}/bindings/${side}`))) : [];
    return { row: await api(exchangePath(ctx)), bound: bound.flat() };
  },
  draw(ctx, { row, bound }) {
    const own = row.name !== '' && !row.name.startsWith('amq.');
    return [h('div', { class: 'cards' }, card('Exchange', facts([
      ['Type', row.type], ['Virtual host', row.vhost], ['Features', marks(row)],
      ['Arriving', rate(row.message_stats?.publish_in_details?.rate)],
      ['Routed on', rate(row.message_stats?.publish_out_details?.rate)]]),
    h('span', { class: 'deeds' },
      row.internal || !session.can('publish') ? null : h('button', { type: 'button',
        onclick: () => publish(ctx, row.vhost, row.name, '') }, 'Publish…'),
      own && session.can('define') ? h('button', { type: 'button', class: 'danger',
        onclick: () => deleteExchange(ctx, row) }, 'Delete…') : null))),
    row.name === '' ? card('Bindings', h('p', {}, 'Every queue is bound here by its own name.'), null, true)
      : session.can('bindings') ? card('Bindings', bindingTable(ctx, bound, 'Bindings'),
        session.can('define') ? h('button', { type: 'button', onclick: () => addBinding(ctx, row.vhost, row.name) },
          'Bind…') : null, true) : null];
  },
};

// ---- queues ----

const addQueue = (ctx) => ask({
  title: 'Add a queue', verb: 'Add queue', fields: [vhostField(ctx), { name: 'name', label: 'Name', required: true },
    { name: 'durable', label: 'Durable: outlives a restart', type: 'checkbox', value: true },
    { name: 'auto_delete', label: 'Deleted when its last consumer goes', type: 'checkbox' }, argumentsField],
  run: async ({ vhost, name, ...rest }) => {
    await api(`queues/${seg(vhost)}/${seg(name)}`, 'PUT', { ...rest, arguments: parsed(rest.arguments) });
    say(`The queue ${name} is there.`);
    ctx.refresh();
  },
});

export const queues = {
  title: () => 'Queues',
  load: (ctx) => api(`${listPath('queues', ctx)}?${listQuery(ctx.query, 'name')}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'name');
    const rates = list.rows.some((row) => row.message_stats);
    const part = (name, label) => ({ label, num: true, sort: name, cell: (row) => count(row[name]) });
    const speed = (name, label) => ({ label, num: true, sort: `message_stats.${name}_details.rate`,
      cell: (row) => rate(row.message_stats?.[`${name}_details`]?.rate) });
    return [listTools({ ctx, list, what: 'queues', vhosts: ctx.vhosts,
      extra: session.can('define') ? h('button', { type: 'button', class: 'main', onclick: () => addQueue(ctx) },
        'Add queue') : null }),
    table({ caption: 'Queues', ctx, sort: 'name', rows: list.rows, key: (row) => `${row.vhost}\n${row.name}`,
      empty: ctx.query.name ? 'No queue has this in its name.' : 'There is no queue yet.', columns: [
        { label: 'Name', sort: 'name', cell: (row) => link('queue', row.vhost, row.name) },
        ...((ctx.vhosts?.length || 0) > 1 ? [{ label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost }] : []),
        { label: 'Features', cell: marks },
        ...(list.rows.some((row) => row.state !== 'running')
          ? [{ label: 'State', sort: 'state', cell: (row) => state(row.state) }] : []),
        part('messages_ready', 'Ready'), part('messages_unacknowledged', 'Unacked'), part('messages', 'Total'),
        part('consumers', 'Consumers'),
        ...(rates ? [speed('publish', 'In'), speed('deliver_get', 'Out')] : []),
      ] })];
  },
};

/** Whether this user may see the whole broker, not only its virtual hosts. */
export const monitors = () => session.is('monitoring') || session.is('administrator');

/** Tags as text. */
export const tagsOf = (row) => words(row.tags).join(', ') || 'none';

// ---- one queue ----

const LOOK_MESSAGES = 20;
// The most of a payload that the broker shows.
const LOOK_PAYLOAD_BYTES = 4096;
const PAYLOAD_BYTES_MAX = 50000;
const PAYLOAD_VIEWS = [['text', 'Text'], ['json', 'JSON'], ['hex', 'Hex'], ['base64', 'Base64']];

const pathOf = (ctx) => `queues/${seg(ctx.parts[0])}/${seg(ctx.parts[1])}`;
const nameOf = (ctx) => ctx.parts[1];

// Messages that were browsed or taken stay on the page while its figures are refreshed.
const shown = { of: null, rows: null, how: '', view: 'text', offset: 0 };

function showNothingOf(other) {
  if (shown.of === other) return;
  Object.assign(shown, { of: other, rows: null, how: '', offset: 0 });
}

export const queue = {
  title: nameOf,
  async load(ctx) {
    const path = pathOf(ctx);
    showNothingOf(path);
    const row = await api(path);
    remember(path, { ...row, ...ratesOf(row.message_stats) });
    const consumers = await api(`consumers/${seg(row.vhost)}`);
    const bindings = session.can('bindings') ? await api(`${path}/bindings`) : null;
    return { row, bindings, consumers: consumers.filter((one) => one.queue_name === row.name) };
  },
  draw(ctx, { row, bindings, consumers }) {
    const samples = history(pathOf(ctx));
    const rates = RATES.filter(({ name }) => samples.some(({ values }) => Number.isFinite(values[name])));
    return [
      h('div', { class: 'deeds top' }, deeds(ctx, row)),
      h('div', { class: 'cards' },
        card('Messages', chart({ title: 'Messages waiting', samples, series: DEPTHS, format: count })),
        rates.length ? card('Rates', chart({ title: 'Message rates', samples, series: rates, format: rate })) : null,
        card('Queue', facts([
          ['State', state(row.state || 'running')], ['Virtual host', row.vhost], ['Type', row.type],
          ['Features', marks(row)], ['Messages', count(row.messages)], ['Ready', count(row.messages_ready)],
          ['Unacknowledged', count(row.messages_unacknowledged)],
          ['Payloads', Number.isFinite(row.message_bytes) ? bytes(row.message_bytes) : null],
          ['In memory', Number.isFinite(row.memory) ? bytes(row.memory) : null],
          ['Empty since', row.idle_since && !row.messages ? row.idle_since : null],
          ...Object.entries(row.arguments || {}).map(([key, value]) => [key, JSON.stringify(value)])]))),
      session.can('messages') || session.can('get') ? card('Messages in the queue', messagesOf(ctx, row), null, true)
        : null,
      card('Consumers', consumersOf(consumers), null, true),
      bindings ? card('Bindings', bindingTable(ctx, bindings, 'Bindings'), session.can('define')
        ? h('button', { type: 'button', onclick: () => addBinding(ctx, row.vhost, undefined, row.name) }, 'Bind…')
        : null, true) : null,
    ];
  },
};

function deeds(ctx, row) {
  const button = (label, onclick, kind) => h('button', { type: 'button', class: kind, onclick }, label);
  return [
    session.can('publish') ? button('Publish…', () => publish(ctx, row.vhost, '', row.name), 'main') : null,
    session.can('move') ? button('Move…', () => move(ctx, row)) : null,
    session.can('define') ? [button('Purge…', () => purge(ctx, row), 'danger'),
      button('Delete…', () => remove(ctx, row), 'danger')] : null,
  ];
}

const purge = (ctx, row) => ask({
  title: `Purge ${row.name}?`, danger: true, verb: 'Purge queue',
  text: `${count(row.messages_ready)} ready messages are thrown away. Those that consumers hold stay with them. `
    + 'This cannot be undone.',
  run: async () => {
    await api(`${pathOf(ctx)}/contents`, 'DELETE');
    say(`${row.name} is purged.`);
    ctx.refresh();
  },
});

const remove = (ctx, row) => ask({
  title: `Delete ${row.name}?`, danger: true, verb: 'Delete queue',
  text: `The queue goes with its ${count(row.messages)} messages and its bindings; ${count(row.consumers)} consumers `
    + 'are cancelled. This cannot be undone.',
  fields: [{ name: 'empty', label: 'Only if it holds no messages', type: 'checkbox', value: row.messages > 0 },
    { name: 'unused', label: 'Only if it has no consumers', type: 'checkbox', value: row.consumers > 0 }],
  run: async ({ empty, unused }) => {
    const only = [empty && 'if-empty=true', unused && 'if-unused=true'].filter(Boolean).join('&');
    await api(`${pathOf(ctx)}${only && `?${only}`}`, 'DELETE');
    say(`${row.name} is deleted.`);
    location.hash = '#/queues';
  },
});

const move = (ctx, row) => ask({
  title: `Move the messages of ${row.name}`, danger: true, verb: 'Move messages',
  text: 'Each message is published to the other queue, confirmed, and only then removed here.',
  fields: [{ name: 'to', label: 'To queue', required: true },
    { name: 'count', label: 'At most', type: 'number', value: row.messages_ready, min: 1, required: true }],
  run: async (values) => {
    await api(`${pathOf(ctx)}/move`, 'POST', values);
    say('The messages are being moved.');
    ctx.refresh();
  },
});

function consumersOf(rows) {
  return table({ caption: 'Consumers', rows, empty: 'Nobody consumes from this queue.',
    key: (one) => `${one.channel_pid ?? one.channel_details?.name} ${one.consumer_tag}`, columns: [
      ...(rows.some((one) => one.channel_details) ? [{ label: 'Channel', cell: (one) => h('a', {
        href: `#/connection/${seg(one.channel_details?.connection_name || '')}` }, one.channel_details?.name) }] : []),
      { label: 'Tag', cell: (one) => h('code', {}, one.consumer_tag) },
      { label: 'Acknowledges', cell: (one) => (one.ack_required ? 'yes' : 'no') },
      { label: 'Exclusive', cell: (one) => (one.exclusive ? 'yes' : 'no') },
      ...(rows.some((one) => one.activity_status !== 'up') ? [{ label: 'Active', cell: (one) =>
        (one.active ? 'yes' : 'waits') }] : []),
      { label: 'Prefetch', num: true, cell: (one) => one.prefetch_count || 'no limit' },
    ] });
}

// ---- messages ----

function messagesOf(ctx, row) {
  const canLook = session.can('messages');
  return [
    h('div', { class: 'tools' },
      canLook ? h('button', { type: 'button', class: 'main', onclick: () => look(ctx, 0) }, 'Look') : null,
      session.can('get') ? h('button', { type: 'button', onclick: () => get(ctx, row) }, 'Get…') : null,
      h('span', { class: 'grow' }),
      h('label', { for: 'view' }, 'Show payloads as'),
      h('select', { id: 'view', value: shown.view, onchange: (event) => {
        shown.view = event.target.value;
        ctx.redraw();
      } }, PAYLOAD_VIEWS.map(([value, label]) => h('option', { value }, label)))),
    canLook ? h('p', { class: 'quiet' }, 'Look shows messages in their order without touching them: nothing is '
      + 'delivered, marked or moved.') : null,
    h('p', { class: 'quiet', 'aria-live': 'polite' }, shown.how),
    shown.rows ? h('ol', { class: 'messages', start: shown.offset + 1 }, shown.rows.map((message, at) => messageOf(
      message, shown.offset + at))) : null,
    shown.rows && shown.how.startsWith('Looked') ? h('div', { class: 'tools' },
      h('button', { type: 'button', disabled: shown.offset === 0,
        onclick: () => look(ctx, Math.max(0, shown.offset - LOOK_MESSAGES)) }, 'Earlier'),
      h('button', { type: 'button', disabled: shown.next === null,
        onclick: () => look(ctx, shown.next) }, 'Later')) : null,
  ];
}

async function look(ctx, offset) {
  const of = shown.of;
  try {
    const answer = await api(`leveret/${pathOf(ctx)}/messages?position=${offset}&count=${LOOK_MESSAGES}`
      + `&truncate=${LOOK_PAYLOAD_BYTES}`);
    if (shown.of !== of) return;
    const rows = answer.messages;
    Object.assign(shown, { rows, offset, next: answer.next });
    Object.assign(shown, { how: rows.length ? `Looked at ${rows.length} messages; none was touched.`
      : 'Looked: there is no message here.' });
  } catch (failure) {
    shown.how = explain(failure);
  }
  ctx.refresh();
}

const get = (ctx, row) => ask({
  title: `Get messages of ${row.name}`, verb: 'Get',
  text: 'Getting delivers the messages. Those put back are marked as redelivered; those taken are gone.',
  fields: [{ name: 'count', label: 'At most', type: 'number', value: 1, min: 1, required: true },
    { name: 'ackmode', label: 'Then', type: 'select', value: 'ack_requeue_true',
      options: [['ack_requeue_true', 'Put them back'], ['ack_requeue_false', 'Take them out of the queue'],
        ['reject_requeue_false', 'Reject them (to the dead-letter exchange if there is one)']] }],
  run: async (values) => {
    if (values.ackmode === 'ack_requeue_true') return take(ctx, values);
    // A second confirmation for an irreversible loss, after this dialog has closed.
    setTimeout(() => ask({ title: 'Take these messages out for good?', danger: true, verb: 'Take them out',
      text: `Up to ${count(values.count)} messages leave ${row.name}. They are shown here once.`,
      run: () => take(ctx, values) }));
    return null;
  },
});

async function take(ctx, { count: most, ackmode }) {
  const rows = await api(`${pathOf(ctx)}/get`, 'POST',
    { count: most, ackmode, encoding: 'auto', truncate: PAYLOAD_BYTES_MAX });
  const after = ackmode === 'ack_requeue_true' ? 'put back' : 'taken out of the queue';
  Object.assign(shown, { rows, offset: 0, how: rows.length ? `Got ${rows.length} messages, ${after}.`
    : 'The queue is empty.' });
  ctx.refresh();
}

function messageOf(message, number) {
  const properties = { ...message.properties };
  const headers = properties.headers;
  delete properties.headers;
  const rows = [...Object.entries(properties), ...Object.entries(headers || {}).map(([key, value]) => [`header ${key}`,
    value])].map(([key, value]) => [key, typeof value === 'object' ? JSON.stringify(value) : String(value)]);
  const size = message.payload_bytes ?? message.payload.length;
  return h('li', { key: number },
    h('p', { class: 'about' }, h('b', {}, bytes(size)), ' from ', h('code', {}, message.exchange || '(default)'),
      ' with key ', h('code', {}, message.routing_key),
      message.redelivered ? h('span', { class: 'mark' }, 'redelivered') : null),
    rows.length ? facts(rows) : null,
    h('pre', { tabindex: 0, 'aria-label': `Payload of message ${number + 1}` }, payloadText(message, shown.view)));
}
