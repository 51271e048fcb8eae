// Exchanges, and the picture of exchanges, bindings and queues.

import {
  h, api, rarely, seg, count, counted, rate, statRate, session, change, parsed, explain, button, link, exchangeName,
  frame, remember, samplesOf, say,
} from './kit.js';
import {
  ask, table, listTools, listQuery, pageOf, facts, card, chart, vhostField, argumentsField,
} from './widgets.js';
import { features, pathOfList, bindingTable, addBinding } from './queues.js';
import { publishDialog } from './messages.js';

const EXCHANGE_COLUMNS = ['name', 'vhost', 'type', 'durable', 'auto_delete', 'internal', 'arguments', 'policy',
  'message_stats'];

const addExchange = (ctx) => ask({
  title: 'Add an exchange', verb: 'Add exchange', fields: [vhostField(ctx),
    { name: 'name', label: 'Name', required: true },
    { name: 'type', label: 'Type', type: 'select', value: 'direct',
      options: ['direct', 'fanout', 'topic', 'headers'].map((word) => [word, word]) },
    { name: 'durable', label: 'Durable: survives a restart', type: 'checkbox', value: true },
    { name: 'auto_delete', label: 'Auto-delete: deleted with its last binding', type: 'checkbox' },
    { name: 'internal', label: 'Internal: clients may not publish to it', type: 'checkbox' }, argumentsField],
  run: ({ vhost, name, ...rest }) => change(`The exchange ${name} was declared.`,
    `exchanges/${seg(vhost)}/${seg(name)}`, 'PUT', { ...rest, arguments: parsed(rest.arguments) }),
});

export const exchangesView = {
  title: () => 'Exchanges',
  load: (ctx) => api(`${pathOfList(ctx, 'exchanges')}?${listQuery(ctx.query, 'name', EXCHANGE_COLUMNS)}`),
  draw(ctx, data) {
    const list = pageOf(data, ctx.query, 'name');
    const flow = (name, label) => ({ label, num: true, brief: true, sort: `message_stats.${name}_details.rate`,
      cell: (row) => rate(statRate(row, name) ?? 0) });
    return [listTools({ ctx, list, what: 'exchanges', vhosts: ctx.vhosts,
      extra: session.can('define') ? button('Add exchange', '', () => addExchange(ctx), 'main') : null }),
    table({ caption: 'Exchanges', ctx, sort: 'name', rows: list.rows, key: (row) => `${row.vhost}\n${row.name}`,
      empty: ctx.query.name ? 'No exchange has this in its name.' : 'No exchange is visible to this user.', columns: [
        { label: 'Name', sort: 'name', cell: (row) => link('exchange', row.vhost, row.name, exchangeName(row.name)) },
        ...((ctx.vhosts?.length || 0) > 1 ? [{ label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost }] : []),
        { label: 'Type', sort: 'type', brief: true, cell: (row) => row.type },
        { label: 'Features', cell: features, kind: 'wide' },
        flow('publish_in', 'In'), flow('publish_out', 'Out'),
      ] })];
  },
};

// ---- one exchange ----

const exchangePath = (ctx) => `exchanges/${seg(ctx.parts[0])}/${seg(ctx.parts[1])}`;

const deleteExchange = (row) => ask({
  title: `Delete the exchange ${row.name}?`, danger: true, verb: 'Delete exchange',
  text: 'Its bindings are deleted with it. Publishing to it is then refused. This cannot be undone.',
  run: async () => {
    await api(`exchanges/${seg(row.vhost)}/${seg(row.name)}`, 'DELETE');
    say(`The exchange ${row.name} was deleted.`);
    location.hash = '#/exchanges';
  },
});

export const exchangeView = {
  title: (ctx) => exchangeName(ctx.parts[1]),
  enter: () => Object.assign(routed, { answer: null, trouble: null, exchange: null, key: null, headers: null }),
  async load(ctx) {
    // The default exchange is bound to every queue by the queue's name, so that list is useless.
    const path = exchangePath(ctx);
    const [row, ...bound] = await Promise.all([api(path), ...(ctx.parts[1] && session.can('bindings')
      ? ['source', 'destination'].map((side) => rarely(`${path}/bindings/${side}`)) : [])]);
    remember(path, { in: statRate(row, 'publish_in') ?? 0, out: statRate(row, 'publish_out') ?? 0 });
    return { row, bound: bound.flat() };
  },
  draw(ctx, { row, bound }) {
    const own = row.name !== '' && !row.name.startsWith('amq.');
    return [h('div', { class: 'cards' }, card('Exchange', facts([
      ['Type', row.type], ['Virtual host', row.vhost], ['Features', features(row)],
      ['In', rate(statRate(row, 'publish_in') ?? 0)], ['Out', rate(statRate(row, 'publish_out') ?? 0)],
      ['Messages in', count(row.message_stats?.publish_in ?? 0)],
      ['Messages out', count(row.message_stats?.publish_out ?? 0)],
      ['Delayed messages', Number.isFinite(row.messages_delayed) ? count(row.messages_delayed) : null]]),
    h('span', { class: 'actions' },
      row.internal || !session.can('publish') ? null : button('Publish…', '', () => publishDialog(ctx, row.vhost,
        row.name,
        '')),
      own && session.can('define') ? button('Delete…', '', () => deleteExchange(row), 'danger') : null)),
    session.can('route') ? card('Which queues receive a message?', routeForm(row.vhost, row.name, null)) : null,
    card('Rates', chart({ title: 'Rates', samples: samplesOf(exchangePath(ctx)), format: rate,
      series: [{ name: 'in', label: 'In' }, { name: 'out', label: 'Out' }] }))),
    row.name === '' ? card('Bindings', h('p', {}, 'Every queue is bound here with its own name as the key.'), null,
      true)
      : session.can('bindings') ? card('Bindings', bindingTable(ctx, bound, 'Bindings', true),
        session.can('define') ? button('Bind…', '', () => addBinding(ctx, row.vhost, row.name)) : null, true) : null];
  },
};

// ---- dry routing ----

const routed = { answer: null, trouble: null, exchange: null, key: null, headers: null };

async function route(vhost, exchange) {
  const key = document.getElementById('route-key').value;
  const headers = document.getElementById('route-headers').value;
  Object.assign(routed, { exchange, key, headers, trouble: null });
  try {
    routed.answer = await api(`leveret/exchanges/${seg(vhost)}/${seg(exchange || 'amq.default')}/route`, 'POST',
      { routing_key: key, headers: parsed(headers) });
  } catch (failure) {
    Object.assign(routed, { answer: null, trouble: explain(failure) });
  }
  frame.redraw();
}

/** A form that asks which queues would receive a message. `exchanges`: those to choose from; null for one. */
function routeForm(vhost, exchange, exchanges) {
  const { answer, trouble } = routed;
  return [h('form', { class: 'route-form', onsubmit: (event) => {
    event.preventDefault();
    route(vhost, exchanges ? document.getElementById('route-exchange').value : exchange);
  } },
  exchanges ? h('div', { class: 'field' }, h('label', { for: 'route-exchange' }, 'Exchange'),
    h('select', { id: 'route-exchange' }, exchanges.map((name) => h('option', { value: name }, exchangeName(name)))))
    : null,
  h('div', { class: 'field' }, h('label', { for: 'route-key' }, 'Routing key'),
    h('input', { id: 'route-key', autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false' })),
  h('div', { class: 'field' }, h('label', { for: 'route-headers' }, 'Headers (JSON)'),
    h('input', { id: 'route-headers', autocomplete: 'off', spellcheck: 'false', placeholder: '{"level": "high"}' })),
  h('button', { type: 'submit', class: 'main' }, 'Show route'),
  answer && exchanges ? button('Clear', 'the route', () => {
    routed.answer = null;
    frame.redraw();
  }) : null),
  h('div', { 'aria-live': 'polite' },
    trouble ? h('p', { class: 'trouble' }, trouble) : null,
    answer ? h('p', {}, answer.queues.length ? [h('b', {}, counted(answer.queues.length, 'queues')),
      ' would receive it: ',
      h('span', { class: 'links names' }, answer.queues.slice(0, 40).map((name) => link('queue', vhost, name))),
      answer.queues.length > 40 ? h('details', {}, h('summary', {}, `and ${count(answer.queues.length - 40)} more`),
        h('span', { class: 'links names' }, answer.queues.slice(40).map((name) => link('queue', vhost, name)))) : null]
      : 'No queue would receive it: the message would be dropped or returned.',
    answer.exchanges.length > 1 ? [' It passes ', h('span', { class: 'links' }, answer.exchanges.map((name) => link(
      'exchange', vhost, name, exchangeName(name)))), '.'] : null) : null,
    h('p', { class: 'muted' }, 'Nothing is published.'))];
}

// ---- the picture ----

const BINDINGS_MAX = 60;
// The rates of single queues are asked for up to this number of queues.
const QUEUE_RATES_MAX = 200;
const ROW_HIGH = 28;
// The width of the routing keys beside the destinations.
const KEYS_WIDE = 130;
const KEY_CHARS = 22;

const picture = { lit: null, open: null, hasQueues: true, rates: new Map() };

export const routingView = {
  title: () => 'Routing',
  enter: () => {
    Object.assign(picture, { lit: null, open: null, hasQueues: true, rates: new Map() });
    Object.assign(routed, { answer: null, trouble: null, exchange: null, key: null, headers: null });
  },
  async load(ctx) {
    if (!ctx.vhosts?.length) return null;
    const vhost = ctx.query.vhost || ctx.vhosts?.find(({ name }) => name === '/')?.name || ctx.vhosts?.[0]?.name || '/';
    // A monitor may see virtual hosts without permissions there. The lists of all virtual hosts omit them.
    const of = session.is('administrator') ? `/${seg(vhost)}` : '';
    const isHere = (one) => one.vhost === vhost;
    const [exchanges, bindings, queues] = await Promise.all([
      api(`exchanges${of}?columns=name,vhost,type,internal,arguments,message_stats`), rarely(`bindings${of}`),
      picture.hasQueues ? api(`queues${of}?page=1&page_size=${QUEUE_RATES_MAX}&columns=name,vhost,message_stats`)
        : null]);
    if (queues?.total_count > QUEUE_RATES_MAX) picture.hasQueues = false;
    else if (queues) {
      picture.rates = new Map(queues.items.filter(isHere).map((row) => [row.name, statRate(row, 'publish')]));
    }
    return { vhost, exchanges: exchanges.filter(isHere),
      bindings: bindings.filter((one) => isHere(one) && one.source !== ''),
      rates: picture.rates };
  },
  draw(ctx, data) {
    if (!data) return [h('p', { class: 'empty-note' }, 'No virtual host is visible to this user.')];
    const { vhost, exchanges, bindings, rates } = data;
    const graph = layoutOf(exchanges, bindings, rates);
    return [
      h('div', { class: 'tools' }, (ctx.vhosts?.length || 0) > 1 ? [h('label', { for: 'vhost' }, 'Virtual host'),
        h('select', { id: 'vhost', value: vhost, onchange: (event) => ctx.change({ vhost: event.target.value }) },
          ctx.vhosts.map(({ name }) => h('option', { value: name }, name)))] : null,
      h('span', { class: 'found' },
        `${counted(exchanges.length, 'exchanges')}, ${counted(bindings.length, 'bindings')}`),
      h('span', { class: 'grow' }), h('span', { class: 'muted' },
        `The width of a line shows its rate.${picture.hasQueues ? '' : ` With more than ${
          count(QUEUE_RATES_MAX)} queues, lines to single queues have no rate.`}${window.innerWidth < 700 ? ''
          : ' Point at an exchange or a queue to see its paths.'}`)),
      session.can('route') ? card('Which queues receive a message?', routeForm(vhost, null,
        exchanges.map((one) => one.name)), null, true) : null,
      bindings.length ? card('Routing picture', [drawing(vhost, graph),
        h('details', {}, h('summary', {}, 'As a table'), table({ caption: 'Bindings', rows: bindings.slice(0, 500),
          key: (row) => [row.source, row.destination_type, row.destination, row.properties_key].join('\n'), columns: [
            { label: 'From', cell: (row) => link('exchange', vhost, row.source) },
            { label: 'Routing key', brief: true, cell: (row) => h('code', {}, row.routing_key) },
            { label: 'To', brief: true, cell: (row) => link(row.destination_type, vhost, row.destination) }] }),
        bindings.length > 500 ? h('p', { class: 'muted' }, `The first 500 of ${count(bindings.length)} bindings.`)
          : null)],
      null, true) : h('p', { class: 'empty-note' },
        'There is no binding in this virtual host. The default exchange routes to '
        + 'every queue by its name.'),
    ];
  },
};

/** The text of a node for all queues of an exchange, with the number of those that a route reaches. */
function foldedText(distinct, bindings, reached) {
  const here = new Set(bindings.map((one) => one.destination).filter((name) => reached.has(name))).size;
  return here ? `${count(here)} of ${counted(distinct, 'queues')}` : counted(distinct, 'queues');
}

/**
 * The nodes and edges of the picture. With many bindings, an exchange's queues are one node; an exchange that is opened
 * shows its first ones.
 */
function layoutOf(exchanges, bindings, rates) {
  const byName = new Map(exchanges.map((one) => [one.name, one]));
  const sources = [...new Set(bindings.map((one) => one.source))].sort();
  const folds = bindings.length > BINDINGS_MAX;
  const edges = [];
  for (const source of sources) {
    const own = bindings.filter((one) => one.source === source);
    const reached = new Set(routed.exchange === null ? [] : routed.answer?.queues);
    // The queues of a route come first, so that they are seen when the exchange is opened.
    const toQueues = own.filter((one) => one.destination_type === 'queue')
      .sort((one, other) => reached.has(other.destination) - reached.has(one.destination));
    const isFolded = folds && toQueues.length > 3 && picture.open !== source;
    const put = (one) => edges.push({ from: `e ${source}`, to: `${one.destination_type[0]} ${one.destination}`,
      // A fanout exchange ignores the key.
      label: byName.get(source)?.type === 'fanout' ? '' : one.routing_key || argumentsText(one.arguments) });
    own.filter((one) => one.destination_type !== 'queue').forEach(put);
    const distinct = new Set(toQueues.map((one) => one.destination)).size;
    if (isFolded) {
      edges.push({ from: `e ${source}`, to: `f ${source}`, label: '', text: foldedText(distinct, toQueues, reached) });
    } else {
      toQueues.slice(0, folds ? BINDINGS_MAX : undefined).forEach(put);
      if (folds && toQueues.length > BINDINGS_MAX) {
        edges.push({ from: `e ${source}`, to: `f ${source}`, label: '',
          text: `and ${count(toQueues.length - BINDINGS_MAX)} more` });
      }
    }
  }
  const outOf = (id) => statRate(byName.get(id.slice(2)) || {}, 'publish_out');
  edges.forEach((edge) => {
    const [out, into] = [outOf(edge.from), rates.get(edge.to.slice(2))];
    // Exchanges do not count what arrives over a binding. With many queues, their rates are not requested.
    edge.rate = edge.to[0] === 'e' ? 0 : edge.to[0] === 'f' ? out ?? 0 : into === undefined ? null
      : Math.min(out ?? into, into);
  });
  const left = [...new Set(edges.map((edge) => edge.from))];
  const order = new Map(left.map((id, at) => [id, at]));
  const middle = (id) => {
    const own = edges.filter((edge) => edge.to === id);
    return own.reduce((sum, edge) => sum + order.get(edge.from), 0) / own.length;
  };
  const right = [...new Set(edges.map((edge) => edge.to))].map((id) => [middle(id), id])
    // The node of the remaining queues is below the others.
    .sort(([one, a], [other, b]) => one - other || (a[0] === 'f') - (b[0] === 'f') || (a < b ? -1 : 1))
    .map(([, id]) => id);
  return { edges, left, right, byName, rates, folds };
}

const argumentsText = (values) => Object.entries(values || {}).map(([key, value]) => `${key}=${value}`).join(' ');
/** A name that is cut in its middle: names often begin alike, and differ at the end. */
const cut = (text, most) => (text.length > most ? `${text.slice(0, Math.ceil(most / 2) - 1)}…${
  text.slice(-Math.floor(most / 2))}` : text);

/** The edges and nodes that are emphasised: those of the route, or those of the node at which the user points. */
function emphasised({ edges }) {
  const { answer, exchange } = routed;
  if (answer && !picture.lit) {
    const nodes = new Set([`e ${exchange}`, ...answer.queues.map((name) => `q ${name}`),
      ...answer.exchanges.map((name) => `e ${name}`)]);
    const passed = new Set([`e ${exchange}`, ...answer.exchanges.map((name) => `e ${name}`)]);
    const drawn = new Set(edges.map((edge) => edge.to));
    // The node of the queues that are not drawn is emphasised if the message reaches one of them.
    const isBeyond = answer.queues.some((name) => !drawn.has(`q ${name}`));
    edges.forEach((edge) => edge.to[0] === 'f' && passed.has(edge.from) && isBeyond && nodes.add(edge.to));
    return { nodes, edge: (edge) => passed.has(edge.from) && nodes.has(edge.to) };
  }
  if (!picture.lit) return null;
  const reach = (ends, [from, to]) => {
    const found = new Set([ends]);
    let before = -1;
    while (before !== found.size) {
      before = found.size;
      edges.forEach((edge) => found.has(edge[from]) && found.add(edge[to]));
    }
    return found;
  };
  const [down, up] = [reach(picture.lit, ['from', 'to']), reach(picture.lit, ['to', 'from'])];
  return { nodes: new Set([...down, ...up]),
    edge: (edge) => (down.has(edge.from) && down.has(edge.to)) || (up.has(edge.from) && up.has(edge.to)) };
}

function drawing(vhost, graph) {
  const narrow = window.innerWidth < 700;
  const [wide, column, chars] = narrow ? [360, 126, 14] : [960, 270, 34];
  const { edges, left, right } = graph;
  const high = Math.max(left.length, right.length) * ROW_HIGH + 16;
  const y = (at, total) => 8 + ((at + 0.5) * (high - 16)) / total;
  const leftAt = new Map(left.map((id, at) => [id, y(at, left.length)]));
  const rightAt = new Map(right.map((id, at) => [id, y(at, right.length)]));
  const strong = emphasised(graph);
  const fastest = Math.max(1, ...edges.map((edge) => edge.rate ?? 0));
  const drawn = edges.map((edge, at) => {
    const [from, to] = [leftAt.get(edge.from), rightAt.get(edge.to)];
    const isOn = strong?.edge(edge);
    const weight = edge.rate > 0 ? 1.2 + 4 * Math.sqrt(edge.rate / fastest) : 1;
    const [x1, x2] = [column, wide - column];
    // Before its destination a line is straight, so that the keys are above lines and not across them.
    const bend = x2 - (narrow ? 0 : KEYS_WIDE);
    // If a route reaches no queue, the keys of its exchange show why.
    const explains = routed.answer && !routed.answer.queues.length && edge.from === `e ${routed.exchange}`;
    const names = edges.length <= BINDINGS_MAX || isOn;
    return { edge, isOn, line: h('path', { key: `p ${at}`, class: `edge ${isOn ? 'on' : strong ? 'off'
      : edge.rate > 0 ? 'lit' : ''}`, 'stroke-width': isOn ? Math.max(2.4, weight) : weight,
    d: `M${x1} ${from}C${(x1 + bend) / 2} ${from} ${(x1 + bend) / 2} ${to} ${bend} ${to}H${x2}` },
    h('title', {}, `${edge.from.slice(2)} → ${edge.text || edge.to.slice(2)}${edge.label ? `, key ${edge.label}`
      : ''}${edge.rate === null ? '' : `, ${rate(edge.rate)}`}`)),
    label: edge.label && names && !narrow && (!strong || isOn || explains) ? h('text', { key: `t ${at}`,
      class: 'edge-label', x: x2 - 8, y: to - 6, 'text-anchor': 'end' }, cut(edge.label, KEY_CHARS)) : null };
  });
  // Several bindings to one destination share one label.
  const seen = new Map();
  drawn.forEach((one) => {
    if (!one.label) return;
    const first = seen.get(one.edge.to);
    if (!first) seen.set(one.edge.to, one);
    else {
      first.more = (first.more || 0) + 1;
      one.label = null;
    }
  });
  const labels = drawn.filter((one) => one.label).map((one) => (one.more ? { ...one.label, kids: [
    `${cut(one.edge.label, KEY_CHARS - 4)} +${one.more}`] } : one.label));
  return h('svg', { class: 'routing', viewBox: `0 0 ${wide} ${high}`, role: 'group',
    'aria-label': 'Exchanges on the left, queues on the right, bindings between them' },
  drawn.map((one) => one.line), labels,
  left.map((id) => node({ id, at: leftAt.get(id), x: 0, column, chars, vhost, graph, strong })),
  right.map((id) => node({ id, at: rightAt.get(id), x: wide - column, column, chars, vhost, graph, strong })));
}

function node({ id, at, x, column, chars, vhost, graph, strong }) {
  // On a phone there is space for a name or for a rate.
  const isNarrow = column < 200;
  const [kind, name] = [id[0], id.slice(2)];
  const isOn = strong ? strong.nodes.has(id) : null;
  const point = (to) => () => {
    if (picture.lit === to) return;
    picture.lit = to;
    frame.redraw();
  };
  const fold = graph.edges.find((edge) => edge.to === id && edge.text);
  const flow = kind === 'e' ? statRate(graph.byName.get(name) || {}, 'publish_out') : graph.rates.get(name);
  const opens = kind === 'e' && graph.folds;
  const shape = [h('rect', { x: x + 1, y: at - 11, width: column - 2, height: 22, rx: kind === 'e' ? 11 : 4 }),
    h('text', { x: x + 10, y: at + 4 }, cut(fold ? fold.text : name, chars - (flow > 0 && !isNarrow ? 8 : 0))),
    flow > 0 && !isNarrow ? h('text', { class: 'flow', x: x + column - 8, y: at + 4, 'text-anchor': 'end' }, rate(flow))
      : null,
    h('title', {}, kind === 'e' ? `exchange ${name}, ${graph.byName.get(name)?.type || ''}` : fold ? fold.text
      : `queue ${name}`)];
  const props = { key: `${x ? 'r' : 'l'} ${id}`, class: `node ${kind} ${isOn === null ? '' : isOn ? 'on' : 'off'}`,
    onpointerenter: point(id), onpointerleave: point(null), onfocus: point(id), onblur: point(null) };
  if (fold || (opens && x === 0)) {
    const target = fold ? fold.from.slice(2) : name;
    const act = () => {
      picture.open = picture.open === target ? null : target;
      // The focus would keep its paths emphasised instead of the route.
      document.activeElement?.blur();
      picture.lit = null;
      frame.redraw();
    };
    return h('g', { ...props, role: 'button', tabindex: '0', 'aria-label': `${name}: show its queues`, onclick: act,
      onkeydown: (event) => (event.key === 'Enter' || event.key === ' ') && (event.preventDefault(), act()) }, shape);
  }
  return h('a', { ...props, href: `#/${kind === 'e' ? 'exchange' : 'queue'}/${seg(vhost)}/${seg(name)}` }, shape);
}
