// Administration: users, permissions, virtual hosts, limits, policies, definitions and shovels.

import {
  h, api, maybe, seg, count, counted, countedAre, words, session, change, parsed, Mistyped, button, frame, say, explain,
  prose,
} from './kit.js';
import { ask, table, listTools, pageOf, card, state, vhostField, policyMarks } from './widgets.js';
import { hashed } from './hash.js';

const rowActions = (...actions) => h('span', { class: 'actions' }, actions);

// ---- users ----

const TAGS = 'management: own objects. policymaker: policies too. monitoring: the device too. '
  + 'administrator: everything. Without a tag: no management page. Separate several with commas.';

const editUser = (row) => ask({
  title: row ? `Change the user ${row.name}` : 'Add a user', verb: row ? 'Change user' : 'Add user', fields: [
    ...(row ? [] : [{ name: 'name', label: 'Name', required: true }]),
    { name: 'password', label: row ? 'New password' : 'Password', type: 'password', required: !row,
      hint: row ? 'If empty, the password is not changed.' : null },
    { name: 'tags', label: 'Tags', value: row ? words(row.tags).join(',') : '', hint: TAGS }],
  run: ({ name, password, tags }) => change(`The user ${row?.name ?? name} was saved.`,
    `users/${seg(row?.name ?? name)}`, 'PUT', { ...(password && hashed(password)), tags }),
});

const deleteUser = (row) => ask({
  title: `Delete the user ${row.name}?`, danger: true, verb: 'Delete user',
  text: 'Its permissions are deleted with it, and it can no longer log in.',
  run: () => change(`The user ${row.name} was deleted.`, `users/${seg(row.name)}`, 'DELETE'),
});

const tagsOf = (row) => words(row.tags).join(', ') || 'none';

export const usersView = {
  title: () => 'Users',
  async load() {
    const [rows, permissions] = await Promise.all([api('users'), api('permissions')]);
    return { rows, permissions };
  },
  draw(ctx, { rows, permissions }) {
    const list = pageOf(rows, ctx.query, 'name');
    const of = (name) => permissions.filter((one) => one.user === name);
    return [listTools({ ctx, list, what: 'users', extra: button('Add user', '', () => editUser(), 'main') }),
      table({ caption: 'Users', ctx, sort: 'name', rows: list.rows, key: (row) => row.name, columns: [
        { label: 'Name', sort: 'name', cell: (row) => row.name },
        { label: 'Tags', brief: true, cell: tagsOf },
        { label: 'Virtual hosts', cell: (row) => of(row.name).map((one) => one.vhost).join(', ') || 'none' },
        { label: 'Password', cell: (row) => (row.password_hash === '' ? 'none' : 'set') },
        { label: '', cell: (row) => rowActions(
          button('Permissions', `of ${row.name}`, () => permit(ctx, { user: row.name }), 'small'),
          button('Change', row.name, () => editUser(row), 'small'),
          button('Delete', row.name, () => deleteUser(row), 'small danger')) },
      ] })];
  },
};

// ---- permissions ----

const permit = (ctx, row) => ask({
  title: row.vhost ? `Permissions of ${row.user} in ${row.vhost}` : 'Set permissions', verb: 'Set permissions',
  text: 'Regular expressions for the names of queues and exchanges. ".*" is everything, "^$" is nothing.', fields: [
    ...(row.user ? [] : [{ name: 'user', label: 'User', required: true }]),
    ...(row.vhost ? [] : [vhostField(ctx)]),
    { name: 'configure', label: 'Configure: create and delete', value: row.configure ?? '.*' },
    { name: 'write', label: 'Write: publish and bind', value: row.write ?? '.*' },
    { name: 'read', label: 'Read: consume, get and purge', value: row.read ?? '.*' }],
  run: ({ user, vhost, ...rest }) => change('The permissions were set.',
    `permissions/${seg(row.vhost ?? vhost)}/${seg(row.user ?? user)}`, 'PUT', rest),
});

const forbid = (row) => ask({
  title: 'Revoke these permissions?', danger: true, verb: 'Revoke',
  text: `${row.user} then has no access to ${row.vhost}.`,
  run: () => change('The permissions were revoked.', `permissions/${seg(row.vhost)}/${seg(row.user)}`, 'DELETE'),
});

const permitTopic = (ctx, row = {}) => ask({
  title: 'Set topic permissions', verb: 'Set topic permissions',
  text: 'Regular expressions for the routing keys of one topic exchange.', fields: [
    ...(row.user ? [] : [{ name: 'user', label: 'User', required: true }, vhostField(ctx),
      { name: 'exchange', label: 'Exchange', value: 'amq.topic', required: true }]),
    { name: 'write', label: 'Write: publish', value: row.write ?? '.*' },
    { name: 'read', label: 'Read: bind', value: row.read ?? '.*' }],
  run: ({ user, vhost, exchange, ...rest }) => change('The topic permissions were set.',
    `topic-permissions/${seg(row.vhost ?? vhost)}/${seg(row.user ?? user)}`, 'PUT',
    { exchange: row.exchange ?? exchange, ...rest }),
});

const forbidTopic = (row) => ask({
  title: 'Revoke these topic permissions?', danger: true, verb: 'Revoke',
  text: `${row.user} may then use all routing keys of ${row.exchange} that its permissions allow.`,
  run: () => change('The topic permissions were revoked.',
    `topic-permissions/${seg(row.vhost)}/${seg(row.user)}/${seg(row.exchange)}`, 'DELETE'),
});

const codeColumn = (name, label, brief) => ({ label, sort: name, brief, cell: (row) => h('code', {}, row[name]) });

export const permissionsView = {
  title: () => 'Permissions',
  async load() {
    const [rows, topics] = await Promise.all([api('permissions'), maybe('topic-permissions')]);
    return { rows, topics: topics || [] };
  },
  draw(ctx, { rows, topics }) {
    const list = pageOf(rows, ctx.query, 'user', (row) => `${row.user} ${row.vhost}`);
    return [listTools({ ctx, list, what: 'permissions', by: 'user or virtual host',
      extra: button('Set permissions', '', () => permit(ctx, {}), 'main') }),
    table({ caption: 'Permissions', ctx, sort: 'user', rows: list.rows, key: (row) => `${row.vhost}\n${row.user}`,
      columns: [{ label: 'User', sort: 'user', cell: (row) => row.user },
        { label: 'Virtual host', sort: 'vhost', brief: true, cell: (row) => row.vhost },
        codeColumn('configure', 'Configure'), codeColumn('write', 'Write'), codeColumn('read', 'Read'),
        { label: '', cell: (row) => rowActions(
          button('Change', `those of ${row.user} in ${row.vhost}`, () => permit(ctx, row), 'small'),
          button('Revoke', `those of ${row.user} in ${row.vhost}`, () => forbid(row), 'small danger')) }] }),
    card('Topic permissions', table({ caption: 'Topic permissions', rows: topics,
      empty: 'No topic permissions: all routing keys are allowed.',
      key: (row) => `${row.user}\n${row.vhost}\n${row.exchange}`, columns: [
        { label: 'User', cell: (row) => row.user }, { label: 'Virtual host', brief: true, cell: (row) => row.vhost },
        { label: 'Exchange', brief: true, cell: (row) => row.exchange }, { ...codeColumn('write', 'Write'),
          sort: null },
        { ...codeColumn('read', 'Read'), sort: null },
        { label: '', cell: (row) => rowActions(
          button('Change', `those of ${row.user} for ${row.exchange}`, () => permitTopic(ctx, row), 'small'),
          button('Revoke', `those of ${row.user} for ${row.exchange}`, () => forbidTopic(row), 'small danger')) }] }),
    button('Set topic permissions', '', () => permitTopic(ctx)), true)];
  },
};

// ---- virtual hosts ----

const addVhost = () => ask({
  title: 'Add a virtual host', verb: 'Add virtual host', fields: [{ name: 'name', label: 'Name', required: true },
    { name: 'description', label: 'Description' }],
  run: ({ name, ...rest }) => change(`The virtual host ${name} was added.`, `vhosts/${seg(name)}`, 'PUT', rest),
});

const deleteVhost = (row) => ask({
  title: `Delete the virtual host ${row.name}?`, danger: true, verb: 'Delete virtual host',
  text: `All its queues with ${count(row.messages)} messages, its exchanges and permissions are deleted. Its `
    + 'connections are closed. This cannot be undone. Type its name to confirm.',
  fields: [{ name: 'typed', label: 'Name', required: true }],
  run: ({ typed }) => {
    if (typed !== row.name) throw new Mistyped('This is not its name.');
    return change(`The virtual host ${row.name} was deleted.`, `vhosts/${seg(row.name)}`, 'DELETE');
  },
});

export const vhostsView = {
  title: () => 'Virtual hosts',
  async load(ctx) {
    const rows = await api('vhosts');
    ctx.vhosts = rows;
    return rows;
  },
  draw(ctx, rows) {
    const list = pageOf(rows, ctx.query, 'name');
    const isAdmin = session.is('administrator');
    const number = (name, label) => ({ label, sort: name, num: true, brief: true,
      cell: (row) => count(row[name] ?? 0) });
    return [listTools({ ctx, list, what: 'virtual hosts',
      extra: isAdmin ? button('Add virtual host', '', () => addVhost(), 'main') : null }),
    table({ caption: 'Virtual hosts', ctx, sort: 'name', rows: list.rows, key: (row) => row.name, columns: [
      { label: 'Name', sort: 'name', cell: (row) => h('a', { href: `#/queues?vhost=${seg(row.name)}` }, row.name) },
      { label: 'Description', cell: (row) => row.description },
      { label: 'Tags', cell: (row) => (row.tags || []).join(', ') },
      { label: 'Queue type', cell: (row) => row.metadata?.default_queue_type || row.default_queue_type },
      number('messages_ready', 'Ready'), number('messages_unacknowledged', 'Unacked'),
      { ...number('messages', 'Total'), brief: false },
      ...(isAdmin ? [{ label: '', cell: (row) => button('Delete', row.name, () => deleteVhost(row),
        'small danger') }] : [])] })];
  },
};

// ---- limits ----

const LIMITS = { vhost: [['max-queues', 'Queues'], ['max-connections', 'Connections']],
  user: [['max-connections', 'Connections'], ['max-channels', 'Channels']] };

const editLimits = (kind, name, value) => ask({
  title: `Limits of the ${kind === 'vhost' ? 'virtual host' : 'user'} ${name}`, verb: 'Set limits',
  fields: LIMITS[kind].map(([key, label]) => ({ name: key, label, type: 'number', value: value[key] ?? '',
    hint: 'If empty, there is no limit.' })),
  run: async (values) => {
    for (const [key] of LIMITS[kind]) {
      const path = `${kind}-limits/${seg(name)}/${key}`;
      if (values[key] === null && value[key] !== undefined) await api(path, 'DELETE');
      else if (values[key] !== null && values[key] !== value[key]) await api(path, 'PUT', { value: values[key] });
    }
    say(`The limits of ${name} were set.`);
    frame.refresh();
  },
});

function limitTable(kind, names, limits, title) {
  const of = new Map(limits.map((one) => [one[kind], one.value]));
  const isAdmin = session.is('administrator');
  return card(title, table({ caption: title, rows: names, key: (name) => name, columns: [
    { label: kind === 'vhost' ? 'Virtual host' : 'User', cell: (name) => name },
    ...LIMITS[kind].map(([key, label]) => ({ label, num: true, brief: true,
      cell: (name) => (Number.isFinite(of.get(name)
      ?.[key]) ? count(of.get(name)[key]) : 'no limit') })),
    ...(isAdmin ? [{ label: '', cell: (name) => button('Change', `the limits of ${name}`, () => editLimits(kind, name,
      of.get(name) || {}), 'small') }] : [])] }), null, true);
}

export const limitsView = {
  title: () => 'Limits',
  async load() {
    const [vhosts, users, hosts, people] = await Promise.all([api('vhost-limits'), maybe('user-limits'),
      api('vhosts?columns=name'), session.is('administrator') ? maybe('users?columns=name') : null]);
    return { vhosts, users: users || [], hosts: hosts.map(({ name }) => name),
      people: people ? people.map(({ name }) => name) : (users || []).map(({ user }) => user) };
  },
  draw: (ctx, { vhosts, users, hosts, people }) => [limitTable('vhost', hosts, vhosts, 'Limits of virtual hosts'),
    limitTable('user', people, users, 'Limits of users')],
};

// ---- policies ----

const POLICY_HINT = 'For example {"max-length": 1000, "message-ttl": 60000, "dead-letter-exchange": "dlx"}';
const OPERATOR_HINT = 'For example {"max-length": 10000, "message-ttl": 3600000}. '
  + 'The smaller of two limits is effective.';

/** How many queues of a virtual host a policy would match. The browser's expressions are nearly those of the broker. */
function matching(names, { vhost, pattern, apply }) {
  if (!names || apply === 'exchanges' || !pattern) return '';
  let expression;
  try {
    expression = new RegExp(pattern);
  } catch {
    return 'The pattern is not a regular expression that this browser knows.';
  }
  const here = names.filter((one) => one.vhost === vhost);
  return `The pattern matches ${count(here.filter((one) => expression.test(one.name)).length)} of ${
    counted(here.length, 'queues')}.`;
}

async function editPolicy(ctx, isOperator, row = {}) {
  // Without the names, the dialog does not tell how many queues match.
  const names = await maybe('queues?columns=name,vhost').catch(() => null);
  policyDialog(ctx, isOperator, row, names);
}

const policyDialog = (ctx, isOperator, row, names) => ask({
  text: (values) => matching(names, { vhost: row.vhost, ...values }),
  title: row.name ? `Change the ${isOperator ? 'operator policy' : 'policy'} ${row.name}`
    : `Add ${isOperator ? 'an operator policy' : 'a policy'}`,
  verb: row.name ? 'Change policy' : 'Add policy', fields: [
    ...(row.name ? [] : [vhostField(ctx), { name: 'name', label: 'Name', required: true }]),
    { name: 'pattern', label: 'Pattern', value: row.pattern ?? '', required: true,
      hint: 'A regular expression for names, such as ^telemetry\\.' },
    { name: 'apply', label: 'Applies to', type: 'select', value: row['apply-to'] || 'queues', options: (isOperator
      ? ['queues', 'classic_queues', 'quorum_queues'] : ['all', 'queues', 'exchanges', 'classic_queues',
        'quorum_queues'])
      .map((word) => [word, word.replace('_', ' ')]) },
    { name: 'priority', label: 'Priority', type: 'number', value: row.priority ?? 0 },
    { name: 'definition', label: 'Definition (JSON)', type: 'textarea',
      value: JSON.stringify(row.definition || {}, null, 2), hint: isOperator ? OPERATOR_HINT : POLICY_HINT }],
  run: ({ vhost, name, pattern, apply, priority, definition }) => change(`The policy ${row.name ?? name} was saved.`,
    `${isOperator ? 'operator-policies' : 'policies'}/${seg(row.vhost ?? vhost)}/${seg(row.name ?? name)}`, 'PUT',
    { pattern, 'apply-to': apply, priority: priority ?? 0, definition: parsed(definition) }),
});

const deletePolicy = (isOperator, row) => ask({
  title: `Delete the ${isOperator ? 'operator policy' : 'policy'} ${row.name}?`, danger: true, verb: 'Delete policy',
  text: `The definition no longer applies to the ${row['apply-to']} that match ${row.pattern}.`,
  run: () => change(`The policy ${row.name} was deleted.`, `${isOperator ? 'operator-policies' : 'policies'}/${
    seg(row.vhost)}/${seg(row.name)}`, 'DELETE'),
});

function policyTable(ctx, rows, isOperator) {
  const title = isOperator ? 'Operator policies' : 'Policies';
  const mayChange = isOperator ? session.is('administrator') : session.setsPolicies();
  return card(title, table({ caption: title, rows, key: (row) => `${row.vhost}\n${row.name}`,
    empty: isOperator ? 'There is no operator policy.' : 'There is no policy.', columns: [
      { label: 'Name', cell: (row) => row.name },
      ...((ctx.vhosts?.length || 0) > 1 ? [{ label: 'Virtual host', cell: (row) => row.vhost }] : []),
      { label: 'Pattern', brief: true, cell: (row) => h('code', {}, row.pattern) },
      { label: 'Applies to', cell: (row) => String(row['apply-to']).replace('_', ' ') },
      { label: 'Priority', num: true, cell: (row) => String(row.priority) },
      { label: 'Definition', brief: true, cell: (row) => policyMarks(row.definition) },
      ...(mayChange ? [{ label: '', cell: (row) => rowActions(
        button('Change', `policy ${row.name}`, () => editPolicy(ctx, isOperator, row), 'small'),
        button('Delete', `policy ${row.name}`, () => deletePolicy(isOperator, row), 'small danger')) }] : [])] }),
  mayChange ? button(isOperator ? 'Add operator policy' : 'Add policy', '', () => editPolicy(ctx, isOperator)) : null,
    true);
}

export const policiesView = {
  title: () => 'Policies',
  async load() {
    const [policies, operator] = await Promise.all([api('policies'), maybe('operator-policies')]);
    return { policies, operator: operator || [] };
  },
  draw: (ctx, { policies, operator }) => [policyTable(ctx, policies, false), policyTable(ctx, operator, true),
    h('p', { class: 'muted' }, 'Of several policies that match, the one with the highest priority applies. An operator '
      + 'policy limits it: the smaller value is effective.')],
};

// ---- definitions ----

const ALL = '';

async function exportDefinitions(vhost) {
  const definitions = await api(vhost === ALL ? 'definitions' : `definitions/${seg(vhost)}`);
  const address = URL.createObjectURL(new Blob([JSON.stringify(definitions, null, 2)], { type: 'application/json' }));
  const anchor = document.createElement('a');
  anchor.href = address;
  anchor.download = `leveret-definitions-${vhost === ALL ? 'all' : vhost.replace(/[^\w.-]/g, '_')}.json`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say('The definitions were exported.');
}

const imported = { name: null, value: null, vhost: ALL, report: null, trouble: null, isDone: false };

const importPath = (isDry) => `definitions${imported.vhost === ALL ? '' : `/${seg(imported.vhost)}`}${isDry
  ? '?dry_run=true' : ''}`;

async function readDefinitions(file) {
  Object.assign(imported, { name: null, value: null, report: null, trouble: null, isDone: false });
  if (!file) return;
  try {
    imported.value = parsed(await file.text());
    imported.name = file.name;
    if (session.can('dry-run')) imported.report = await api(importPath(true), 'POST', imported.value);
  } catch (failure) {
    imported.trouble = explain(failure);
  }
  frame.redraw();
}

const importDefinitions = () => ask({
  title: `Import ${imported.name}?`, verb: 'Import definitions', danger: true,
  text: imported.report
    ? `${countedAre(imported.report.new_count, 'objects')} added.${imported.value.users?.length
      ? ' Users of the file get the passwords of the file.' : ''}` : 'The objects of the file are added.',
  run: async () => {
    await api(importPath(false), 'POST', imported.value);
    Object.assign(imported, { added: imported.report?.new_count, report: null, value: null, isDone: true });
    say('The definitions were imported.');
    frame.refresh();
  },
});

function reportTable(title, rows, empty) {
  return rows.length ? [h('h3', {}, `${title}: ${count(rows.length)}`), table({ caption: title, rows: rows.slice(0,
    300), empty,
    key: (row) => `${row.kind}\n${row.vhost}\n${row.name}`, columns: [
      { label: 'Name', cell: (row) => row.name }, { label: 'Kind', brief: true, cell: (row) => row.kind },
      { label: 'Virtual host', cell: (row) => row.vhost || '' },
      ...(rows.some((row) => row.reason) ? [{ label: 'Reason', brief: true, cell: (row) => row.reason || '' }]
        : [])] })] : null;
}

export const definitionsView = {
  title: () => 'Definitions',
  enter: () => Object.assign(imported, { name: null, value: null, vhost: ALL, report: null, trouble: null,
    isDone: false }),
  load: async () => null,
  draw(ctx) {
    const { report } = imported;
    const hosts = [[ALL, 'All virtual hosts, with users and permissions'],
      ...(ctx.vhosts || []).map(({ name }) => [name,
      `Only virtual host ${name}`])];
    const choice = (id, label, value, onchange) => h('div', { class: 'field' }, h('label', { for: id }, label),
      h('select', { id, value, onchange }, hosts.map(([key, text]) => h('option', { value: key }, text))));
    return [h('div', { class: 'cards' },
      card('Export', [h('p', { class: 'muted' },
        'Queues, exchanges, bindings, policies, parameters, limits and users as '
        + 'JSON, in RabbitMQ’s format. Messages are not in it.'),
      choice('export-vhost', 'Virtual host', undefined, null),
      button('Export', 'definitions', () => exportDefinitions(document.getElementById('export-vhost').value).catch(
        (failure) => say(explain(failure))), 'main')]),
      card('Import', [h('p', { class: 'muted' },
        'A file of Leveret or RabbitMQ. The file is compared first; nothing is '
        + 'changed before a confirmation.'),
      choice('import-vhost', 'Virtual host', imported.vhost, (event) => {
        imported.vhost = event.target.value;
        readDefinitions(document.getElementById('import-file').files[0]);
      }),
      h('div', { class: 'field' }, h('label', { for: 'import-file' }, 'File'), h('input', { id: 'import-file',
        type: 'file',
        accept: '.json,application/json', onchange: (event) => readDefinitions(event.target.files[0]) })),
      h('div', { 'aria-live': 'polite' }, imported.trouble ? h('p', { class: 'trouble' }, imported.trouble) : null,
        imported.isDone ? h('p', {}, Number.isFinite(imported.added)
          ? `The definitions were imported: ${counted(imported.added, 'objects')} more.`
          : 'The definitions were imported.') : null),
      imported.value ? button('Import…', 'definitions', () => importDefinitions(), 'main') : null])),
    report ? card('What the import would change', [
      h('p', {}, `New: ${count(report.new_count)}. The same: ${count(report.same)}. Different: ${
        count(report.different_count)}.${report.skipped_count ? ` Skipped: ${count(report.skipped_count)}.` : ''}`),
      reportTable('New', report.new), reportTable('Different', report.different), reportTable('Skipped',
        report.skipped),
    ], null, true) : null];
  },
};

// ---- shovels ----

const SHOVEL_EXAMPLE = { 'src-protocol': 'amqp091', 'src-uri': 'amqp://', 'src-queue': 'from',
  'dest-protocol': 'amqp091', 'dest-uri': 'amqp://user:password@host:5672/%2f', 'dest-queue': 'to',
  'ack-mode': 'on-confirm' };

const editShovel = (ctx, row = {}) => ask({
  title: row.name ? `Change the shovel ${row.name}` : 'Add a shovel', verb: row.name ? 'Change shovel' : 'Add shovel',
  fields: [...(row.name ? [] : [vhostField(ctx), { name: 'name', label: 'Name', required: true }]),
    { name: 'value', label: 'Definition (JSON)', type: 'textarea', rows: 9,
      value: JSON.stringify(row.value || SHOVEL_EXAMPLE, null, 2) }],
  run: ({ vhost, name, value }) => change(`The shovel ${row.name ?? name} was saved.`,
    `parameters/shovel/${seg(row.vhost ?? vhost)}/${seg(row.name ?? name)}`, 'PUT', { value: parsed(value) }),
});

const shovelPath = (row) => `shovels/vhost/${seg(row.vhost)}/${seg(row.name)}`;

const deleteShovel = (row) => ask({
  title: `Delete the shovel ${row.name}?`, danger: true, verb: 'Delete shovel',
  text: 'It stops. Messages that it has not moved stay in the source.',
  run: () => change(`The shovel ${row.name} was deleted.`, shovelPath(row), 'DELETE'),
});

/** One end of a shovel: a queue, or an exchange with a key. */
const endOf = (row, end) => (row[`${end}_queue`] ? `queue ${row[`${end}_queue`]}`
  : row[`${end}_exchange`] ? `exchange ${row[`${end}_exchange`]}` : 'several queues');

export const shovelsView = {
  title: () => 'Shovels',
  async load() {
    const [rows, parameters] = await Promise.all([session.can('shovels') ? maybe('shovels') : null,
      session.setsPolicies() ? maybe('parameters/shovel')
      : null]);
    return { rows, parameters: parameters || [] };
  },
  draw(ctx, { rows, parameters }) {
    if (!rows) return [h('p', { class: 'empty-note' }, 'Shovels cannot be shown.')];
    const list = pageOf(rows.filter((row) => row.type !== 'static'), ctx.query, 'name');
    const isAdmin = session.is('administrator');
    const valueOfShovel = (row) => parameters.find((one) => one.name === row.name && one.vhost === row.vhost);
    return [listTools({ ctx, list, what: 'shovels',
      extra: session.setsPolicies() ? button('Add shovel', '', () => editShovel(ctx), 'main') : null }),
    table({ caption: 'Shovels', isBroad: true, ctx, sort: 'name', rows: list.rows,
      key: (row) => `${row.vhost}\n${row.name}`,
      empty: 'There is no shovel.', columns: [
        { label: 'Name', sort: 'name', cell: (row) => row.name },
        { label: 'State', sort: 'state', brief: true, cell: (row) => state(row.state) },
        { label: 'From', kind: 'long', cell: (row) => [endOf(row, 'src'), h('br', {}), h('code', {}, row.src_uri)] },
        { label: 'To', kind: 'long', cell: (row) => [endOf(row, 'dest'), h('br', {}), h('code', {}, row.dest_uri)] },
        { label: 'Moved', num: true, sort: 'forwarded', brief: true, cell: (row) => count(row.forwarded) },
        { label: 'Remaining', num: true, cell: (row) => count(row.remaining ?? NaN) },
        { label: 'Reason', kind: 'long', cell: (row) => prose(row.reason || '') },
        ...(isAdmin ? [{ label: '', cell: (row) => rowActions(
          valueOfShovel(row) ? button('Change', row.name, () => editShovel(ctx, valueOfShovel(row)), 'small') : null,
          button('Restart', row.name, () => change(`The shovel ${row.name} connects again.`,
            `${shovelPath(row)}/restart`, 'DELETE').catch((failure) => say(explain(failure))), 'small'),
          button('Delete', row.name, () => deleteShovel(row), 'small danger')) }] : [])] }),
    rows.length > list.all ? h('p', { class: 'muted' }, 'The bridges of the configuration have their own page: ',
      h('a', { href: '#/bridges' }, 'Bridge'), '.') : null];
  },
};
