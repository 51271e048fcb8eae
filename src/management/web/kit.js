// Drawing, the session, requests, formats and short histories. All other modules use this one.

const SVG = 'http://www.w3.org/2000/svg';

/** A description of an element. A `key` keeps a row's element while rows move around it. */
export function h(tag, props, ...kids) {
  return { tag, props: props || {}, kids: kids.flat(Infinity) };
}

// A child that is absent keeps its place as an empty text, so that its neighbours keep their elements.
const isText = (kid) => kid === null || typeof kid !== 'object';
const textOf = (kid) => (kid === null || kid === undefined || kid === false ? '' : String(kid));

function fits(node, kid) {
  if (isText(kid)) return node.nodeType === 3;
  return node.nodeType === 1 && node.described && node.described.tag === kid.tag
    && node.described.props.key === kid.props.key;
}

function create(kid, space) {
  if (isText(kid)) return document.createTextNode(textOf(kid));
  const inSvg = kid.tag === 'svg' ? SVG : space;
  const node = inSvg ? document.createElementNS(inSvg, kid.tag) : document.createElement(kid.tag);
  node.described = { tag: kid.tag, props: { key: kid.props.key } };
  return node;
}

function setProp(node, name, value) {
  if (name.startsWith('on')) {
    // An element keeps one listener per event; the handler is looked up when it fires.
    const event = name.slice(2);
    node.calls = node.calls || {};
    if (!(event in node.calls)) node.addEventListener(event, (fired) => node.calls[event]?.(fired));
    node.calls[event] = value;
  } else if (name === 'value' || name === 'checked' || name === 'selected') {
    node[name] = value;
  } else if (value === null || value === undefined || value === false) {
    node.removeAttribute(name);
  } else {
    node.setAttribute(name, value === true ? '' : value);
  }
}

function update(node, kid) {
  if (isText(kid)) {
    const text = textOf(kid);
    if (node.data !== text) node.data = text;
    return;
  }
  const before = node.described.props;
  // Children come first: a select accepts a value only if its options exist.
  render(node, kid.kids);
  for (const name of Object.keys(before)) if (!(name in kid.props)) setProp(node, name, null);
  for (const [name, value] of Object.entries(kid.props)) {
    // Compared with the last drawing, not with the page, so that the user's input since then stays.
    if (name !== 'key' && value !== before[name]) setProp(node, name, value);
  }
  node.described = { tag: kid.tag, props: kid.props };
}

/** Make the children of `parent` match `kids`, changing only what differs. */
export function render(parent, kids) {
  const space = parent.namespaceURI === SVG ? SVG : null;
  const wanted = new Set(kids.filter((kid) => !isText(kid) && kid.props.key !== undefined).map((kid) => kid.props.key));
  const kept = new Map();
  for (const node of [...parent.childNodes]) {
    const key = node.described?.props.key;
    if (key === undefined) continue;
    if (wanted.has(key)) kept.set(key, node);
    else node.remove();
  }
  let at = parent.firstChild;
  for (const kid of kids) {
    const key = isText(kid) ? undefined : kid.props.key;
    let node = key === undefined ? at : kept.get(key);
    if (!node || !fits(node, kid)) {
      const fresh = create(kid, space);
      if (node && node === at) {
        at = at.nextSibling;
        node.replaceWith(fresh);
      } else {
        parent.insertBefore(fresh, at);
      }
      node = fresh;
    } else if (node === at) {
      at = at.nextSibling;
    } else {
      parent.insertBefore(node, at);
    }
    update(node, kid);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** Functions of the frame that widgets call. `app.js` sets them. */
export const frame = { redraw: () => null, refresh: () => null };

// ---- session ----

const TOKEN = 'leveret.token';

/**
 * The logged-in user. The password is sent once and not kept. The token is kept for this tab alone: a cookie would be
 * sent to every port of the host.
 */
export const session = {
  login: sessionStorage.getItem(TOKEN) && `Bearer ${sessionStorage.getItem(TOKEN)}`,
  me: null,
  features: new Set(),
  async begin(user, password) {
    const octets = new TextEncoder().encode(`${user}:${password}`);
    this.login = `Basic ${btoa(Array.from(octets, (octet) => String.fromCharCode(octet)).join(''))}`;
    const { token } = await api('leveret/login', 'POST');
    sessionStorage.setItem(TOKEN, token);
    this.login = `Bearer ${token}`;
  },
  end() {
    this.login = null;
    this.me = null;
    this.features.clear();
    histories.clear();
    forget();
    sessionStorage.removeItem(TOKEN);
  },
  /** Whether the broker has a part of the API. Parts that it lacks are not shown. */
  can(feature) {
    return this.features.has(feature);
  },
  is(tag) {
    return words(this.me?.tags).includes(tag);
  },
  /** Whether this user may see the whole broker, not only its virtual hosts. */
  monitors() {
    return this.is('monitoring') || this.is('administrator');
  },
  /** Whether this user may change policies. */
  setsPolicies() {
    return this.is('policymaker') || this.is('administrator');
  },
};

/** The broker refused the request. `status` is the HTTP status. */
export class Refused extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

/** The broker did not answer at all. */
export class Silent extends Error {}

/** The input cannot be sent; the message says why. */
export class Mistyped extends Error {}

const ANSWER_MAX_MS = 15000;
const RARELY_MS = 30000;
const KEPT_MAX = 24;
// Answers of the present view with their ETags, by path.
const kept = new Map();

/** Forget all kept answers: the view is another one. */
export function forget() {
  kept.clear();
}

/** Ask everything again at the next poll: something was changed. */
export function outdate() {
  for (const one of kept.values()) one.at = 0;
}

/** Send a request to the API. `path` is without /api/; its parts are encoded by `seg` already. */
export async function api(path, method = 'GET', body = undefined) {
  // A browser would remove these parts from the path, and the request would name another object.
  if (path.split('?')[0].split('/').some((part) => part === '.' || part === '..')) {
    throw new Mistyped('A page cannot name an object that is called "." or "..". Use leveretctl.');
  }
  const headers = { Authorization: session.login, 'X-Requested-With': 'page' };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const known = method === 'GET' ? kept.get(path) : null;
  if (known?.tag) headers['If-None-Match'] = known.tag;
  const aborter = new AbortController();
  const timer = setTimeout(() => aborter.abort(), ANSWER_MAX_MS);
  let answer;
  let text;
  try {
    answer = await fetch(`api/${path}`, {
      method, headers, credentials: 'omit', cache: 'no-store', signal: aborter.signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    text = await answer.text();
  } catch (failure) {
    throw new Silent(failure.message);
  } finally {
    clearTimeout(timer);
  }
  if (answer.status === 304 && known) {
    known.at = Date.now();
    return known.value;
  }
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    value = null;
  }
  if (answer.status >= 502 && answer.status <= 504) throw new Silent(`status ${answer.status}`);
  if (!answer.ok) throw new Refused(answer.status, reasonOf(value) || `status ${answer.status}`);
  if (method === 'GET' && !path.includes('since=')) {
    kept.set(path, { tag: answer.headers.get('etag'), value, at: Date.now() });
    // Searches of the same view have many paths.
    if (kept.size > KEPT_MAX) kept.delete(kept.keys().next().value);
  } else if (method !== 'GET') {
    outdate();
  }
  return value;
}

function reasonOf(value) {
  const reason = value?.reason ?? value?.error;
  return typeof reason === 'string' ? reason : reason && JSON.stringify(reason);
}

/** Request data that this user may lack rights for: null in that case. */
export async function maybe(path, ask = api) {
  try {
    return await ask(path);
  } catch (failure) {
    if (failure instanceof Refused && [400, 401, 403, 404, 405].includes(failure.status)) return null;
    throw failure;
  }
}

/** Request data that rarely changes: once per view, every 30 s, and after a change by this page. */
export async function rarely(path) {
  const known = kept.get(path);
  return known && Date.now() - known.at < RARELY_MS ? known.value : api(path);
}

/** A name as one part of a path; RabbitMQ writes the vhost `/` as %2F. */
export const seg = (name) => encodeURIComponent(name);

/** Change something through the API, announce it, and refresh the view. */
export async function change(told, path, method, body) {
  const answer = await api(path, method, body);
  say(told);
  frame.refresh();
  return answer;
}

// ---- formats ----

const COUNT = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });

/** A count with separators; a dash if it is unknown. */
export const count = (number) => (Number.isFinite(number) ? COUNT.format(number) : '–');

/** A count with its noun. */
export const counted = (number, noun) => `${count(number)} ${number === 1 ? noun.replace(/ies$/, 'y').replace(/s$/, '')
  : noun}`;

/** A count with its noun and its verb. */
export const countedAre = (number, noun) => `${counted(number, noun)} ${number === 1 ? 'is' : 'are'}`;

const KIBI = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
const KILO = ['B', 'kB', 'MB', 'GB', 'TB'];

/**
 * Bytes in powers of 1000, or in powers of 1024 if `like`, the limit beside it, is a whole number of MiB. So a limit is
 * drawn as it is configured: the configuration knows both MB and MiB.
 */
export function bytes(number, like = number) {
  if (!Number.isFinite(number)) return '–';
  const binary = like > 0 && like % 2 ** 20 === 0;
  const [units, base] = binary ? [KIBI, 1024] : [KILO, 1000];
  let at = 0;
  let rest = number;
  while (Math.abs(rest) >= base && at < units.length - 1) {
    rest /= base;
    at += 1;
  }
  const text = at === 0 || rest >= 100 ? Math.round(rest) : rest.toFixed(1).replace(/\.0$/, '');
  return `${text} ${units[at]}`;
}

/** A rate per second. */
export function rate(number) {
  if (!Number.isFinite(number)) return '–';
  return `${number >= 100 ? COUNT.format(number) : number.toFixed(1).replace('.0', '')}/s`;
}

/** A rate of bytes per second. */
export const byteRate = (number) => (Number.isFinite(number) ? `${bytes(number >= 1 ? Math.round(number) : 0)}/s`
  : '–');

/** The rate of a counter in an object with RabbitMQ's `message_stats`. */
export const statRate = (row, name) => row.message_stats?.[`${name}_details`]?.rate;

/** A duration in its two largest units. */
export function span(milliseconds) {
  if (!Number.isFinite(milliseconds)) return '–';
  if (milliseconds > 0 && milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return '0 s';
  const [size, unit] = parts[first];
  const [smaller, smallerUnit] = parts[first + 1] || [1, ''];
  const rest = smallerUnit ? Math.floor((seconds % size) / smaller) : 0;
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${smallerUnit}` : ''}`;
}

const CLOCK = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const DAY = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });

/** The time of day, with the date if it is not today. */
export function clock(ms) {
  if (!Number.isFinite(ms)) return '–';
  const at = new Date(ms);
  const today = at.toDateString() === new Date().toDateString();
  const year = at.getFullYear() === new Date().getFullYear() ? '' : ` ${at.getFullYear()}`;
  return today ? CLOCK.format(at) : `${DAY.format(at)}${year} ${CLOCK.format(at)}`;
}

/** A list of words: RabbitMQ sends both arrays and comma-separated texts. */
export const words = (value) => (Array.isArray(value) ? value : String(value || '').split(',')).filter(Boolean);

/** Parse JSON that was typed; an error has a readable message. */
export function parsed(text) {
  try {
    return JSON.parse(text.trim() || '{}');
  } catch (failure) {
    throw new Mistyped(`Not JSON: ${failure.message}`);
  }
}

// ---- histories ----

const SAMPLES_MAX = 121;
const HISTORIES_MAX = 1200;
const histories = new Map();

/** Remember a sample for a chart or a sparkline, and at most `most` of that name. */
export function remember(name, values, at = Date.now(), most = SAMPLES_MAX) {
  const row = histories.get(name) || [];
  // A refresh right after a change would be a second sample of the same moment.
  if (row.length && at - row.at(-1).at < 1000) row.pop();
  row.push({ at, values });
  if (row.length > most) row.shift();
  // Least recently drawn first.
  histories.delete(name);
  histories.set(name, row);
  if (histories.size > HISTORIES_MAX) histories.delete(histories.keys().next().value);
}

// The time between the broker's samples.
const SAMPLE_MS = 5000;

/**
 * The age of the broker's newest sample in milliseconds, from the value now and the last two samples. The board's clock
 * may differ from that of the browser. A sample is at most 5 s old.
 */
export function ageOf(now, newest, before) {
  const share = (now - newest) / (newest - before);
  return Number.isFinite(share) ? Math.max(0, Math.min(1, share)) * SAMPLE_MS : 0;
}

/** The samples remembered under a name, oldest first. */
export const samplesOf = (name) => histories.get(name) || [];

// ---- small parts of all views ----

/** Remove the message of an earlier view, unless it is new: a deletion leads to another view. */
export function hush() {
  if (Date.now() - say.at > 1000) document.getElementById('said').textContent = '';
}

/** Show a message, and announce it to screen readers. */
export function say(text) {
  const place = document.getElementById('said');
  say.at = Date.now();
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ''; }, 6000);
}

// RabbitMQ's text about an unknown key of a policy.
const UNKNOWN_KEY = /\[?\{<<"(.+?)">>.*are not recognised policy settings/s;

/** The message for the user about a failure. */
export function explain(failure) {
  if (failure instanceof Silent) return 'The broker did not answer. It is not known whether this was done.';
  if (failure instanceof Refused && failure.status === 401) return `Not allowed: ${failure.message}`;
  if (failure instanceof Refused || failure instanceof Mistyped) {
    const [, key] = failure.message.match(UNKNOWN_KEY) || [];
    return key ? `"${key}" is not a key of a policy. Check its spelling.` : failure.message;
  }
  throw failure;
}

/** A button. `about` completes its name for screen readers. */
export const button = (label, about, onclick, kind = '') => h('button', { type: 'button', class: kind || null,
  onclick },
  label, about ? h('span', { class: 'sr-only' }, ` ${about}`) : null);

/** A name that breaks between its parts if it is too long for its place. */
export const breakable = (name) => String(name).split(/(?<=[./_:-])/).flatMap((part, at) => (at ? [h('wbr'), part]
  : [part]));

/** A text of the broker. What is between backticks is drawn as code. */
export const prose = (text) => String(text).split('`').map((part, at) => (at % 2 ? h('code', {}, part) : part));

/** A link to an object's own page. */
export const link = (kind, vhost, name, text) => h('a', { href: `#/${kind}/${seg(vhost)}/${seg(name)}` },
  breakable(text ?? name));

/** An exchange's name, with a word for the default exchange, whose name is empty. */
export const exchangeName = (name) => name || '(default)';
