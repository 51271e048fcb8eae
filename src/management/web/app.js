// The frame around the views: login, navigation, the strip of key figures, and polling. Also the views of users,
// permissions, virtual hosts, bridges and the device.

import {
  h, render, hashed, session, api, maybe, seg, count, bytes, span, remember, history, words, chart, Refused, Silent,
  Mistyped, say,  explain, ask, table, facts, card, state, pageOf, listTools,
} from './kit.js';
import * as views from './views.js';
import { alarmList, bars, vhostField, tagsOf, monitors } from './views.js';

const button = (label, about, onclick, kind = 'small') => h('button', { type: 'button', class: kind, onclick }, label,
  about ? h('span', { class: 'heard' }, ` ${about}`) : null);

/** Change something through the API, announce it, and refresh the view. */
async function change(ctx, told, path, method, body) {
  await api(path, method, body);
  say(told);
  ctx.refresh();
}

// ---- users ----

const TAGS = 'None: no management page. management: own queues. monitoring: the device too. '
  + 'administrator: everything. Several are parted by commas.';

const editUser = (ctx, row) => ask({
  title: row ? `Change the user ${row.name}` : 'Add a user', verb: row ? 'Change user' : 'Add user', fields: [
    ...(row ? [] : [{ name: 'name', label: 'Name', required: true }]),
    { name: 'password', label: row ? 'New password' : 'Password', type: 'password', required: !row,
      hint: row ? 'Left empty, it stays as it is.' : null },
    { name: 'tags', label: 'Tags', value: row ? words(row.tags).join(',') : '', hint: TAGS }],
  run: ({ name, password, tags }) => change(ctx, `The user ${row?.name ?? name} is kept.`,
    `users/${seg(row?.name ?? name)}`, 'PUT', { ...(password && hashed(password)), tags }),
});

const deleteUser = (ctx, row) => ask({
  title: `Delete the user ${row.name}?`, danger: true, verb: 'Delete user',
  text: 'Its permissions go with it, and it cannot log in any more.',
  run: () => change(ctx, `The user ${row.name} is deleted.`, `users/${seg(row.name)}`, 'DELETE'),
});

const users = {
  title: () => 'Users',
  async load() {
    const [rows, permissions] = await Promise.all([api('users'), api('permissions')]);
    return { rows, permissions };
  },
  draw(ctx, { rows, permissions }) {
    const list = pageOf(rows, ctx.query, 'name');
    const of = (name) => permissions.filter((one) => one.user === name);
    return [listTools({ ctx, list, what: 'users', extra: button('Add user', '', () => editUser(ctx), 'main') }),
      table({ caption: 'Users', ctx, sort: 'name', rows: list.rows, key: (row) => row.name, columns: [
        { label: 'Name', sort: 'name', cell: (row) => row.name },
        { label: 'Tags', cell: tagsOf },
        { label: 'May use', cell: (row) => of(row.name).map((one) => one.vhost).join(', ') || 'no virtual host' },
        { label: 'Password', cell: (row) => (row.password_hash === '' ? 'none' : 'set') },
        { label: '', cell: (row) => h('span', { class: 'deeds' },
          button('Permissions', `of ${row.name}`, () => permit(ctx, { user: row.name })),
          button('Change', row.name, () => editUser(ctx, row)),
          button('Delete', row.name, () => deleteUser(ctx, row), 'small danger')) },
      ] })];
  },
};

// ---- permissions ----

const permit = (ctx, row) => ask({
  title: row.vhost ? `Permissions of ${row.user} in ${row.vhost}` : 'Set permissions', verb: 'Set permissions',
  text: 'Regular expressions over the names of queues and exchanges. ".*" is everything, "^$" is nothing.', fields: [
    ...(row.user ? [] : [{ name: 'user', label: 'User', required: true }]),
    ...(row.vhost ? [] : [vhostField(ctx)]),
    { name: 'configure', label: 'Configure: create and delete', value: row.configure ?? '.*' },
    { name: 'write', label: 'Write: publish and bind', value: row.write ?? '.*' },
    { name: 'read', label: 'Read: consume, get and purge', value: row.read ?? '.*' }],
  run: ({ user, vhost, ...rest }) => change(ctx, 'The permissions are set.',
    `permissions/${seg(row.vhost ?? vhost)}/${seg(row.user ?? user)}`, 'PUT', rest),
});

const forbid = (ctx, row) => ask({
  title: 'Take these permissions away?', danger: true, verb: 'Take away',
  text: `${row.user} may then not use ${row.vhost} at all.`,
  run: () => change(ctx, 'The permissions are taken away.', `permissions/${seg(row.vhost)}/${seg(row.user)}`, 'DELETE'),
});

const permissions = {
  title: () => 'Permissions',
  async load() {
    const [rows, topics] = await Promise.all([api('permissions'), maybe('topic-permissions')]);
    return { rows, topics: topics || [] };
  },
  draw(ctx, { rows, topics }) {
    const code = (name, label) => ({ label, sort: name, cell: (row) => h('code', {}, row[name]) });
    const list = pageOf(rows.map((row) => ({ ...row, name: `${row.user} ${row.vhost}` })), ctx.query, 'user');
    return [listTools({ ctx, list, what: 'permissions',
      extra: button('Set permissions', '', () => permit(ctx, {}), 'main') }),
    table({ caption: 'Permissions', ctx, sort: 'user', rows: list.rows, key: (row) => `${row.user}\n${row.vhost}`,
      columns: [{ label: 'User', sort: 'user', cell: (row) => row.user },
        { label: 'Virtual host', sort: 'vhost', cell: (row) => row.vhost },
        code('configure', 'Configure'), code('write', 'Write'), code('read', 'Read'),
        { label: '', cell: (row) => h('span', { class: 'deeds' },
          button('Change', `those of ${row.user} in ${row.vhost}`, () => permit(ctx, row)),
          button('Take away', `those of ${row.user} in ${row.vhost}`, () => forbid(ctx, row), 'small danger')) }] }),
    topics.length ? card('Topic permissions', table({ caption: 'Topic permissions', rows: topics,
      key: (row) => `${row.user}\n${row.vhost}\n${row.exchange}`, columns: [
        { label: 'User', cell: (row) => row.user }, { label: 'Virtual host', cell: (row) => row.vhost },
        { label: 'Exchange', cell: (row) => row.exchange }, code('write', 'Write'), code('read', 'Read')] }),
      null, true)
      : null];
  },
};

// ---- virtual hosts ----

const addVhost = (ctx) => ask({
  title: 'Add a virtual host', verb: 'Add virtual host', fields: [{ name: 'name', label: 'Name', required: true },
    { name: 'description', label: 'Description' }],
  run: ({ name, ...rest }) => change(ctx, `The virtual host ${name} is there.`, `vhosts/${seg(name)}`, 'PUT', rest),
});

const deleteVhost = (ctx, row) => ask({
  title: `Delete the virtual host ${row.name}?`, danger: true, verb: 'Delete virtual host',
  text: `All its queues with ${count(row.messages)} messages, its exchanges and permissions are deleted. Its `
    + 'connections are closed. This cannot be undone. Type its name to go on.',
  fields: [{ name: 'typed', label: 'Name', required: true }],
  run: ({ typed }) => {
    if (typed !== row.name) throw new Mistyped('This is not its name.');
    return change(ctx, `The virtual host ${row.name} is deleted.`, `vhosts/${seg(row.name)}`, 'DELETE');
  },
});

const vhosts = {
  title: () => 'Virtual hosts',
  load: () => api('vhosts'),
  draw(ctx, rows) {
    const list = pageOf(rows, ctx.query, 'name');
    const admin = session.is('administrator');
    return [listTools({ ctx, list, what: 'virtual hosts',
      extra: admin ? button('Add virtual host', '', () => addVhost(ctx), 'main') : null }),
    table({ caption: 'Virtual hosts', ctx, sort: 'name', rows: list.rows, key: (row) => row.name, columns: [
      { label: 'Name', sort: 'name', cell: (row) => h('a', { href: `#/queues?vhost=${seg(row.name)}` }, row.name) },
      { label: 'Description', cell: (row) => row.description },
      { label: 'Tags', cell: (row) => row.tags.join(', ') },
      { label: 'Queue type', cell: (row) => row.metadata.default_queue_type },
      { label: 'Ready', sort: 'messages_ready', num: true, cell: (row) => count(row.messages_ready ?? 0) },
      { label: 'Unacked', sort: 'messages_unacknowledged', num: true,
        cell: (row) => count(row.messages_unacknowledged ?? 0) },
      { label: 'Total', sort: 'messages', num: true, cell: (row) => count(row.messages ?? 0) },
      ...(admin ? [{ label: '', cell: (row) => button('Delete', row.name, () => deleteVhost(ctx, row),
        'small danger') }] : [])] })];
  },
};

// ---- bridges ----

const seconds = (number) => (Number.isFinite(number) ? span(number * 1000) : null);

/** The part of a link's bytes in one category, unless it is 0. */
const spentOn = (kinds, name) => (kinds[name] ? bytes(kinds[name]) : null);

/** Give an order to a bridge, after a confirmation: it stays in force after a restart. */
const order = (ctx, row, verb, path, text, danger) => ask({
  title: `${verb} the bridge ${row.name}?`, verb, text, danger,
  run: () => change(ctx, `The bridge ${row.name} was told.`, `leveret/bridges/${seg(row.name)}/${path}`, 'POST') });

function orders(ctx, row) {
  if (!session.can('bridge-orders') || !session.is('administrator')) return null;
  return h('span', { class: 'deeds' },
    row.parked ? button('Send parked again…', `of ${row.name}`, () => order(ctx, row, 'Send again', 'retry',
      `${count(row.parked)} messages go back to where they were on their way to.`), '') : null,
    row.state === 'resting' ? button('Connect…', row.name, () => order(ctx, row, 'Connect', 'resume',
      'It connects at once, in both directions, and rests when there is nothing more to do.'), '') : null,
    row.state === 'paused' ? button('Resume…', row.name, () => order(ctx, row, 'Resume', 'resume',
      'It connects at once, in both directions.'), 'main')
      : button('Pause…', row.name, () => order(ctx, row, 'Pause', 'pause',
        'When what is under way is settled, nothing is moved any more until it is resumed, after restarts too.', true),
      'danger'));
}

const bridges = {
  title: () => 'Bridge',
  load: () => api('leveret/bridges'),
  draw(ctx, links) {
    if (!links.length) {
      return [h('p', { class: 'calm' }, 'No bridge is set up: this broker sends to and takes from no other.')];
    }
    links.forEach((row) => remember(`bridge ${row.name} ${row.direction}`, row));
    return [h('div', { class: 'cards' }, links.map((row) => card(
      `${row.name}: ${row.direction === 'forward' ? 'to' : 'from'} the upstream`, [
        facts([['State', state(row.state)], ['Upstream', row.upstream], ['Virtual host', row.vhost],
          ['Connected for', seconds(row.up_for)], ['Not connected for', seconds(row.down_for)],
          [row.state === 'resting' ? 'Connects by itself in' : 'Tries again in', seconds(row.retry_in)],
          ['Last error', row.last_error && `${row.last_error} (${seconds(row.last_error_ago)} ago)`],
          ['Moved', count(row.moved)], ['On their way', count(row.pending)],
          ['Sent twice, perhaps', row.repeats || null],
          ['Held by the upstream', row.held || null],
          ['Bytes today', bytes(row.day_bytes) + (row.day_bytes_max ? ` of ${bytes(row.day_bytes_max)}` : '')],
          ['Sent today, this way', spentOn(row.day_bytes_by_kind, 'sent')],
          ['Received today, this way', spentOn(row.day_bytes_by_kind, 'received')],
          ['of which twice, perhaps', spentOn(row.day_bytes_by_kind, 'repeated')],
          ['Rules that take nothing for now', !row.held_rules ? null : row.rules
            .filter((rule) => ['held', 'budget used'].includes(rule.state))
            .map((rule) => `${rule.queue}: ${rule.state}`).join(', ') || row.held_rules],
          ['Comes in a day', row.inflow_per_day === null ? null : count(row.inflow_per_day)],
          ['The disk has room for', row.outage_days === null ? null : `${row.outage_days} days of an outage`],
          ['Parked', row.parked ? count(row.parked) : null],
          ['Parked, sent again', row.retried]]),
        row.backlog === null ? null : chart({ title: 'Backlog', samples: history(`bridge ${row.name} ${row.direction}`),
          series: [{ name: 'backlog', label: 'Backlog' }], format: count })], orders(ctx, row))))];
  },
};

// ---- device ----

const device = {
  title: () => 'Device',
  async load(ctx) {
    const node = monitors() ? ctx.nodes?.[0] : null;
    return node && session.can('memory') ? api('leveret/memory') : [];
  },
  draw(ctx, memory) {
    const node = ctx.nodes?.[0];
    if (!node) return [h('p', { class: 'calm' }, 'This user may not see the device: it needs the tag monitoring.')];
    const pools = [...memory].sort((one, other) => other.bytes - one.bytes);
    const sum = Math.max(1, pools.reduce((all, { bytes: part }) => all + part, 0));
    return [card('Alarms and what to do', alarmList(ctx), null, true),
      h('div', { class: 'cards' }, card('Limits', bars(node)),
        card('Node', facts([['Name', node.name], ['Runs', node.running === false ? 'no' : 'yes'],
          ['Up for', span(node.uptime)], ['Process', node.os_pid],
          ['File descriptors', `${count(node.fd_used)} of ${count(node.fd_total)}`],
          ['Connections', `${count(node.sockets_used)}`],
          ['Data directory', node.db_dir], ['Free on its disk', bytes(node.disk_free)]])),
        card('Wear', [h('p', { class: 'quiet' }, 'What this broker has written since it started. A card that may be '
          + 'written 32 TB lasts that long at this pace.'),
        facts([['Written', bytes(node.io_write_bytes)],
          ['Forced to the disk', `${count(node.io_sync_count)} times`],
          ['A day, at this pace', node.uptime < HOUR_MS ? 'known after an hour'
            : bytes((node.io_write_bytes * 86400000) / node.uptime)],
          ['32 TB would last', lasts(node)]])])),
      pools.length ? card('Where the memory may go', [h('p', { class: 'quiet' },
        `Every part has its own bound, and they add up to ${bytes(sum)} of ${bytes(node.mem_limit)}: what is reserved `
        + 'here can be used, and no more.'),
      table({ caption: 'Memory by part', rows: pools, key: (row) => row.name, columns: [
        { label: 'Key or part', cell: (row) => h('code', {}, row.name) },
        { label: 'Share', cell: (row) => share(row.bytes / sum, row.name) },
        { label: 'At most', num: true, cell: (row) => bytes(row.bytes) }] })], null, true) : null];
  },
};

const CARD_BYTES = 32e12;

// Before that the rate is not known.
const HOUR_MS = 3600000;

function lasts(node) {
  if (node.uptime < HOUR_MS) return 'known after an hour';
  const years = (CARD_BYTES / Math.max(1, node.io_write_bytes)) * (node.uptime / (365 * 86400000));
  return years > 100 ? 'more than 100 years' : `${years.toFixed(years < 10 ? 1 : 0)} years`;
}

const share = (part, name) => h('svg', { class: 'share', viewBox: '0 0 100 6', preserveAspectRatio: 'none', role: 'img',
  'aria-label': `${name}: ${(100 * part).toFixed(1)} %` }, h('rect', { class: 'bar-back', width: 100, height: 6 }),
h('rect', { class: 'bar-front', width: Math.max(0.5, 100 * part), height: 6 }));

// ---- the frame ----

const POLL_MS = 5000;
// A broker that does not answer is polled less and less often.
const POLL_MS_MAX = 30000;
const TYPING_MS = 250;
const THEME = 'leveret.theme';

const VIEWS = {
  '': views.overview, connections: views.connections, connection: views.connection, channels: views.channels,
  exchanges: views.exchanges, exchange: views.exchange, queues: views.queues, queue: views.queue,
  users, permissions, vhosts,
  bridges, device,
};
const NAVIGATION = [['', 'Overview', 'o'], ['queues', 'Queues', 'q'], ['exchanges', 'Exchanges', 'e'],
  ['connections', 'Connections', 'c'], ['channels', 'Channels', 'h'], ['bridges', 'Bridge', 'b'],
  ['device', 'Device', 'd'], ['vhosts', 'Virtual hosts', 'v'], ['users', 'Users', 'u'],
  ['permissions', 'Permissions', 'p']];
// The navigation entry to which an object's own page belongs.
const PARENT = { queue: 'queues', exchange: 'exchanges', connection: 'connections' };

const root = document.getElementById('app');
const page = { data: null, trouble: null, silentSince: null, answeredAt: null, loginTrouble: null, loggingIn: false };
let round = 0;
let timer = null;
let failures = 0;
let typing = null;
let bridged = false;

// ---- the address ----

function place() {
  const [path, words = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const [name, ...parts] = path.split('/');
  const known = Object.hasOwn(VIEWS, name) ? name : '';
  return { name: known, parts: parts.map(decoded), query: Object.fromEntries(new URLSearchParams(words)) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

const ctx = {
  parts: [], query: {}, overview: {}, nodes: null, vhosts: null, alarms: null,
  refresh: () => poll(),
  redraw: () => draw(),
  /** Change search, order or page in the address, so that it can be bookmarked and shared. */
  change(words) {
    const query = Object.fromEntries(Object.entries({ ...ctx.query, ...words }).filter(([, value]) => value));
    const at = location.hash.split('?')[0] || '#/';
    const asked = new URLSearchParams(query).toString();
    window.history.replaceState(null, '', asked ? `${at}?${asked}` : at);
    moved();
  },
  later(words) {
    clearTimeout(typing);
    typing = setTimeout(() => ctx.change(words), TYPING_MS);
  },
};

function moved() {
  const before = `${ctx.name}/${ctx.parts?.join('/')}`;
  Object.assign(ctx, place());
  if (before !== `${ctx.name}/${ctx.parts.join('/')}`) {
    clearTimeout(typing);
    page.data = null;
    page.trouble = null;
    draw();
    window.scrollTo(0, 0);
    document.querySelector('.main-nav [aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'center' });
    // Announce the new page to screen readers.
    if (before !== 'undefined/undefined') document.getElementById('title')?.focus({ preventScroll: true });
  }
  if (session.me) poll();
}

// ---- polls ----

/** One poll of the strip's data and the view's. The next one begins some time after this one has ended. */
async function poll() {
  clearTimeout(timer);
  round += 1;
  const mine = round;
  if (!session.me || document.hidden) return;
  const view = VIEWS[ctx.name];
  try {
    await strip();
    if (mine !== round) return;
    const data = await view.load(ctx);
    if (mine !== round) return;
    if (page.silentSince) say('The broker answers again.');
    Object.assign(page, { data: { of: view, value: data }, trouble: null, silentSince: null, answeredAt: Date.now() });
    failures = 0;
  } catch (failure) {
    if (mine !== round) return;
    troubled(failure);
  }
  draw();
  if (session.me) timer = setTimeout(poll, Math.min(POLL_MS_MAX, POLL_MS * 2 ** Math.max(0, failures - 1)));
}

function troubled(failure) {
  if (failure instanceof Silent) {
    failures += 1;
    page.silentSince = page.silentSince || Date.now();
    return;
  }
  page.silentSince = null;
  if (failure instanceof Refused && failure.status === 401 && failure.message === 'Login failed') {
    leave('The login has run out.');
    return;
  }
  if (failure instanceof Refused && failure.status === 400 && ctx.query.page) {
    // The list has become shorter, and the requested page no longer exists.
    ctx.change({ page: '' });
    return;
  }
  page.trouble = failure instanceof Refused && failure.status === 404 ? 'This is not there (any more).'
    : explain(failure);
}

async function strip() {
  // The history before this page was opened is requested once.
  const ages = 'lengths_age=300&lengths_incr=15&msg_rates_age=300&msg_rates_incr=15';
  const [overview, nodes, alarms] = await Promise.all([api(`overview${history('overview').length ? '' : `?${ages}`}`),
    views.monitors() ? maybe('nodes') : null,
    session.can('alarms') ? maybe('leveret/alarms') : null]);
  Object.assign(ctx, { overview, nodes, alarms: alarms || overview.alarms });
  const node = nodes?.[0] || {};
  if (!history('overview').length) views.past(overview).forEach(({ at, values }) => remember('overview', values, at));
  remember('overview', { ...overview.queue_totals, ...views.ratesOf(overview.message_stats), mem: node.mem_used,
    store: views.storeUsed(node), flash: node.io_write_bytes_details?.rate });
}

document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : poll()));
window.addEventListener('hashchange', moved);
window.addEventListener('online', () => poll());

// ---- login ----

async function login(user, password) {
  page.loggingIn = true;
  page.loginTrouble = null;
  draw();
  await enter(() => session.begin(user, password));
}

/** Get the user and the broker's extensions. A login that is refused is deleted at once. */
async function enter(begin = () => null) {
  try {
    await begin();
    session.me = await api('whoami');
    for (const entry of await api('extensions')) (entry.leveret || []).forEach((name) => session.features.add(name));
    ctx.vhosts = await api('vhosts');
    bridged = views.monitors() && session.can('bridges') && (await api('leveret/bridges')).length > 0;
    page.loginTrouble = null;
  } catch (failure) {
    if (failure instanceof Silent && session.login?.startsWith('Bearer')) {
      // The broker does not answer at the moment: the token may still be valid.
      setTimeout(enter, POLL_MS);
      return;
    }
    const wasIn = session.login?.startsWith('Bearer');
    session.end();
    page.loginTrouble = failure instanceof Refused && failure.status === 401
      ? wasIn ? 'The login has run out.'
        : `Not logged in: ${failure.message === 'Login failed' ? 'the name or the password is wrong'
          : 'this user lacks the tag "management"'}.`
      : explain(failure);
  }
  page.loggingIn = false;
  draw();
  if (session.me) poll();
  else document.getElementById('user')?.focus();
}

async function logout() {
  // Whatever the result, the login is deleted here.
  const told = api('leveret/login', 'DELETE').catch(() => null);
  leave('You are logged out.');
  await told;
}

function leave(why) {
  round += 1;
  clearTimeout(timer);
  session.end();
  Object.assign(page, { data: null, trouble: null, silentSince: null, answeredAt: null });
  Object.assign(ctx, { overview: {}, nodes: null, vhosts: null, alarms: null });
  document.querySelectorAll('dialog').forEach((box) => box.close());
  draw();
  say(why);
}

// The icon's shapes: loading its file would be another request.
const HARE = 'M11 4c2 0 3.4 5 3.8 9h2.4C17.6 9 19 4 21 4c2.4 0 2.2 6.2.6 10.4C24 16 25 18.3 25 20.5 25 25 21 28 16 28'
  + 's-9-3-9-7.5c0-2.2 1-4.5 3.4-6.1C8.8 10.2 8.6 4 11 4z';
const logo = (size) => h('svg',
  { class: 'logo', viewBox: '0 0 32 32', width: size, height: size, 'aria-hidden': 'true' },
  h('rect', { width: 32, height: 32, rx: 8 }), h('path', { d: HARE }),
  [12.5, 19.5].map((x) => h('circle', { cx: x, cy: 20, r: 1.5 })));

function loginForm() {
  return h('main', { class: 'login', key: 'login' }, logo(56),
    h('h1', {}, 'Leveret'), h('p', { class: 'quiet' }, location.host),
    h('form', { onsubmit: (event) => {
      event.preventDefault();
      const password = document.getElementById('password');
      login(document.getElementById('user').value, password.value);
      password.value = '';
    } },
    h('label', { for: 'user' }, 'User'),
    h('input', { id: 'user', name: 'username', autocomplete: 'username', autocapitalize: 'off', spellcheck: 'false',
      required: true }),
    h('label', { for: 'password' }, 'Password'),
    h('input', { id: 'password', name: 'password', type: 'password', autocomplete: 'current-password' }),
    h('p', { role: 'alert', class: 'trouble' }, page.loginTrouble),
    h('button', { class: 'main', type: 'submit', disabled: page.loggingIn },
      page.loggingIn ? 'Logging in…' : 'Log in'),
    location.protocol === 'http:' && !/^(localhost|127\.|\[::1\])/.test(location.host)
      ? h('p', { class: 'quiet' }, 'This connection is not encrypted: the password can be read on the network.')
      : null));
}

// ---- drawing ----

const THEMES = { auto: 'System', light: 'Light', dark: 'Dark' };

function setTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
}

const themeNow = () => document.documentElement.dataset.theme || 'auto';

function navigation() {
  const here = PARENT[ctx.name] || ctx.name;
  return NAVIGATION.filter(([name]) => (name === 'bridges' ? bridged
    : name === 'device' ? views.monitors()
      : !['users', 'permissions'].includes(name) || session.is('administrator'))).map(([name, label, key]) => (
    h('a', { href: `#/${name}`, 'aria-current': here === name && 'page', title: `${label} (g ${key})` }, label)));
}

function figures() {
  const node = ctx.nodes?.[0];
  const alarms = views.alarmsOf(ctx).length;
  return h('div', { class: 'strip' },
    node ? [h('a', { href: '#/device', class: alarms ? 'state bad' : 'state' },
      h('span', { 'aria-hidden': 'true' }, alarms ? '▲ ' : '● '),
      alarms ? `${alarms} alarm${alarms > 1 ? 's' : ''}` : 'No alarms'),
    h('span', {}, 'Memory ', h('b', {}, bytes(node.mem_used)), ` of ${bytes(node.mem_limit)}`),
    h('span', { class: 'roomy' }, 'Disk free ', h('b', {}, bytes(node.disk_free)))] : null,
    page.silentSince ? h('span', { class: 'state bad' }, h('span', { 'aria-hidden': 'true' }, '▲ '), 'No answer')
      : null);
}

function frame() {
  const view = VIEWS[ctx.name];
  const title = view.title(ctx);
  document.title = `${title} – Leveret`;
  return [
    h('a', { key: 'skip', class: 'skip', href: '#main', onclick: (event) => {
      event.preventDefault();
      document.getElementById('title').focus();
    } }, 'Skip to the content'),
    h('header', { key: 'header' },
      h('a', { class: 'brand', href: '#/' }, logo(28), 'Leveret'),
      figures(),
      h('div', { class: 'who' },
        h('label', { class: 'heard', for: 'theme' }, 'Colours'),
        h('select', { id: 'theme', value: themeNow(), onchange: (event) => setTheme(event.target.value) },
          Object.entries(THEMES).map(([value, label]) => h('option', { value }, label))),
        h('span', { class: 'user', title: `Tags: ${words(session.me.tags).join(', ') || 'none'}` }, session.me.name),
        h('button', { type: 'button', onclick: logout }, 'Log out'))),
    h('nav', { key: 'nav', class: 'main-nav', 'aria-label': 'Views' }, navigation()),
    h('main', { key: 'main', id: 'main' },
      page.silentSince ? h('p', { key: 'silent', role: 'alert', class: 'banner' },
        h('b', {}, 'The broker does not answer'), ` since ${new Date(page.silentSince).toLocaleTimeString()}. `
        + 'What you see is from before. The page keeps asking. ',
        h('button', { type: 'button', onclick: poll }, 'Ask now')) : null,
      h('h1', { key: 'h1', id: 'title', tabindex: '-1' }, title),
      h('div', { key: `view ${ctx.name}/${ctx.parts.join('/')}`, class: 'view' }, content(view))),
  ];
}

function content(view) {
  if (page.trouble) return [h('p', { class: 'calm', role: 'alert' }, page.trouble)];
  if (page.data?.of !== view) return [h('p', { class: 'quiet' }, 'Loading…')];
  return view.draw(ctx, page.data.value).flat(Infinity);
}

function draw() {
  const waits = session.login?.startsWith('Bearer') && !page.loggingIn;
  render(root, session.me ? frame()
    : waits ? [h('p', { class: 'lone', key: 'lone' }, 'Loading…')] : [loginForm()]);
}

// ---- keys ----

let armed = false;

document.addEventListener('keydown', (event) => {
  const typed = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (typed || event.ctrlKey || event.altKey || event.metaKey || document.querySelector('dialog[open]')) return;
  if (armed) {
    armed = false;
    const found = NAVIGATION.find(([, , key]) => key === event.key);
    if (found) location.hash = `#/${found[0]}`;
  } else if (event.key === 'g') {
    armed = true;
  } else if (event.key === '/') {
    const search = document.getElementById('search');
    if (search) event.preventDefault();
    search?.focus();
  }
});

setTheme(Object.hasOwn(THEMES, localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : 'auto');
moved();
draw();
if (session.login) enter();
