// The frame around the views: login, navigation, the strip of key figures, polling and keys.

import {
  h, render, frame, forget, session, api, maybe, bytes, words, clock, say, hush, explain, Refused, Silent,
} from './kit.js';
import { ask, forgetCursors, isDiskShort, state, toneClass } from './widgets.js';
import { overviewView, alarmsOf, mergeHistory } from './overview.js';
import { queuesView, queueView } from './queues.js';
import { connectionsView, connectionView, channelsView, consumersView } from './clients.js';
import { exchangesView, exchangeView, routingView } from './routing.js';
import { bridgesView } from './bridge.js';
import { deviceView, logView } from './device.js';
import {
  usersView, permissionsView, vhostsView, limitsView, policiesView, definitionsView, shovelsView,
} from './access.js';
import { mqttView, retainedView } from './mqtt.js';

const POLL_MS = 5000;
// Some views show rates, for which they need a second answer.
const POLL_SOON_MS = 1500;
// A broker that does not answer is polled less and less often.
const POLL_MS_MAX = 30000;
const TYPING_MS = 250;
const THEME = 'leveret.theme';

const VIEWS = {
  '': overviewView, queues: queuesView, queue: queueView, exchanges: exchangesView, exchange: exchangeView,
  routing: routingView, connections: connectionsView, connection: connectionView, channels: channelsView,
  consumers: consumersView, mqtt: mqttView, retained: retainedView, bridges: bridgesView, shovels: shovelsView,
  vhosts: vhostsView, policies: policiesView, limits: limitsView, users: usersView, permissions: permissionsView,
  definitions: definitionsView, device: deviceView, log: logView,
};

const isAdministrator = () => session.is('administrator');
const monitors = () => session.monitors();

// Groups of entries: the view, its label, its key after g, and who may see it.
const NAVIGATION = [
  ['', [['', 'Overview', 'o']]],
  ['Messaging', [['queues', 'Queues', 'q'], ['exchanges', 'Exchanges', 'e'],
    ['routing', 'Routing', 'r', () => session.can('bindings')]]],
  ['Clients', [['connections', 'Connections', 'c'], ['channels', 'Channels', 'h'], ['consumers', 'Consumers', 'n'],
    ['mqtt', 'MQTT sessions', 'm', monitors], ['retained', 'Retained messages', 't']]],
  ['Links', [['bridges', 'Bridge', 'b', () => isBridged], ['shovels', 'Shovels', 's',
    () => monitors() && session.can('shovels')]]],
  ['Administration', [['vhosts', 'Virtual hosts', 'v'], ['policies', 'Policies', 'y'], ['limits', 'Limits', 'i',
    monitors],
    ['users', 'Users', 'u', isAdministrator], ['permissions', 'Permissions', 'p', isAdministrator],
    ['definitions', 'Definitions', 'f', isAdministrator]]],
  ['Device', [['device', 'Device', 'd', monitors],
    ['log', 'Log', 'l', () => isAdministrator() && session.can('log')]]],
];
const entries = () => NAVIGATION.flatMap(([, all]) => all).filter(([, , , allowed]) => !allowed || allowed());
// The navigation entry to which an object's own page belongs.
const PARENT = { queue: 'queues', exchange: 'exchanges', connection: 'connections' };

const root = document.getElementById('app');
const page = { data: null, trouble: null, silentSince: null, loginTrouble: null, loggingIn: false, isMenuOpen: false };
let round = 0;
let timer = null;
let failures = 0;
let typing = null;
let isBridged = false;

// ---- the address ----

function place() {
  const [path, asked = ''] = location.hash.replace(/^#\/?/, '').split('?');
  const [name, ...parts] = path.split('/');
  const known = Object.hasOwn(VIEWS, name) ? name : '';
  return { name: known, parts: parts.map(decoded), query: Object.fromEntries(new URLSearchParams(asked)) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

const ctx = {
  parts: [], path: undefined, query: {}, overview: {}, status: null, vhosts: null,
  refresh: () => poll(),
  redraw: () => draw(),
  /** Change search, order or page in the address, so that it can be bookmarked and shared. */
  change(changed) {
    const query = Object.fromEntries(Object.entries({ ...ctx.query, ...changed }).filter(([, value]) => value));
    const at = location.hash.split('?')[0] || '#/';
    const asked = new URLSearchParams(query).toString();
    window.history.replaceState(null, '', asked ? `${at}?${asked}` : at);
    moved();
  },
  later(changed) {
    clearTimeout(typing);
    typing = setTimeout(() => ctx.change(changed), TYPING_MS);
  },
};
Object.assign(frame, { redraw: ctx.redraw, refresh: ctx.refresh });

function moved() {
  const before = ctx.path;
  Object.assign(ctx, place());
  ctx.path = `${ctx.name}/${ctx.parts.join('/')}`;
  if (before !== ctx.path) {
    hush();
    clearTimeout(typing);
    forget();
    forgetCursors();
    document.querySelectorAll('dialog').forEach((box) => box.close());
    VIEWS[ctx.name].enter?.(ctx);
    Object.assign(page, { data: null, trouble: null, isMenuOpen: false });
    draw();
    window.scrollTo(0, 0);
    // Announce the new page to screen readers.
    if (before !== undefined) document.getElementById('title')?.focus({ preventScroll: true });
  }
  if (session.me) poll();
}

// ---- polls ----

/** One poll of the status and the view's data. The next one begins some time after this one has ended. */
async function poll() {
  clearTimeout(timer);
  round += 1;
  const mine = round;
  if (!session.me || document.hidden) return;
  const view = VIEWS[ctx.name];
  try {
    const [status, data] = await Promise.all([session.can('status') ? api(statusPath(view)) : null, view.load(ctx)]);
    if (mine !== round) return;
    if (page.silentSince) say('The broker answers again.');
    if (status) {
      mergeHistory(status);
      ctx.status = { ...ctx.status, ...status };
    }
    Object.assign(page, { data: { of: view, value: data }, trouble: null, silentSince: null });
    failures = 0;
  } catch (failure) {
    if (mine !== round) return;
    troubled(failure);
  }
  draw();
  const isFirst = view.asksTwice && page.polled !== ctx.path && !failures;
  page.polled = ctx.path;
  const pause = isFirst ? POLL_SOON_MS : Math.min(POLL_MS_MAX, POLL_MS * 2 ** Math.max(0, failures - 1));
  if (session.me) timer = setTimeout(poll, pause);
}

const statusPath = (view) => (view.hasHistory ? `leveret/status?since=${mergeHistory.last}` : 'leveret/status');

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
  page.trouble = failure instanceof Refused && failure.status === 404 ? ['This does not exist, or it was deleted. ',
    PARENT[ctx.name] ? h('a', { href: `#/${PARENT[ctx.name]}` }, `All ${PARENT[ctx.name]}`) : null] : explain(failure);
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
    const [extensions, overview, vhosts] = await Promise.all([api('extensions'), api('overview'),
      api('vhosts?columns=name')]);
    for (const entry of extensions) (entry.leveret || []).forEach((name) => session.features.add(name));
    Object.assign(ctx, { overview, vhosts });
    isBridged = monitors() && session.can('bridges')
      && ((await maybe('leveret/bridges?columns=name')) || []).length > 0;
    page.loginTrouble = null;
  } catch (failure) {
    session.me = null;
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
  forget();
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
  mergeHistory.last = 0;
  Object.assign(page, { data: null, trouble: null, silentSince: null });
  Object.assign(ctx, { overview: {}, status: null, vhosts: null });
  document.querySelectorAll('dialog').forEach((box) => box.close());
  // The next user of this tab must not see the data of this one.
  Object.values(VIEWS).forEach((one) => one.enter?.(ctx));
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
    h('h1', {}, 'Leveret'), h('p', { class: 'muted' }, location.host),
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
      ? h('p', { class: 'muted' }, 'This connection is not encrypted: the password can be read on the network.')
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

/** Whether there are alarms, in the bar of the menu. */
const alarmMark = (count) => state(count ? 'alarm' : 'no alarms');

function navigation() {
  const here = PARENT[ctx.name] || ctx.name;
  const visible = entries();
  const current = visible.find(([name]) => name === here);
  return [
    h('button', { type: 'button', class: 'menu-button', 'aria-expanded': String(page.isMenuOpen),
      'aria-controls': 'views', onclick: () => {
        page.isMenuOpen = !page.isMenuOpen;
        draw();
      } }, h('span', { 'aria-hidden': 'true' }, '☰ '), 'Menu',
    h('span', { class: 'muted' }, ` ${current?.[1] ?? ''} `), ctx.status ? alarmMark(alarmsOf(ctx).length) : null),
    h('div', { id: 'views', class: page.isMenuOpen ? 'open' : 'shut' }, NAVIGATION.map(([group, all]) => {
      const shown = all.filter((entry) => visible.includes(entry));
      return shown.length ? h('div', { class: 'group', key: group },
        group ? h('p', { class: 'group-name' }, group) : null,
        shown.map(([name, label, key]) => h('a', { href: `#/${name}`, key: name,
          'aria-current': here === name && 'page', title: `g ${key}`, onclick: () => {
            page.isMenuOpen = false;
            draw();
          } }, label))) : null;
    })),
  ];
}

function figures() {
  const { memory, disk } = ctx.status || {};
  const alarms = alarmsOf(ctx).length;
  const isFull = isDiskShort(ctx.status || {});
  return h('div', { class: 'strip' },
    ctx.status ? h('a', { href: monitors() ? '#/device' : '#/' }, alarms
      ? state('alarm', `${alarms} alarm${alarms > 1 ? 's' : ''}`) : state('No alarms')) : null,
    memory ? h('span', {}, 'Memory ', h('b', {}, bytes(memory.used, memory.limit)), ` of ${bytes(memory.limit)}`)
      : null,
    disk ? h('span', { class: isFull ? toneClass('state', 'full') : '' }, 'Disk ', h('b', {}, bytes(disk.live, disk.limit)),
      ` of ${bytes(disk.usable, disk.limit)}`, isFull ? ': publishers are blocked' : '') : null,
    page.silentSince ? state('No answer') : null);
}

function layout() {
  const view = VIEWS[ctx.name];
  const title = view.title(ctx, page.data?.of === view ? page.data.value : null);
  document.title = `${title} – Leveret`;
  return [
    h('a', { key: 'skip', class: 'skip', href: '#main', onclick: (event) => {
      event.preventDefault();
      document.getElementById('title').focus();
    } }, 'Skip to the content'),
    h('header', { key: 'header' },
      h('a', { class: 'brand', href: '#/', 'aria-label': 'Leveret, overview' }, logo(28), h('span', {}, 'Leveret')),
      figures(),
      h('div', { class: 'who' },
        h('button', { type: 'button', class: 'help', 'aria-label': 'Keys', onclick: showKeys }, '?'),
        h('label', { class: 'sr-only', for: 'theme' }, 'Colours'),
        h('select', { id: 'theme', value: themeNow(), onchange: (event) => setTheme(event.target.value) },
          Object.entries(THEMES).map(([value, label]) => h('option', { value }, label))),
        h('span', { class: 'user', title: `Tags: ${words(session.me.tags).join(', ') || 'none'}` }, session.me.name),
        h('button', { type: 'button', onclick: logout }, 'Log out'))),
    h('nav', { key: 'nav', class: 'main-nav', 'aria-label': 'Views' }, navigation()),
    h('main', { key: 'main', id: 'main' },
      page.silentSince ? h('p', { key: 'silent', role: 'alert', class: 'banner' },
        h('b', {}, 'The broker does not answer'), ` since ${clock(page.silentSince)}. `
        + 'The figures are from before. The page tries again by itself. ',
        h('button', { type: 'button', onclick: poll }, 'Try now')) : null,
      h('h1', { key: 'h1', id: 'title', tabindex: '-1' }, title),
      h('div', { key: `view ${ctx.name}/${ctx.parts.join('/')}`, class: 'view' }, content(view))),
  ];
}

function content(view) {
  if (page.trouble) return [h('p', { class: 'empty-note', role: 'alert' }, page.trouble)];
  if (page.data?.of !== view) return [h('p', { class: 'muted' }, 'Loading…')];
  return view.draw(ctx, page.data.value).flat(Infinity);
}

function draw() {
  const waits = session.login?.startsWith('Bearer') && !page.loggingIn;
  render(root, session.me ? layout()
    : waits ? [h('p', { class: 'centered', key: 'centered' }, 'Loading…')] : [loginForm()]);
}

// ---- keys ----

let isArmed = false;

function showKeys() {
  const rows = [['?', 'this list'], ['/', 'search'], ['j, k', 'next, previous row'], ['Enter', 'open the row'],
    ['x', 'select the row'], ['Esc', 'leave a field, close a dialog'], ['← →', 'move the cursor of a chart'],
    ...entries().map(([, label, key]) => [`g ${key}`, label])];
  ask({ title: 'Keys', wide: true, body: h('dl', { class: 'keys' }, rows.map(([key, what]) => h('div', {},
    h('dt', {}, h('kbd', {}, key)), h('dd', {}, what)))) });
}

/** Focus the next or the previous row of the list that has the focus, or of the first one. */
function step(by) {
  const rows = [...root.querySelectorAll('main .row')];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const next = rows[at < 0 ? 0 : Math.max(0, Math.min(rows.length - 1, at + by))];
  next.focus();
  next.scrollIntoView({ block: 'nearest' });
}

// A menu closes with a click beside it.
document.addEventListener('click', ({ target }) => document.querySelectorAll('details.menu[open]').forEach((menu) => {
  if (!menu.contains(target)) menu.open = false;
}));

document.addEventListener('keydown', (event) => {
  const { target, key } = event;
  const isField = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && target.type !== 'checkbox';
  if (event.ctrlKey || event.altKey || event.metaKey || !session.me || document.querySelector('dialog[open]')) return;
  if (key === 'Escape') {
    if (target.id === 'search') ctx.change({ name: '', page: '' });
    if (isField) target.blur();
    else document.querySelectorAll('details.menu[open]').forEach((menu) => { menu.open = false; });
    isArmed = false;
    return;
  }
  if (isField) return;
  if (isArmed) {
    isArmed = false;
    const found = entries().find(([, , own]) => own === key);
    if (found) location.hash = `#/${found[0]}`;
    return;
  }
  const row = target.closest?.('.row');
  if (key === 'g') isArmed = true;
  else if (key === '?') showKeys();
  else if (key === 'j' || key === 'k') step(key === 'j' ? 1 : -1);
  else if (key === 'x' && row) row.querySelector('input[type=checkbox]')?.click();
  else if (key === 'Enter' && row === target) {
    event.preventDefault();
    row.querySelector('a, .opens, button:not(.danger):not(.fold)')?.click();
  } else if (key === '/') {
    const search = document.getElementById('search');
    if (search) event.preventDefault();
    search?.focus();
  }
});

setTheme(Object.hasOwn(THEMES, localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : 'auto');
moved();
draw();
if (session.login) enter();
