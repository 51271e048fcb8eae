// The base of all views: drawing, the session, requests, formats, histories, and components: dialogs, tables,
// charts, bars.

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

// ---- session ----

const TOKEN = 'leveret.token';

/**
 * The user who is logged in. The password is sent once and not kept. The token is kept for this tab alone: a cookie
 * would be sent to every port of the host.
 */
export const session = {
  login: sessionStorage.getItem(TOKEN) && `Bearer ${sessionStorage.getItem(TOKEN)}`,
  me: null,
  features: new Set(),
  async begin(user, password) {
    const bytes = new TextEncoder().encode(`${user}:${password}`);
    this.login = `Basic ${btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''))}`;
    const { token } = await api('leveret/login', 'POST');
    sessionStorage.setItem(TOKEN, token);
    this.login = `Bearer ${token}`;
  },
  end() {
    this.login = null;
    this.me = null;
    this.features.clear();
    histories.clear();
    sessionStorage.removeItem(TOKEN);
  },
  /** Whether the broker has a part of the API. Parts that it lacks are not shown. */
  can(feature) {
    return this.features.has(feature);
  },
  is(tag) {
    const tags = this.me?.tags || [];
    return (Array.isArray(tags) ? tags : tags.split(',')).includes(tag);
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

/** Send a request to the API. `path` is without /api/; its parts are encoded by `seg` already. */
export async function api(path, method = 'GET', body = undefined) {
  const headers = { Authorization: session.login, 'X-Requested-With': 'page' };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), ANSWER_MAX_MS);
  let answer;
  let text;
  try {
    answer = await fetch(`api/${path}`, {
      method, headers, credentials: 'omit', cache: 'no-store', signal: patience.signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    text = await answer.text();
  } catch (failure) {
    throw new Silent(failure.message);
  } finally {
    clearTimeout(timer);
  }
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    value = null;
  }
  if (answer.status >= 502 && answer.status <= 504) throw new Silent(`status ${answer.status}`);
  if (!answer.ok) throw new Refused(answer.status, reasonOf(value) || `status ${answer.status}`);
  return value;
}

function reasonOf(value) {
  const reason = value?.reason ?? value?.error;
  return typeof reason === 'string' ? reason : reason && JSON.stringify(reason);
}

/** Request data that this user may lack rights for: null in that case. */
export async function maybe(path) {
  try {
    return await api(path);
  } catch (failure) {
    if (failure instanceof Refused && [400, 401, 403, 404, 405].includes(failure.status)) return null;
    throw failure;
  }
}

/** A name as one part of a path; RabbitMQ writes the vhost `/` as %2F. */
export const seg = (name) => encodeURIComponent(name);

// ---- formats ----

const COUNT = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });

/** A count with separators; a dash if it is unknown. */
export const count = (number) => (Number.isFinite(number) ? COUNT.format(number) : '–');

/** Bytes in powers of 1000, as in the command line and the configuration. */
export function bytes(number) {
  if (!Number.isFinite(number)) return '–';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let at = 0;
  let rest = number;
  while (Math.abs(rest) >= 1000 && at < units.length - 1) {
    rest /= 1000;
    at += 1;
  }
  return `${at === 0 || rest >= 100 ? Math.round(rest) : rest.toFixed(1)} ${units[at]}`;
}

/** A rate per second. */
export function rate(number) {
  if (!Number.isFinite(number)) return '–';
  return `${number >= 100 || number === 0 ? COUNT.format(number) : number.toFixed(1)}/s`;
}

/** A duration in its two largest units. */
export function span(milliseconds) {
  if (!Number.isFinite(milliseconds)) return '–';
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return '0 s';
  const [size, unit] = parts[first];
  const [smaller, smallerUnit] = parts[first + 1] || [1, ''];
  const rest = smallerUnit ? Math.floor((seconds % size) / smaller) : 0;
  return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${smallerUnit}` : ''}`;
}

/** A list of words: RabbitMQ sends both arrays and comma-separated texts. */
export const words = (value) => (Array.isArray(value) ? value : String(value || '').split(',')).filter(Boolean);

// ---- histories ----

const SAMPLES_MAX = 360;
const histories = new Map();

/** Remember a sample for a chart. */
export function remember(name, values, at = Date.now()) {
  const row = histories.get(name) || [];
  row.push({ at, values });
  if (row.length > SAMPLES_MAX) row.shift();
  histories.set(name, row);
  // A session that shows thousands of queues keeps only the newest charts.
  if (histories.size > 64) histories.delete(histories.keys().next().value);
}

/** The samples remembered under a name, oldest first. */
export const history = (name) => histories.get(name) || [];

/** Show a message, and announce it to screen readers. */
export function say(text) {
  const place = document.getElementById('said');
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ''; }, 6000);
}

/** The message for the user about a failure. */
export function explain(failure) {
  if (failure instanceof Silent) return 'The broker did not answer. It is not known whether this was done.';
  if (failure instanceof Refused && failure.status === 401) return `Not allowed: ${failure.message}`;
  if (failure instanceof Refused || failure instanceof Mistyped) return failure.message;
  throw failure;
}

// ---- dialogs ----

let dialogs = 0;

/**
 * A dialog with fields and one action. `run` gets the values and carries it out. Its errors are shown in the
 * dialog, which stays open with the user's input.
 */
export function ask({ title, text, fields = [], verb, danger = false, run }) {
  const box = document.createElement('dialog');
  dialogs += 1;
  const id = `dialog${dialogs}`;
  box.setAttribute('aria-labelledby', `${id}-title`);
  const before = document.activeElement;
  let trouble = null;
  let busy = false;
  const draw = () => render(box, [
    h('form', { onsubmit: submit, novalidate: true },
      h('h2', { id: `${id}-title` }, title),
      text ? h('p', {}, text) : null,
      fields.map((field) => fieldOf(field, id)),
      h('p', { role: 'alert', class: 'trouble' }, trouble),
      h('div', { class: 'deeds' },
        h('button', { type: 'button', onclick: () => box.close() }, verb ? 'Cancel' : 'Close'),
        verb ? h('button', { type: 'submit', class: danger ? 'danger' : 'main', 'aria-disabled': busy && 'true' }, verb)
          : null)),
  ]);
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    const missing = fields.find((field) => field.required && !valueOf(box, field, id));
    trouble = missing ? `${missing.label} is missing.` : null;
    busy = !missing;
    draw();
    if (missing) {
      box.querySelector(`#${id}-${missing.name}`).focus();
      return;
    }
    try {
      await run(Object.fromEntries(fields.map((field) => [field.name, valueOf(box, field, id)])));
      box.close();
    } catch (failure) {
      trouble = explain(failure);
    } finally {
      busy = false;
      if (box.open) draw();
    }
  };
  box.addEventListener('close', () => {
    box.remove();
    if (before?.isConnected) before.focus();
  });
  document.getElementById('dialogs').append(box);
  draw();
  box.showModal();
  // A destructive button is not at the position of the button that opened the dialog.
  (box.querySelector('input, textarea, select') || box.querySelector('button')).focus();
}

function valueOf(box, field, id) {
  const input = box.querySelector(`#${id}-${field.name}`);
  if (field.type === 'checkbox') return input.checked;
  if (field.type === 'number') return input.value === '' ? null : Number(input.value);
  return input.value;
}

function fieldOf(field, id) {
  const own = { id: `${id}-${field.name}`, 'aria-describedby': field.hint && `${id}-${field.name}-hint` };
  const hint = field.hint ? h('small', { id: `${id}-${field.name}-hint` }, field.hint) : null;
  const label = h('label', { for: own.id }, field.label);
  if (field.type === 'checkbox') {
    return h('div', { class: 'field tick' }, h('input', { ...own, type: 'checkbox', checked: Boolean(field.value) }),
      label, hint);
  }
  let input;
  if (field.type === 'select') {
    input = h('select', { ...own, value: field.value },
      field.options.map(([value, words]) => h('option', { value }, words)));
  } else if (field.type === 'textarea') {
    input = h('textarea', { ...own, rows: 6, value: field.value ?? '', spellcheck: 'false' });
  } else {
    input = h('input', {
      ...own, type: field.type || 'text', value: field.value ?? '', required: field.required,
      autocomplete: field.type === 'password' ? 'new-password' : 'off', autocapitalize: 'off', spellcheck: 'false',
      min: field.type === 'number' ? field.min ?? 0 : null, placeholder: field.placeholder,
    });
  }
  return h('div', { class: 'field' }, label, input, hint);
}

// ---- lists ----

const PAGE_ROWS = 100;

/** RabbitMQ's query parameters of a list, from the page's address. */
export function listQuery(query, sort) {
  const words = new URLSearchParams({ page: query.page || '1', page_size: String(PAGE_ROWS) });
  if (query.name) {
    words.set('name', query.name);
    words.set('use_regex', 'false');
  }
  words.set('sort', query.sort || sort);
  if (query.down) words.set('sort_reverse', 'true');
  return words.toString();
}

const deep = (row, path) => path.split('.').reduce((at, name) => at?.[name], row);

/** One page of a list, whether the broker divided it (an object with `items`) or sent all of it (an array). */
export function pageOf(answer, query, sort) {
  if (!Array.isArray(answer)) {
    return {
      rows: answer.items, page: answer.page, pages: Math.max(1, answer.page_count), found: answer.filtered_count,
      all: answer.total_count,
    };
  }
  const wanted = (query.name || '').toLowerCase();
  const by = query.sort || sort;
  const sign = query.down ? -1 : 1;
  const rows = answer.filter((row) => !wanted || String(row.name ?? '').toLowerCase().includes(wanted))
    .sort((one, other) => {
      const [a, b] = [deep(one, by) ?? '', deep(other, by) ?? ''];
      return (a < b ? -1 : Number(a > b)) * sign;
    });
  const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  const page = Math.min(pages, Number(query.page) || 1);
  return { rows: rows.slice((page - 1) * PAGE_ROWS, page * PAGE_ROWS), page, pages, found: rows.length,
    all: answer.length };
}

/**
 * A table. A column has `label`, `cell(row)`, and may have `sort` (the field's name) and `num`. On a phone its
 * rows become cards, so each cell has its label; the roles keep it a table for screen readers.
 */
export function table({ caption, columns, rows, key, ctx, sort, empty }) {
  const by = ctx?.query.sort || sort;
  return h('div', { class: 'scroll', role: 'group', 'aria-label': caption, tabindex: '0' },
    h('table', { role: 'table' },
      h('caption', { class: 'heard' }, caption),
      h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' }, columns.map((column) => headOf(column, ctx, by)))),
      h('tbody', { role: 'rowgroup' }, rows.length
        ? rows.map((row) => h('tr', { role: 'row', key: key(row) }, columns.map((column) => h('td', {
          role: 'cell', class: column.num && 'num', 'data-label': column.label,
        }, column.cell(row)))))
        : h('tr', { role: 'row' }, h('td', { role: 'cell', colspan: columns.length, class: 'none' },
          empty || 'None')))));
}

function headOf(column, ctx, by) {
  const props = { role: 'columnheader', scope: 'col', class: column.num && 'num' };
  if (!column.sort || !ctx) return h('th', props, column.label || h('span', { class: 'heard' }, 'Actions'));
  const on = column.sort === by;
  const down = on && Boolean(ctx.query.down);
  // Numbers are sorted with the largest first.
  const next = on ? !down : Boolean(column.num);
  return h('th', { ...props, 'aria-sort': on ? (down ? 'descending' : 'ascending') : 'none' },
    h('button', {
      type: 'button', class: 'sort',
      onclick: () => ctx.change({ sort: column.sort, down: next ? '1' : '', page: '' }),
    }, column.label, h('span', { 'aria-hidden': 'true', class: 'arrow' }, on ? (down ? ' ▾' : ' ▴') : '')));
}

/** Search, vhost and pages of a list. */
export function listTools({ ctx, list, what, vhosts, extra }) {
  const { query } = ctx;
  return h('div', { class: 'tools' },
    h('form', { role: 'search', onsubmit: (event) => event.preventDefault() },
      h('label', { class: 'heard', for: 'search' }, `Search ${what} by name`),
      h('input', {
        id: 'search', type: 'search', placeholder: `Search ${what}  ( / )`, value: query.name || '',
        autocomplete: 'off', spellcheck: 'false', oninput: (event) => ctx.later({ name: event.target.value, page: '' }),
      })),
    vhosts && vhosts.length > 1 ? h('div', {},
      h('label', { class: 'heard', for: 'vhost' }, 'Virtual host'),
      h('select', { id: 'vhost', value: query.vhost ?? '', onchange: (event) => ctx.change(
        { vhost: event.target.value, page: '' }) },
      h('option', { value: '' }, 'All virtual hosts'),
      vhosts.map((vhost) => h('option', { value: vhost.name }, vhost.name)))) : null,
    h('span', { class: 'found' }, list.found === list.all ? `${count(list.all)} ${what}`
      : `${count(list.found)} of ${count(list.all)} ${what}`),
    list.pages > 1 ? h('nav', { 'aria-label': 'Pages', class: 'pages' },
      h('button', { type: 'button', disabled: list.page <= 1, 'aria-label': 'Previous page',
        onclick: () => ctx.change({ page: String(list.page - 1) }) }, '‹'),
      h('span', {}, `${list.page} / ${list.pages}`),
      h('button', { type: 'button', disabled: list.page >= list.pages, 'aria-label': 'Next page',
        onclick: () => ctx.change({ page: String(list.page + 1) }) }, '›')) : null,
    h('span', { class: 'grow' }), extra);
}

/** Terms and their values. Rows whose value is null or undefined are omitted. */
export function facts(rows) {
  return h('dl', { class: 'facts' }, rows.filter(([, value]) => value !== null && value !== undefined && value !== '')
    .map(([term, value]) => h('div', {}, h('dt', {}, term), h('dd', {}, value))));
}

/** A card with a heading and, to its right, the actions. */
export function card(title, kids, deeds, wide) {
  return h('section', { class: wide ? 'card wide' : 'card', 'aria-label': title },
    h('div', { class: 'head' }, h('h2', {}, title), deeds), kids);
}

/** A word with a shape, because colour alone is not accessible. */
export function state(word) {
  const bad = /down|blocked|terminat|fail|alarm|crash|stopp/.test(word);
  const busy = /flow|starting|waiting|blocking|full/.test(word);
  return h('span', { class: `state ${bad ? 'bad' : busy ? 'busy' : ''}` },
    h('span', { 'aria-hidden': 'true' }, bad ? '▲ ' : busy ? '◆ ' : '● '), word);
}

/** A bar against its limit. `over`: the limit has been reached. */
export function bar(label, value, limit, text, over) {
  const known = Number.isFinite(value) && Number.isFinite(limit) && limit > 0;
  const part = known ? Math.max(0, Math.min(100, (100 * value) / limit)) : 0;
  const spoken = known ? `${label}: ${Math.round(part)} %` : `${label}: not known`;
  return h('div', { class: over ? 'bar over' : 'bar' },
    h('div', { class: 'bar-text' }, h('span', {}, label), h('span', {}, text)),
    h('svg', { viewBox: '0 0 100 6', preserveAspectRatio: 'none', role: 'img', 'aria-label': spoken },
      h('rect', { class: 'bar-back', width: 100, height: 6 }),
      h('rect', { class: 'bar-front', width: part, height: 6 })));
}

// ---- charts ----

const WIDE = 600;
const HIGH = 130;
// Missed polls (a hidden page, a broker that does not answer) are a gap in the line.
const GAP_MS = 20000;

/**
 * A chart of remembered samples: `series` are {name, label}, drawn over the time that the samples span. `limit` is a
 * horizontal mark. "Table" shows the same figures for users who cannot see the lines.
 */
export function chart({ title, samples, series, format, limit }) {
  const shown = series.filter(({ name }) => samples.some(({ values }) => Number.isFinite(values[name])));
  const top = niceTop(Math.max(1, limit || 0, ...samples.flatMap(({ values }) => shown.map(({ name }) =>
    values[name] || 0))), format);
  const from = samples[0]?.at ?? 0;
  const length = Math.max(60000, (samples.at(-1)?.at ?? 0) - from);
  const x = (at) => (WIDE * (at - from)) / length;
  const y = (value) => HIGH - (HIGH * value) / top;
  const last = samples.at(-1)?.values || {};
  return h('figure', { class: 'chart' },
    h('figcaption', {}, h('span', { class: 'chart-title' }, title),
      h('span', { class: 'legend' }, shown.map(({ name, label }, at) => h('span', {},
        h('span', { class: `swatch s${at}`, 'aria-hidden': 'true' }), `${label} `,
        h('b', {}, format(last[name])))))),
    h('div', { class: 'plot' },
      h('span', { class: 'scale', 'aria-hidden': 'true' }, format(top)),
      h('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: 'none', role: 'img',
        'aria-label': `${title}: ${shown.map(({ name, label }) => `${label} ${format(last[name])}`).join(', ')}` },
      [0, 0.5, 1].map((part) => h('line', { class: 'grid', x1: 0, x2: WIDE, y1: HIGH * part, y2: HIGH * part })),
      limit ? h('line', { class: 'limit', x1: 0, x2: WIDE, y1: y(limit), y2: y(limit) }) : null,
      shown.map(({ name }, at) => h('path', { class: `line s${at}`, d: lineOf(samples, name, x, y) }))),
      h('span', { class: 'ago', 'aria-hidden': 'true' }, samples.length < 2 ? 'collecting…'
        : `last ${Math.max(1, Math.round(((samples.at(-1).at) - from) / 60000))} min`)),
    h('details', {}, h('summary', {}, 'Table'), h('table', { class: 'small' },
      h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Time'),
        shown.map(({ label }) => h('th', { scope: 'col', class: 'num' }, label)))),
      h('tbody', {}, samples.slice(-12).reverse().map(({ at, values }) => h('tr', {},
        h('td', {}, new Date(at).toLocaleTimeString()),
        shown.map(({ name }) => h('td', { class: 'num' }, format(values[name])))))))));
}

function lineOf(samples, name, x, y) {
  let path = '';
  let before = -Infinity;
  for (const { at, values } of samples) {
    const value = values[name];
    if (!Number.isFinite(value)) continue;
    path += `${at - before > GAP_MS ? 'M' : 'L'}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    before = at;
  }
  return path;
}

// The axis ends at a round figure, so that it does not change with each sample. Bytes are rounded to powers of two.
function niceTop(value, format) {
  if (format !== count && format !== rate) return 2 ** Math.ceil(Math.log2(value));
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= value) * power;
  return format === count ? Math.max(2, step) : step;
}

// ---- payloads ----

const HEX_BYTES_MAX = 4096;

/** A message's payload as text, JSON, hex or base64, as chosen. Always text, never markup. */
export function payloadText(message, view) {
  const coded = message.payload_encoding === 'base64';
  let raw;
  try {
    raw = coded ? Uint8Array.from(atob(message.payload), (letter) => letter.charCodeAt(0))
      : new TextEncoder().encode(message.payload);
  } catch {
    return String(message.payload);
  }
  if (view === 'base64') return btoa(Array.from(raw, (byte) => String.fromCharCode(byte)).join(''));
  if (view === 'hex') return hexOf(raw);
  const text = coded ? new TextDecoder().decode(raw) : message.payload;
  if (view === 'json') {
    try {
      return JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      return `Not JSON.\n${text}`;
    }
  }
  return coded ? `Not text (shown with replacements).\n${text}` : text;
}

function hexOf(raw) {
  const lines = [];
  for (let at = 0; at < Math.min(raw.length, HEX_BYTES_MAX); at += 16) {
    const row = [...raw.slice(at, at + 16)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const shown = row.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : '·')).join('');
    lines.push(`${at.toString(16).padStart(6, '0')}  ${hex.padEnd(47)}  ${shown}`);
  }
  if (raw.length > HEX_BYTES_MAX) lines.push(`… ${raw.length - HEX_BYTES_MAX} bytes more`);
  return lines.join('\n');
}

// ---- passwords ----

const ROUNDS = 20000;
const TEXT = new TextEncoder();

// The constants of SHA-256: fractional bits of the square and cube roots of the first primes.
const primes = [];
for (let number = 2; primes.length < 64; number += 1) {
  if (primes.every((prime) => number % prime)) primes.push(number);
}
const bitsOf = (root) => ((root % 1) * 2 ** 32) | 0;
const START = primes.slice(0, 8).map((prime) => bitsOf(Math.sqrt(prime)));
const STEPS = primes.map((prime) => bitsOf(Math.cbrt(prime)));
const schedule = new Int32Array(64);
const turned = (word, by) => (word >>> by) | (word << (32 - by));

/** One step of SHA-256: the state after sixteen more words. */
function compressed(state, words) {
  schedule.set(words);
  for (let at = 16; at < 64; at += 1) {
    const [early, late] = [schedule[at - 15], schedule[at - 2]];
    schedule[at] = schedule[at - 16] + schedule[at - 7]
      + (turned(early, 7) ^ turned(early, 18) ^ (early >>> 3)) + (turned(late, 17) ^ turned(late, 19) ^ (late >>> 10));
  }
  let [a, b, c, d, e, f, g, last] = state;
  for (let at = 0; at < 64; at += 1) {
    const one = (last + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + STEPS[at]
      + schedule[at]) | 0;
    const two = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [last, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
  }
  return [a, b, c, d, e, f, g, last].map((word, at) => (word + state[at]) | 0);
}

/** Bytes as blocks of sixteen words with SHA-256's padding, for a message that begins with `before` other bytes. */
function blocksOf(raw, before = 0) {
  const view = new DataView(new ArrayBuffer(Math.ceil((raw.length + 9) / 64) * 64));
  raw.forEach((byte, at) => view.setUint8(at, byte));
  view.setUint8(raw.length, 0x80);
  view.setUint32(view.byteLength - 4, (before + raw.length) * 8);
  return Array.from({ length: view.byteLength / 64 }, (_, block) => Array.from({ length: 16 },
    (__, word) => view.getInt32(block * 64 + word * 4)));
}

const bytesOf = (words) => words.flatMap((word) => [word >>> 24, (word >>> 16) & 255, (word >>> 8) & 255, word & 255]);

/** PBKDF2 with HMAC-SHA-256, of one block. Browsers offer it only on encrypted pages. */
export function derived(password, salt, rounds) {
  const long = TEXT.encode(password);
  const key = long.length > 64 ? bytesOf(blocksOf(long).reduce(compressed, START)) : [...long];
  const padded = (mask) => {
    const bytesIn = Array.from({ length: 64 }, (_, at) => (key[at] ?? 0) ^ mask);
    return compressed(START, blocksOf(bytesIn)[0]);
  };
  const [inner, outer] = [padded(0x36), padded(0x5c)];
  const tail = (words) => [...words, 1 << 31, 0, 0, 0, 0, 0, 0, 96 * 8];
  let now = compressed(outer, tail(blocksOf([...salt, 0, 0, 0, 1], 64).reduce(compressed, inner)));
  const all = [...now];
  for (let round = 1; round < rounds; round += 1) {
    now = compressed(outer, tail(compressed(inner, tail(now))));
    now.forEach((word, at) => { all[at] ^= word; });
  }
  return bytesOf(all);
}

/** The hash of a password that the broker stores, so that the password itself is not sent. */
export function hashed(password) {
  const salt = crypto.getRandomValues(new Uint8Array(16));
  const all = [...bytesOf([ROUNDS]), ...salt, ...derived(password, salt, ROUNDS)];
  return { password_hash: btoa(String.fromCharCode(...all)),
    hashing_algorithm: 'leveret_password_hashing_pbkdf2_sha256' };
}
