// The list of queues, and the page of one queue.

import {
  h, api, maybe, rarely, seg, count, counted, countedAre, bytes, rate, span, remember, samplesOf, statRate, session,
  change, parsed, button, link, exchangeName, say, frame, explain, ageOf,
} from './kit.js';
import {
  ask, table, listTools, listQuery, pageOf, facts, card, state, chart, spark, chosen, columnMenu, selectionBar,
  vhostField, argumentsField, policyMarks,
} from './widgets.js';
import { DEPTHS, alarmsAbout } from './overview.js';
import { messagesCard, publishDialog, queuePath, resetMessages } from './messages.js';

const listPath = (ctx, what) => (ctx.query.vhost ? `${what}/${seg(ctx.query.vhost)}` : what);

/** The path of a list, of the virtual host that is chosen. */
export const pathOfList = listPath;

// ---- features ----

// Arguments and policy keys in short form. Policies name them without "x-".
const FEATURES = {
  'message-ttl': (value) => `TTL ${span(value)}`,
  expires: (value) => `expires ${span(value)}`,
  'max-length': (value) => `max ${count(value)}`,
  'max-length-bytes': (value) => `max ${bytes(value)}`,
  'dead-letter-exchange': (value, all) => `DLX ${value || all['dead-letter-routing-key'] || '(default)'}`,
  'dead-letter-routing-key': () => null,
  'max-priority': (value) => `priorities ${value}`,
  'single-active-consumer': (value) => (value ? 'single active' : null),
  'delivery-limit': (value) => `deliveries ≤ ${value}`,
  overflow: (value) => (value === 'drop-head' ? null : value),
  'queue-mode': (value) => (value === 'lazy' ? 'lazy' : null),
  'queue-type': () => null,
  'queue-version': () => null,
  'alternate-exchange': (value) => `AE ${value}`,
  'delayed-type': (value) => `delays ${value}`,
};

const NUMERIC = new Set(['message-ttl', 'expires', 'max-length', 'max-length-bytes', 'delivery-limit']);

/** What is in force for a queue: the smaller number, or else its own arguments before those of the policy. */
export function effectiveOf(row) {
  const own = Object.entries(row.arguments || {}).map(([key, value]) => [key.replace(/^x-/, ''), value]);
  const all = { ...row.effective_policy_definition, ...Object.fromEntries(own) };
  for (const [key, value] of Object.entries(row.effective_policy_definition || {})) {
    if (NUMERIC.has(key) && value < all[key]) all[key] = value;
  }
  return all;
}

/** Markers with short values, such as `TTL 60 s`. */
export function features(row) {
  const all = effectiveOf(row);
  const found = Object.entries(all).map(([key, value]) => [Object.hasOwn(FEATURES, key) ? FEATURES[key](value, all)
    : key, `${key} = ${JSON.stringify(value)}`]).filter(([text]) => text);
  const plain = [row.durable === false && 'transient', row.auto_delete && 'auto-delete', row.exclusive && 'exclusive',
    row.internal && 'internal', row.policy && `policy ${row.policy}`,
    row.operator_policy && `op ${row.operator_policy}`].filter(Boolean);
  if (!found.length && !plain.length) return null;
  return h('span', { class: 'marks' }, found.map(([text, title]) => h('span', { class: 'mark value', title }, text)),
    plain.map((text) => h('span', { class: 'mark' }, text)));
}

// ---- list ----

const addQueue = (ctx) => ask({
  title: 'Add a queue', verb: 'Add queue', fields: [vhostField(ctx), { name: 'name', label: 'Name', required: true },
    { name: 'durable', label: 'Durable: survives a restart', type: 'checkbox', value: true },
    { name: 'auto_delete', label: 'Auto-delete: deleted when its last consumer is cancelled', type: 'checkbox' },
    argumentsField],
  run: ({ vhost, name, ...rest }) => change(`The queue ${name} was declared.`, `queues/${seg(vhost)}/${seg(name)}`,
    'PUT', { ...rest, arguments: parsed(rest.arguments) }),
});

const selectedQueues = new Set();

/** Carry out a deletion for each selected queue, and tell how many succeeded. */
async function forEachSelected(done, path) {
  let failures = 0;
  let last = '';
  const names = [...selectedQueues];
  for (const name of names) {
    const [vhost, queue] = JSON.parse(name);
    try {
      await api(`queues/${seg(vhost)}/${seg(queue)}${path}`, 'DELETE');
      selectedQueues.delete(name);
    } catch (failure) {
      failures += 1;
      last = `${queue}: ${explain(failure)}`;
    }
  }
  say(failures ? `${names.length - failures} ${done}, ${failures} failed. ${last}` : `${names.length} ${done}.`);
  frame.refresh();
}

function selectedText(rows) {
  const found = rows.filter((row) => selectedQueues.has(keyOfQueue(row)));
  const sum = found.reduce((all, row) => all + row.messages_ready, 0);
  const names = [...selectedQueues].map((name) => JSON.parse(name)[1]);
  const others = selectedQueues.size - found.length;
  return `${names.slice(0, 8).join(', ')}${names.length > 8 ? ` and ${names.length - 8} more` : ''}: ${
    counted(sum, 'ready messages')}${others ? `, and those of ${counted(others, 'queues')} of other pages` : ''}. `
    + 'This cannot be undone.';
}

const purgeSelected = (rows) => ask({ title: `Purge ${counted(selectedQueues.size, 'queues')}?`, danger: true,
  verb: selectedQueues.size === 1 ? 'Purge queue' : 'Purge queues',
  text: selectedText(rows), run: () => forEachSelected('purged', '/contents') });

const deleteSelected = (rows) => ask({ title: `Delete ${counted(selectedQueues.size, 'queues')}?`, danger: true,
  verb: selectedQueues.size === 1 ? 'Delete queue' : 'Delete queues', text: selectedText(rows),
  fields: [{ name: 'empty', label: 'Only those without messages', type: 'checkbox', value: true },
    { name: 'unused', label: 'Only those without consumers', type: 'checkbox', value: true }],
  run: ({ empty, unused }) => {
    const only = [empty && 'if-empty=true', unused && 'if-unused=true'].filter(Boolean).join('&');
    return forEachSelected('deleted', only && `?${only}`);
  } });

const SPARK_SAMPLES = 30;
const keyOfQueue = (row) => JSON.stringify([row.vhost, row.name]);

/** The number of ready messages, marked if it is the maximum length of the queue. */
function readyOf(row) {
  const isFull = row.messages_ready > 0 && row.messages_ready >= effectiveOf(row)['max-length'];
  return isFull ? state('full', [count(row.messages_ready), h('span', { class: 'sr-only' }, ' full')],
    'The queue has its maximum length.') : count(row.messages_ready);
}

function queueColumns(ctx) {
  const number = (name, label, more) => ({ label, num: true, sort: name, needs: [name],
    cell: (row) => count(row[name]), ...more });
  const flow = (name, label) => ({ label, num: true, sort: `message_stats.${name}_details.rate`,
    needs: ['message_stats'], brief: true, cell: (row) => rate(statRate(row, name)) });
  return [
    { label: 'Name', sort: 'name', needs: ['name', 'vhost'], cell: (row) => link('queue', row.vhost, row.name) },
    { label: 'Virtual host', sort: 'vhost', off: (ctx.vhosts?.length || 0) < 2, needs: ['vhost'],
      cell: (row) => row.vhost },
    { label: 'Type', sort: 'type', off: true, needs: ['type'], cell: (row) => row.type },
    { label: 'Features', needs: ['arguments', 'durable', 'auto_delete', 'exclusive', 'policy', 'operator_policy',
      'effective_policy_definition'], cell: features, kind: 'wide' },
    { label: 'State', sort: 'state', off: true, needs: ['state'], cell: (row) => state(row.state) },
    number('messages_ready', 'Ready', { brief: true, cell: readyOf }),
    number('messages_unacknowledged', 'Unacked', { brief: true }),
    number('messages', 'Total'),
    { label: 'Trend', needs: ['messages_ready', 'messages_unacknowledged'],
      cell: (row) => spark(samplesOf(`q ${keyOfQueue(row)}`), 'messages', 'Messages') },
    number('consumers', 'Consumers', { off: false }), flow('publish', 'In'), flow('deliver_get', 'Out'),
    number('message_bytes', 'Payloads', { off: true, cell: (row) => bytes(row.message_bytes) }),
    number('memory', 'Memory', { off: true, cell: (row) => bytes(row.memory) }),
    { label: 'Idle since', off: true, sort: 'idle_since', needs: ['idle_since'], cell: (row) => row.idle_since },
  ];
}

/** The message for an empty list, which may have several reasons. */
function emptyText(ctx, what) {
  if (ctx.query.name) return `No ${what} has this in its name.`;
  if (ctx.query.vhost) return `There is no ${what} in this virtual host.`;
  return session.is('administrator') || !ctx.overview.object_totals?.queues ? `There is no ${what} yet.`
    : `No ${what} is visible: this user has no permissions in a virtual host that holds any.`;
}

export const queuesView = {
  title: () => 'Queues',
  asksTwice: true,
  enter: () => selectedQueues.clear(),
  load(ctx) {
    const needs = chosen('queues', queueColumns(ctx), ctx.query.sort).flatMap((column) => column.needs);
    return api(`${listPath(ctx, 'queues')}?${listQuery(ctx.query, 'name', [...needs, 'messages_ready'])}`);
  },
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'name');
    for (const row of list.rows) {
      remember(`q ${keyOfQueue(row)}`, { messages: row.messages_ready
        + (row.messages_unacknowledged || 0) }, Date.now(), SPARK_SAMPLES);
    }
    const all = queueColumns(ctx);
    const can = session.can('define');
    return [listTools({ ctx, list, what: 'queues', vhosts: ctx.vhosts, extra: [columnMenu('queues', all),
      can ? button('Add queue', '', () => addQueue(ctx), 'main') : null] }),
    selectionBar(selectedQueues, 'queues', [button('Purge…', 'the selected queues', () => purgeSelected(list.rows),
      'danger'), button('Delete…', 'the selected queues', () => deleteSelected(list.rows), 'danger')]),
    table({ caption: 'Queues', ctx, sort: 'name', rows: list.rows, key: keyOfQueue, select: can ? selectedQueues : null,
      empty: emptyText(ctx, 'queue'), columns: chosen('queues', all, ctx.query.sort) })];
  },
};

// ---- one queue ----

const pathOf = (ctx) => `queues/${seg(ctx.parts[0])}/${seg(ctx.parts[1])}`;
const QUEUE_COLUMNS = ['name', 'vhost', 'type', 'state', 'durable', 'auto_delete', 'exclusive', 'arguments', 'policy',
  'operator_policy', 'effective_policy_definition', 'messages', 'messages_ready', 'messages_unacknowledged',
  'message_bytes', 'memory', 'consumers', 'idle_since', 'message_stats', 'consumer_details'].join(',');
const PAST = '&lengths_age=600&lengths_incr=5&msg_rates_age=600&msg_rates_incr=5';
const QUEUE_FLOWS = [{ name: 'publish', label: 'Published' }, { name: 'deliver_get', label: 'Delivered' }];

/** Remember the broker's samples of a queue, oldest first. */
function rememberPast(name, row) {
  const depths = { ready: 'messages_ready_details', unacknowledged: 'messages_unacknowledged_details' };
  const at = new Map();
  const put = (time, key, value) => at.set(time, { ...at.get(time), [key]: value });
  for (const [key, column] of Object.entries(depths)) {
    (row[column]?.samples || []).forEach(({ timestamp, sample }) => put(timestamp, key, sample));
  }
  for (const { name: key } of QUEUE_FLOWS) {
    const found = row.message_stats?.[`${key}_details`]?.samples || [];
    found.slice(0, -1).forEach(({ timestamp, sample }, index) => put(timestamp, key, Math.max(0,
      ((sample - found[index + 1].sample) * 1000) / (timestamp - found[index + 1].timestamp || 5000))));
  }
  const times = [...at.keys()].sort((one, other) => one - other);
  const newest = times.at(-1);
  const depthOf = (values) => (values ? (values.ready || 0) + (values.unacknowledged || 0) : NaN);
  const end = Date.now() - ageOf(row.messages, depthOf(at.get(newest)), depthOf(at.get(times.at(-2))));
  const known = samplesOf(name).at(-1)?.at ?? 0;
  times.map((time) => [time, end - (newest - time)]).filter(([, own]) => own > known)
    .forEach(([time, own]) => remember(name, at.get(time), own));
}

export const queueView = {
  title: (ctx) => ctx.parts[1],
  enter: () => resetMessages(),
  async load(ctx) {
    const path = pathOf(ctx);
    const name = `queue ${path}`;
    // After a while on another view, the broker has the samples between.
    const isFirst = !(Date.now() - samplesOf(name).at(-1)?.at < 10000);
    const [row, bindings] = await Promise.all([api(isFirst
      ? `${path}?columns=${QUEUE_COLUMNS},messages_ready_details,messages_unacknowledged_details${PAST}`
      : `${path}?columns=${QUEUE_COLUMNS}`),
    session.can('bindings') ? rarely(`${path}/bindings`) : null]);
    if (isFirst) rememberPast(name, row);
    remember(name, { ready: row.messages_ready, unacknowledged: row.messages_unacknowledged,
      ...Object.fromEntries(QUEUE_FLOWS.map(({ name: flow }) => [flow, statRate(row, flow)])) });
    const v = seg(row.vhost);
    const [policies, operator] = await Promise.all([
      row.policy ? maybe(`policies/${v}`, rarely) : null,
      row.operator_policy ? maybe(`operator-policies/${v}`, rarely) : null]);
    return { row, bindings, policy: policies?.find((one) => one.name === row.policy),
      operator: operator?.find((one) => one.name === row.operator_policy) };
  },
  draw(ctx, { row, bindings, policy, operator }) {
    const samples = samplesOf(`queue ${pathOf(ctx)}`);
    const hasRates = QUEUE_FLOWS.some(({ name }) => samples.some(({ values }) => Number.isFinite(values[name])));
    const all = effectiveOf(row);
    return [
      alarmsAbout(ctx, row.vhost, row.name),
      h('div', { class: 'actions top' }, queueActions(ctx, row, policy)),
      h('div', { class: 'cards' },
        card('Queued messages', chart({ title: 'Messages waiting', samples, series: DEPTHS, format: count })),
        hasRates ? card('Rates', chart({ title: 'Message rates', samples, series: QUEUE_FLOWS, format: rate })) : null,
      ),
      card('Queue', h('div', { class: 'two' }, facts([
          ['Messages', count(row.messages)], ['Ready', readyOf(row)],
          ['Unacknowledged', count(row.messages_unacknowledged)],
          ['Payloads', Number.isFinite(row.message_bytes) ? bytes(row.message_bytes) : null],
          ['In memory', Number.isFinite(row.memory) ? bytes(row.memory) : null],
          ['Type', row.type], ['Virtual host', row.vhost],
          ['State', row.state && row.state !== 'running' ? state(row.state) : null],
          ['Kind', plainKind(row)],
          ['Dead letters go to', deadLetterTarget(row, all)],
          ['Idle since', row.idle_since && !row.messages ? row.idle_since : null],
          ['Policy', policy ? h('span', {}, h('a', { href: '#/policies' }, policy.name), ' ',
            policyMarks(policy.definition)) : row.policy],
          ['Operator policy', operator ? h('span', {}, h('a', { href: '#/policies' }, operator.name), ' ',
            policyMarks(operator.definition)) : row.operator_policy],
          // The target of dead letters is a link above.
          ...Object.entries(row.arguments || {}).filter(([key]) => !key.startsWith('x-dead-letter-')).map(
            ([key, value]) => [h('code', {}, key), JSON.stringify(value)])])), null, true),
      messagesCard(ctx, row),
      card('Consumers', consumerTable(row.consumer_details || [], 'No consumer. Messages wait until a client consumes.',
        false), null, true),
      bindings ? card('Bindings', bindingTable(ctx, bindings, 'Bindings'), session.can('define')
        ? button('Bind…', '', () => addBinding(ctx, row.vhost, undefined, row.name)) : null, true) : null,
    ];
  },
};

/** A link to the target of dead letters. With the default exchange it is the queue named by the routing key. */
function deadLetterTarget(row, all) {
  const exchange = all['dead-letter-exchange'];
  if (exchange === undefined) return null;
  const key = all['dead-letter-routing-key'];
  if (exchange === '' && key) return link('queue', row.vhost, key);
  return h('span', {}, link('exchange', row.vhost, exchange, exchangeName(exchange)), key ? [' with the key ',
    h('code', {}, key)] : null);
}

/** What a queue is, if it is not a plain durable one. */
const plainKind = (row) => [row.durable === false && 'transient', row.auto_delete && 'auto-delete',
  row.exclusive && 'exclusive'].filter(Boolean).join(', ');

const LIMIT_FIELDS = [['max-length', 'Most messages', 1], ['max-length-bytes', 'Most bytes, in MB', 1e6],
  ['message-ttl', 'Time to live, in seconds', 1000]];

/** Limit a queue by a policy that applies to it alone, with the values of the policy that applies now. */
const limit = (row, policy) => {
  const now = policy?.definition || {};
  const own = `limit.${row.name}`;
  const fixed = LIMIT_FIELDS.map(([key]) => `x-${key}`).filter((key) => key in (row.arguments || {}))
    .map((key) => `${key} ${count(row.arguments[key])}`);
  ask({
    title: `Limit ${row.name}`, verb: 'Set limits',
    text: `The limits are saved as the policy ${own}${policy && policy.name !== own
      ? `, with the other keys of ${policy.name}, which then no longer applies to this queue` : ''}. `
      + `A field that is empty sets no limit.${fixed.length ? ` The queue was declared with ${fixed.join(', ')}: the `
      + 'smaller value applies.' : ''}`,
    fields: [...LIMIT_FIELDS.map(([name, label, unit]) => ({ name, label, type: 'number', min: 1,
      value: now[name] === undefined ? '' : now[name] / unit })),
    { name: 'overflow', label: 'If it is full', type: 'select', value: now.overflow || 'drop-head',
      options: [['drop-head', 'Delete or dead-letter the oldest message'], ['reject-publish',
        'Refuse new messages']] }],
    run: (values) => {
      const definition = { ...now, overflow: values.overflow };
      for (const [name, , unit] of LIMIT_FIELDS) {
        if (values[name] === null) delete definition[name];
        else definition[name] = Math.round(values[name] * unit);
      }
      return change(`The policy ${own} was saved.`, `policies/${seg(row.vhost)}/${seg(own)}`, 'PUT', {
        pattern: `^${row.name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}$`, 'apply-to': 'queues',
        priority: policy && policy.name !== own ? policy.priority + 1 : policy?.priority ?? 1, definition });
    } });
};

function queueActions(ctx, row, policy) {
  return [
    session.can('publish') ? button('Publish…', '', () => publishDialog(ctx, row.vhost, '', row.name), 'main') : null,
    session.setsPolicies() && (policy || !row.policy) ? button('Limit…', '', () => limit(row, policy)) : null,
    session.can('define') ? [button('Purge…', '', () => purge(row), 'danger'),
      button('Delete…', '', () => remove(row), 'danger')] : null,
  ];
}

const purge = (row) => ask({
  title: `Purge ${row.name}?`, danger: true, verb: 'Purge queue',
  text: `${countedAre(row.messages_ready, 'ready messages')} deleted. Unacknowledged messages stay. This cannot be `
    + 'undone.',
  run: () => change(`${row.name} was purged.`, `${queuePath(row)}/contents`, 'DELETE'),
});

const remove = (row) => ask({
  title: `Delete ${row.name}?`, danger: true, verb: 'Delete queue',
  text: ({ empty, unused }) => [
    empty ? 'The queue is deleted only if it holds no messages.'
      : row.messages ? `The queue is deleted with ${counted(row.messages, 'messages')}.` : 'The queue is deleted.',
    unused ? 'It is not deleted while it has consumers.'
      : row.consumers ? `${countedAre(row.consumers, 'consumers')} cancelled.` : '',
    'Its bindings are deleted with it. This cannot be undone.'].filter(Boolean).join(' '),
  fields: [{ name: 'empty', label: 'Only if it holds no messages', type: 'checkbox', value: row.messages > 0 },
    { name: 'unused', label: 'Only if it has no consumers', type: 'checkbox', value: row.consumers > 0 }],
  run: async ({ empty, unused }) => {
    const only = [empty && 'if-empty=true', unused && 'if-unused=true'].filter(Boolean).join('&');
    await api(`${queuePath(row)}${only && `?${only}`}`, 'DELETE');
    say(`${row.name} was deleted.`);
    location.hash = '#/queues';
  },
});

// ---- consumers and bindings, also of other views ----

/** A link to the connection of a channel or consumer. */
export const connectionLink = (name, text) => (name ? h('a', { href: `#/connection/${seg(name)}` },
  text || name) : '–');

/** The client of a channel: its name or its address, as a link. A bridge has neither. */
export function clientLink({ user_provided_name: client, user, channel_details: details, confirm }, name) {
  if (!name) {
    return [h('a', { href: '#/bridges' }, details?.user || user || 'bridge'), confirm === undefined ? null
      : h('small', { class: 'under' }, confirm ? 'from the upstream' : 'to the upstream')];
  }
  const address = name.replace(/ -> [\d[]\S*/, '');
  return [connectionLink(details?.connection_name || name.replace(/ \(\d+\)$/, ''), client || address),
    client ? h('small', { class: 'under' }, address) : null];
}

/** The columns of consumers. `hasQueue`: with a link to their queues. */
export const consumerColumns = (hasQueue) => [
  { label: 'Tag', sort: 'consumer_tag', cell: (one) => h('code', {}, one.consumer_tag) },
  ...(hasQueue ? [{ label: 'Queue', sort: 'queue_name', brief: true,
    cell: (one) => link('queue', one.vhost ?? one.queue?.vhost, one.queue_name ?? one.queue?.name) }] : []),
  { label: 'Channel', brief: !hasQueue, cell: (one) => clientLink(one, one.channel_details?.name) },
  { label: 'User', cell: (one) => one.channel_details?.user },
  { label: 'Acknowledges', cell: (one) => (one.ack_required ? 'yes' : 'no') },
  { label: 'Acked', num: true, brief: true, sort: 'ack_details.rate', cell: (one) => rate(one.ack_details?.rate) },
  { label: 'Prefetch', num: true, sort: 'prefetch_count', cell: (one) => one.prefetch_count || 'no limit' },
  { label: 'State', cell: (one) => [state(one.activity_status === 'waiting' ? 'waiting'
    : one.activity_status === 'single_active' ? 'single active' : 'active'), one.exclusive ? ', exclusive' : '',
  one.priority ? `, priority ${one.priority}` : ''] },
];

/** Consumers. `hasQueue`: with a link to their queues. */
export const consumerTable = (rows, empty, hasQueue, ctx, columns = consumerColumns(hasQueue)) => table({
  caption: 'Consumers', rows, empty, ctx, sort: 'queue_name', columns,
  key: (one) => `${one.channel_pid ?? one.channel_details?.name} ${one.consumer_tag}` });

/** Bind a queue or an exchange to an exchange. An end that is given is not asked for. */
export const addBinding = (ctx, vhost, source, destination) => ask({
  title: 'Add a binding', verb: 'Bind', fields: [
    ...(source === undefined ? [{ name: 'source', label: 'From exchange', required: true }] : []),
    ...(destination === undefined ? [
      { name: 'kind', label: 'To', type: 'select', value: 'q', options: [['q', 'Queue'], ['e', 'Exchange']] },
      { name: 'destination', label: 'Name', required: true }] : []),
    { name: 'routing_key', label: 'Routing key' }, { ...argumentsField, hint: null }],
  run: (values) => change('The binding was added.', `bindings/${seg(vhost)}/e/${seg(source ?? values.source)}/${
    values.kind || 'q'}/${seg(destination ?? values.destination)}`, 'POST',
  { routing_key: values.routing_key, arguments: parsed(values.arguments) }),
});

const unbind = (row) => ask({
  title: 'Remove this binding?', danger: true, verb: 'Remove binding',
  text: `From ${exchangeName(row.source)} to ${row.destination} with the key "${row.routing_key}".`,
  run: () => change('The binding was removed.', `bindings/${seg(row.vhost)}/e/${seg(row.source)}/${
    row.destination_type === 'queue' ? 'q' : 'e'}/${seg(row.destination)}/${seg(row.properties_key)}`, 'DELETE'),
});

// Above this number, a list of bindings has a search and pages.
const PAGED_BINDINGS = 20;

/** The bindings of one exchange or queue. `isSource`: most of them are from the same exchange. */
export function bindingTable(ctx, rows, caption, isSource = false) {
  const from = { label: 'From', brief: isSource,
    cell: (row) => link('exchange', row.vhost, row.source, exchangeName(row.source)) };
  const to = { label: 'To', brief: !isSource, cell: (row) => link(row.destination_type, row.vhost, row.destination) };
  const key = { label: 'Routing key', brief: true, cell: (row) => h('code', {}, row.routing_key) };
  const many = rows.length > PAGED_BINDINGS;
  const list = many ? pageOf(rows, ctx.query, isSource ? 'destination' : 'source',
    (row) => [row.source, row.destination, row.routing_key].join('\n')) : null;
  return [many ? listTools({ ctx, list, what: 'bindings', by: 'name or key' }) : null, table({ caption,
    rows: many ? list.rows : rows, empty: 'No binding.',
    key: (row) => [row.source, row.destination_type, row.destination, row.properties_key].join('\n'), columns: [
      ...(isSource ? [to, key, from] : [from, key, to]),
      { label: 'Arguments', cell: (row) => (Object.keys(row.arguments || {}).length
        ? h('code', {}, JSON.stringify(row.arguments)) : '') },
      ...(session.can('define') ? [{ label: '', cell: (row) => (row.source === '' ? null
        : button('Unbind', row.destination, () => unbind(row), 'small')) }] : [])] })];
}
