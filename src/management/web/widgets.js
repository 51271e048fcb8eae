// Components of the views: dialogs, lists and tables, facts, bars, charts and sparklines.

import {
  h, render, frame, count, bytes, counted, rate, clock, explain, button,
} from './kit.js';

// ---- dialogs ----

let dialogs = 0;

/**
 * A dialog with fields and one action. `run` gets the values and carries it out. Its errors are shown in the dialog,
 * which stays open with the user's input. `text` may be a function of the values. Fields with `more` are folded, fields
 * of the type `hidden` are not drawn.
 */
export function ask({ title, text, fields = [], verb, danger = false, wide = false, body, run }) {
  const box = document.createElement('dialog');
  dialogs += 1;
  const id = `dialog${dialogs}`;
  box.setAttribute('aria-labelledby', `${id}-title`);
  if (wide) box.className = 'wide';
  const before = document.activeElement;
  let trouble = null;
  let busy = false;
  let isDrawn = false;
  const values = () => Object.fromEntries(fields.map((field) => [field.name, isDrawn ? valueOf(box, field, id)
    : field.value]));
  const folded = fields.filter((field) => field.more);
  const draw = () => {
    render(box, [
      h('form', { onsubmit: submit, novalidate: true, onchange: () => typeof text === 'function' && draw() },
        h('h2', { id: `${id}-title` }, title),
        text ? h('p', {}, typeof text === 'function' ? text(values()) : text) : null, body,
        fields.filter((field) => !field.more && field.type !== 'hidden').map((field) => fieldOf(field, id)),
        folded.length ? h('details', { class: 'more' }, h('summary', {}, 'More properties'),
          h('div', { class: 'columns' }, folded.map((field) => fieldOf(field, id)))) : null,
        h('p', { role: 'alert', class: 'trouble' }, trouble),
        h('div', { class: 'actions' },
          h('button', { type: 'button', onclick: () => box.close() }, verb ? 'Cancel' : 'Close'),
          verb ? h('button', { type: 'submit', class: danger ? 'danger' : 'main', 'aria-disabled': busy && 'true' },
            verb) : null)),
    ]);
    isDrawn = true;
  };
  const submit = async (event) => {
    event.preventDefault();
    if (!verb) {
      box.close();
      return;
    }
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
      await run(values());
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
  if (field.type === 'hidden') return field.value;
  const input = box.querySelector(`#${id}-${field.name}`);
  if (field.type === 'checkbox') return input.checked;
  if (field.type === 'number') return input.value === '' ? null : Number(input.value);
  if (field.type === 'file') return input.files[0] || null;
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
      field.options.map(([value, text]) => h('option', { value }, text)));
  } else if (field.type === 'textarea') {
    input = h('textarea', { ...own, rows: field.rows || 5, value: field.value ?? '', spellcheck: 'false' });
  } else if (field.type === 'file') {
    input = h('input', { ...own, type: 'file', accept: field.accept });
  } else {
    input = h('input', {
      ...own, type: field.type || 'text', value: field.value ?? '', required: field.required,
      autocomplete: field.type === 'password' ? 'new-password' : 'off', autocapitalize: 'off', spellcheck: 'false',
      min: field.type === 'number' ? field.min ?? 0 : null, placeholder: field.placeholder,
    });
  }
  return h('div', { class: 'field' }, label, input, hint);
}

/** A field of a dialog to choose a virtual host. With a single one there is no choice. */
export const vhostField = (ctx) => ({
  name: 'vhost', label: 'Virtual host', type: (ctx.vhosts?.length || 0) > 1 ? 'select' : 'hidden',
  value: ctx.query.vhost || ctx.vhosts?.[0]?.name || '/',
  options: (ctx.vhosts || [{ name: '/' }]).map(({ name }) => [name, name]),
});

/** A field for arguments in JSON, which are sent unchanged. */
export const argumentsField = {
  name: 'arguments', label: 'Arguments (JSON)', type: 'textarea', value: '{}',
  hint: 'For example {"x-max-length": 1000, "x-message-ttl": 60000}',
};

// ---- lists ----

const PAGE_ROWS = 100;

/** RabbitMQ's query parameters of a list, from the page's address, and the columns that are drawn. */
export function listQuery(query, sort, columns) {
  const asked = new URLSearchParams({ page: query.page || '1', page_size: String(PAGE_ROWS) });
  if (query.name) {
    asked.set('name', query.name);
    asked.set('use_regex', 'false');
  }
  asked.set('sort', query.sort || sort);
  if (query.down) asked.set('sort_reverse', 'true');
  if (columns) asked.set('columns', [...new Set(columns)].join(','));
  return asked.toString();
}

const deep = (row, path) => path.split('.').reduce((at, name) => at?.[name], row);

/**
 * One page of a list, whether the broker divided it (an object with `items`) or sent all of it (an array). `textOf`
 * returns the text of a row of an array in which the search looks.
 */
export function pageOf(answer, query, sort, searched = (row) => row.name) {
  if (!Array.isArray(answer)) {
    return {
      rows: answer.items, page: answer.page, pages: Math.max(1, answer.page_count), found: answer.filtered_count,
      all: answer.total_count,
    };
  }
  const wanted = (query.name || '').toLowerCase();
  const by = query.sort || sort;
  const sign = query.down ? -1 : 1;
  const rows = answer.filter((row) => !wanted || String(searched(row) ?? '').toLowerCase().includes(wanted))
    .sort((one, other) => {
      const [a, b] = [deep(one, by) ?? '', deep(other, by) ?? ''];
      return (a < b ? -1 : Number(a > b)) * sign;
    });
  const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  const page = Math.min(pages, Number(query.page) || 1);
  return { rows: rows.slice((page - 1) * PAGE_ROWS, page * PAGE_ROWS), page, pages, found: rows.length,
    all: answer.length };
}

// Rows of a phone's table that show all their columns.
const unfolded = new Set();

/**
 * A table. A column has `label`, `cell(row)`, and may have `sort` (the field's name), `num`, and `brief`: a phone shows
 * the first column and the brief ones, and the others after a tap. `select` is a set of keys of chosen rows. A broad
 * table scrolls in itself. A tight one breaks long names instead, so that many columns fit into 1,280 pixels.
 */
export function table({ caption, columns, rows, key, ctx, sort, empty, select, isBroad = false, isTight = false }) {
  const by = ctx?.query.sort || sort;
  const folds = columns.slice(1).some((column) => !column.brief);
  const total = columns.length + (select ? 1 : 0) + (folds ? 1 : 0);
  const isWide = !isTight && (columns.length + (select ? 1 : 0) > 10 || isBroad);
  return h('div', { class: isTight ? 'scroll tight' : isWide ? 'scroll broad' : 'scroll', role: 'group', 'aria-label': caption,
    tabindex: '0' },
    h('table', { role: 'table' },
      h('caption', { class: 'sr-only' }, caption),
      h('thead', { role: 'rowgroup' }, h('tr', { role: 'row' },
        select ? h('th', { role: 'columnheader', scope: 'col', class: 'pick' }, tick('Select all rows',
          rows.length > 0 && rows.every((row) => select.has(key(row))), (on) => rows.forEach((row) => (on
            ? select.add(key(row)) : select.delete(key(row)))))) : null,
        columns.map((column) => headOf(column, ctx, by)),
        folds ? h('th', { role: 'columnheader', scope: 'col', class: 'fold' }, h('span', { class: 'sr-only' },
          'Details'))
          : null)),
      h('tbody', { role: 'rowgroup' }, rows.length
        ? rows.map((row) => rowOf(row, { caption, columns, key, select, folds }))
        : h('tr', { role: 'row' }, h('td', { role: 'cell', colspan: total, class: 'none' }, empty || 'None')))));
}

/** The name in a key of a row: the last part of a list. */
function labelOf(key) {
  return key.startsWith('[') ? JSON.parse(key).at(-1) : key.split('\n').at(-1);
}

function rowOf(row, { caption, columns, key, select, folds }) {
  const own = key(row);
  const place = `${caption}\n${own}`;
  const isOpen = unfolded.has(place);
  const toggle = () => {
    if (!unfolded.delete(place)) unfolded.add(place);
    frame.redraw();
  };
  return h('tr', { role: 'row', key: own, tabindex: '-1', class: `row${isOpen ? ' open' : ''}` },
    select ? h('td', { role: 'cell', class: 'pick', 'data-label': '' }, tick(`Select ${labelOf(own)}`,
      select.has(own), (on) => (on ? select.add(own) : select.delete(own)))) : null,
    columns.map((column, at) => h('td', { role: 'cell', 'data-label': column.label,
      class: [column.num && 'num', at === 0 ? 'lead' : column.brief ? 'brief' : 'rest', column.kind,
        !column.label && 'acts'].filter(Boolean)
        .join(' ') }, column.cell(row))),
    folds ? h('td', { role: 'cell', class: 'fold', 'data-label': '' }, h('button', { type: 'button',
      class: 'small fold',
      'aria-expanded': String(isOpen), onclick: toggle }, h('span', { 'aria-hidden': 'true' }, isOpen ? '▴' : '▾'),
    h('span', { class: 'sr-only' }, `Details of ${labelOf(own)}`))) : null);
}

const tick = (label, checked, set) => h('input', { type: 'checkbox', 'aria-label': label, checked,
  onchange: (event) => {
    set(event.target.checked);
    frame.redraw();
  } });

function headOf(column, ctx, by) {
  const props = { role: 'columnheader', scope: 'col', class: column.num && 'num' };
  if (!column.sort || !ctx) return h('th', props, column.label || h('span', { class: 'sr-only' }, 'Actions'));
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
export function listTools({ ctx, list, what, by = 'name', vhosts, extra }) {
  const { query } = ctx;
  return h('div', { class: 'tools' },
    h('form', { role: 'search', onsubmit: (event) => event.preventDefault() },
      h('label', { class: 'sr-only', for: 'search' }, `Search ${what} by ${by}`),
      h('input', {
        id: 'search', type: 'search',
          placeholder: `Search ${by === 'name' ? what : by}`,
        value: query.name || '', autocomplete: 'off', spellcheck: 'false',
        oninput: (event) => ctx.later({ name: event.target.value, page: '' }),
      })),
    vhosts && vhosts.length > 1 ? h('div', {},
      h('label', { class: 'sr-only', for: 'vhost' }, 'Virtual host'),
      h('select', { id: 'vhost', value: query.vhost ?? '', onchange: (event) => ctx.change(
        { vhost: event.target.value, page: '' }) },
      h('option', { value: '' }, 'All virtual hosts'),
      vhosts.map((vhost) => h('option', { value: vhost.name }, vhost.name)))) : null,
    h('span', { class: 'found' }, list.found === list.all ? counted(list.all, what)
      : `${count(list.found)} of ${counted(list.all, what)}`),
    list.pages > 1 ? h('nav', { 'aria-label': 'Pages', class: 'pages' },
      h('button', { type: 'button', disabled: list.page <= 1, 'aria-label': 'Previous page',
        onclick: () => ctx.change({ page: String(list.page - 1) }) }, '‹'),
      h('span', {}, `${list.page} / ${list.pages}`),
      h('button', { type: 'button', disabled: list.page >= list.pages, 'aria-label': 'Next page',
        onclick: () => ctx.change({ page: String(list.page + 1) }) }, '›')) : null,
    h('span', { class: 'grow' }), extra);
}

// ---- choice of columns ----

const CHOICE = 'leveret.columns.';

const choiceOf = (list) => new Set(listOf(localStorage.getItem(CHOICE + list)));
const listOf = (text) => (text || '').split(',').filter(Boolean);

/**
 * The columns that are drawn: all but those that are off, each reversed by the user's choice; and the one by which the
 * rows are sorted.
 */
export function chosen(list, columns, sort) {
  const flipped = choiceOf(list);
  const shown = columns.filter((column, at) => at === 0 || Boolean(column.off) === flipped.has(column.label));
  const sorted = columns.find((column) => sort && column.sort === sort && !shown.includes(column));
  return sorted ? [shown[0], sorted, ...shown.slice(1)] : shown;
}

/** A menu with the columns of a list. */
export function columnMenu(list, columns) {
  const flipped = choiceOf(list);
  return h('details', { class: 'menu' }, h('summary', {}, 'Columns'),
    h('div', { class: 'panel' }, columns.slice(1).map((column) => h('label', { class: 'tick' },
      h('input', { type: 'checkbox', checked: Boolean(column.off) === flipped.has(column.label),
        onchange: () => {
          if (!flipped.delete(column.label)) flipped.add(column.label);
          localStorage.setItem(CHOICE + list, [...flipped].join(','));
          frame.refresh();
        } }), ` ${column.label}`))));
}

/** A count with a noun and actions for the selected rows; nothing if none is selected. */
export function selectionBar(select, noun, actions) {
  if (!select.size) return null;
  return h('div', { class: 'selection', role: 'region', 'aria-label': 'Selection' },
    h('b', {}, `${counted(select.size, noun)} selected`), actions,
    button('Clear', 'the selection', () => {
      select.clear();
      frame.redraw();
    }));
}

// ---- facts, cards, states ----

/** Terms and their values. Rows whose value is null or undefined are omitted. */
export function facts(rows) {
  return h('dl', { class: 'facts' }, rows.filter(([, value]) => value !== null && value !== undefined && value !== '')
    .map(([term, value]) => h('div', {}, h('dt', {}, term), h('dd', {}, value))));
}

/** The keys of a policy with their values. */
export const policyMarks = (definition) => h('span', { class: 'marks' }, Object.entries(definition || {}).map(
  ([key, value]) => h('span', { class: 'mark value' }, `${key} ${typeof value === 'object' ? JSON.stringify(value)
    : typeof value === 'number' ? count(value) : value}`)));

/** A card with a heading and, to its right, the actions. */
export function card(title, kids, actions, wide) {
  return h('section', { class: wide ? 'card wide' : 'card', 'aria-label': title },
    h('div', { class: 'head' }, h('h2', {}, title), actions), kids);
}

// The tone of each state, the same on every view: `bad` moves nothing until somebody acts, `busy` waits or is slowed
// down, `idle` was ordered or configured. All other states are normal.
const TONES = {
  blocked: 'bad', held: 'bad', terminated: 'bad', alarm: 'bad', error: 'bad', full: 'bad', 'no consumer': 'bad',
  'No answer': 'bad',
  waiting: 'busy', connecting: 'busy', starting: 'busy', ending: 'busy', blocking: 'busy', flow: 'busy', closing: 'busy',
  'budget used': 'busy', warning: 'busy',
  paused: 'idle', resting: 'idle', disconnected: 'idle',
};
// With a no-break space, so that a shape stays beside its word.
const SHAPES = { bad: '▲\u00a0', busy: '◆\u00a0', idle: '○\u00a0', '': '●\u00a0' };

/** The tone of a state, which is the part before a colon or a time: `held: 1 of 2 rules`, `blocked for 3 s`. */
export function toneOf(word) {
  const known = String(word).split(/:| for /)[0];
  return Object.hasOwn(TONES, known) ? TONES[known] : '';
}

/** The class of an element that shows a state, for example `state bad`. */
export const toneClass = (kind, word) => [kind, toneOf(word)].filter(Boolean).join(' ');

/** The shape of a state, because colour alone is not accessible. */
export const shapeOf = (word) => SHAPES[toneOf(word)];

/** A state with its shape and colour. `text` is shown instead of the state's own name. */
export const state = (word, text = word, title = null) => h('span', { class: toneClass('state', word), title },
  h('span', { 'aria-hidden': 'true' }, shapeOf(word)), text);

// ---- bars ----

/**
 * A bar of parts against a limit. `parts` are values that end one after the other, smallest first; `marks` are lines.
 * `over`: the limit has been reached.
 */
export function bar({ label, text, parts, limit, marks = [], over }) {
  const x = (value) => Math.max(0, Math.min(100, (100 * value) / limit));
  const last = parts.at(-1);
  const isKnown = Number.isFinite(last.value) && limit > 0;
  const spoken = isKnown ? `${label}: ${Math.round(x(last.value))} % of the limit` : `${label}: not known`;
  return h('div', { class: over ? 'bar over' : 'bar' },
    h('div', { class: 'bar-text' }, h('span', {}, label), h('span', {}, text)),
    h('svg', { viewBox: '0 0 100 10', preserveAspectRatio: 'none', role: 'img', 'aria-label': spoken },
      h('rect', { class: 'bar-back', width: 100, height: 10 }),
      isKnown ? [...parts].reverse().map(({ value, kind }) => h('rect', { class: `bar-front ${kind || ''}`,
        width: x(value), height: 10 })) : null,
      isKnown ? marks.filter((mark) => Number.isFinite(mark.value)).map(({ value }) => h('line', { class: 'bar-mark',
        x1: x(value), x2: x(value), y1: 0, y2: 10 })) : null),
    parts.length + marks.length > 1 ? h('div', { class: 'bar-key' },
      parts.map(({ label: name, kind, shown }) => h('span', {}, h('span', { class: `swatch bar-swatch ${kind || ''}`,
        'aria-hidden': 'true' }), `${name} `, h('b', {}, shown))),
      marks.map(({ label: name, shown }) => h('span', {},
        h('span', { class: 'tickmark', 'aria-hidden': 'true' }, '│'),
        ` ${name} `, h('b', {}, shown)))) : null);
}

/** A thin bar in a table. */
export const share = (part, name, peak) => h('svg', { class: 'share', viewBox: '0 0 100 6', preserveAspectRatio: 'none',
  role: 'img', 'aria-label': `${name}: ${(100 * part).toFixed(1)} %` },
h('rect', { class: 'bar-back', width: 100, height: 6 }),
h('rect', { class: part > 0.9 ? 'bar-front bad' : 'bar-front', width: Math.max(0.5, Math.min(100, 100 * part)),
  height: 6 }),
peak ? h('line', { class: 'bar-mark', x1: 100 * peak, x2: 100 * peak, y1: 0, y2: 6 }) : null);

// ---- charts ----

const CHART_MS = 600000;
// The lengths of the time axis, each with the distance of its ticks: the shortest one that shows all samples is used.
const AXES = [[60000, 15000], [120000, 30000], [300000, 60000], [CHART_MS, 120000]];
// Missed polls (a hidden page, a broker that does not answer) are a gap in the line.
const GAP_MS = 40000;
// The cursor of each chart, by title: the number of samples before the newest one.
const cursors = new Map();

/** Forget the cursors of the charts. */
export const forgetCursors = () => cursors.clear();

/**
 * A chart of ten minutes: `samples` are {at, values}, oldest first, `series` are {name, label}. `limit` is a horizontal
 * mark. The arrow keys and the mouse move a cursor. "Table" shows the same figures.
 *
 * Only the lines are scaled to the width of the chart. Texts are outside of the scaled part, at percentages of the width,
 * so that they have the size of the other texts.
 */
export function chart({ title, samples, series, format, limit, floor = 0 }) {
  const [wide, high, top, bottom] = [1000, 172, 8, 22];
  const shown = series.filter(({ name }) => samples.some(({ values }) => Number.isFinite(values[name])));
  const last = samples.at(-1);
  const to = last?.at ?? Date.now();
  const inside = samples.filter(({ at }) => at >= to - CHART_MS);
  const [axisMs, tickMs] = AXES.find(([length]) => !inside.length || to - inside[0].at <= length + 2000) || AXES.at(-1);
  const most = Math.max(floor, limit || 0, ...inside.flatMap(({ values }) => shown.map(({ name }) => values[name]
    || 0)));
  const ceiling = limit && most <= limit ? limit : niceTop(most, format, limit);
  const x = (at) => (wide * (at - to + axisMs)) / axisMs;
  const share100 = (at) => `${(x(at) / wide) * 100}%`;
  const drawn = inside.filter(({ at }) => at >= to - axisMs);
  const y = (value) => high - bottom - ((high - top - bottom) * value) / ceiling;
  const draws = (value) => format(value, limit || ceiling);
  const picked = cursors.has(title) ? inside[Math.max(0, inside.length - 1 - cursors.get(title))] : null;
  const read = picked || last;
  const move = (back) => {
    if (back === null) cursors.delete(title);
    else cursors.set(title, Math.max(0, Math.min(inside.length - 1, back)));
    frame.redraw();
  };
  const now = cursors.get(title) ?? 0;
  const keys = { ArrowLeft: now + 1, ArrowRight: now - 1, Home: inside.length - 1, End: null, Escape: null };
  return h('figure', { class: 'chart' },
    h('figcaption', {}, h('span', { class: 'legend' }, shown.map(({ label, name }, at) => h('span', {},
      h('span', { class: `swatch s${at}`, 'aria-hidden': 'true' }), `${label} `, h('b', {},
        draws(read?.values[name])))),
    limit ? h('span', {}, h('span', { class: 'limit-mark', 'aria-hidden': 'true' }, '┄ '), 'Limit ',
      h('b', {}, draws(limit))) : null),
    h('span', { class: 'muted at' }, picked ? clock(picked.at) : '')),
    h('svg', { class: 'plot', height: high, role: 'img', tabindex: '0',
      'aria-label': `${title}, ${picked ? clock(picked.at) : 'now'}: ${shown.map(({ name, label }) => `${label} ${
        draws(read?.values[name])}`).join(', ') || 'no samples yet'}`,
      onkeydown: (event) => {
        if (!(event.key in keys)) return;
        event.preventDefault();
        move(keys[event.key]);
      },
      onpointermove: (event) => {
        const box = event.currentTarget.getBoundingClientRect();
        const at = to - axisMs + (axisMs * (event.clientX - box.left)) / box.width;
        const found = inside.findLastIndex((sample) => sample.at <= at);
        const back = inside.length - 1 - Math.max(0, found);
        if (inside.length && back !== cursors.get(title)) move(back);
      },
      onpointerleave: () => move(null) },
    [0, 0.5, 1].map((part) => [
      h('line', { class: 'grid', x1: 0, x2: '100%', y1: y(ceiling * part), y2: y(ceiling * part) }),
      h('text', { class: 'tick', x: -6, y: y(ceiling * part) + 4, 'text-anchor': 'end' },
        part || floor ? draws(ceiling * part) : draws(0))]),
    Array.from({ length: axisMs / tickMs + 1 }, (_, at) => at * tickMs).map((ago) => [
      h('line', { class: 'grid', x1: share100(to - ago), x2: share100(to - ago), y1: high - bottom,
        y2: high - bottom + 4 }),
      // Every other label is left out of a narrow chart.
      h('text', { class: (ago / tickMs) % 2 ? 'tick odd' : 'tick', x: share100(to - ago), y: high - 3,
        'text-anchor': ago ? 'middle' : 'end' },
        ago ? `−${axisMs < 300000 ? `${ago / 1000} s` : `${ago / 60000} min`}` : 'now')]),
    limit ? h('line', { class: 'limit', x1: 0, x2: '100%', y1: y(limit), y2: y(limit) }) : null,
    h('svg', { viewBox: `0 0 ${wide} ${high}`, width: '100%', height: high, preserveAspectRatio: 'none',
      overflow: 'visible' },
      shown.map(({ name }, at) => h('path', { class: `line s${at}`, d: lineOf(drawn, name, x, y) }))),
    picked ? h('line', { class: 'cursor', x1: share100(picked.at), x2: share100(picked.at), y1: top, y2: high - bottom }) : null,
    shown.length ? null : h('text', { class: 'tick', x: '50%', y: high / 2, 'text-anchor': 'middle' },
      'The first samples arrive in some seconds.')),
    h('details', {}, h('summary', {}, 'Table', h('span', { class: 'sr-only' }, ` of ${title}`)),
      h('table', { class: 'small' },
        h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Time'),
          shown.map(({ label }) => h('th', { scope: 'col', class: 'num' }, label)))),
        h('tbody', {}, inside.filter((_, at) => (inside.length - 1 - at) % 12 === 0).reverse().map(({ at, values }) => (
          h('tr', {}, h('td', {}, clock(at)),
            shown.map(({ name }) => h('td', { class: 'num' }, draws(values[name]))))))))));
}

function lineOf(samples, name, x, y) {
  let path = '';
  let before = -Infinity;
  for (const { at, values } of samples) {
    const value = values[name];
    if (!Number.isFinite(value)) continue;
    // A segment without length makes a single sample a dot.
    const isFirst = at - before > GAP_MS;
    path += `${isFirst ? 'M' : 'L'}${x(at).toFixed(1)} ${y(value).toFixed(1)}${isFirst ? 'h0' : ''}`;
    before = at;
  }
  return path;
}

// The axis ends at a round figure, so that it does not change with each sample.
function niceTop(value, format, limit) {
  const isCount = format === count;
  if (!(value > 0)) return isCount ? 2 : format === rate ? 1 : limit || 1000;
  const base = format === count || format === rate ? 10 : 1000;
  const power = base === 10 ? 10 ** Math.floor(Math.log10(value)) : 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 4, 6, 8, 10].find((factor) => factor * power >= value) * power;
  return isCount ? Math.max(2, step) : step;
}

// The width of a sparkline.
const SPARK_WIDE = 56;

/** A line of the last samples of one figure with its change per second, for a row of a table. */
export function spark(samples, name, label) {
  const found = samples.slice(-30).map(({ values }) => values[name]).filter(Number.isFinite);
  const [low, top] = [Math.min(...found), Math.max(...found)];
  const step = SPARK_WIDE / Math.max(1, found.length - 1);
  const height = (value) => (17 - (15 * (value - low)) / (top - low || 1)).toFixed(1);
  const points = found.map((value, at) => `${(at * step).toFixed(1)},${height(value)}`);
  const range = () => `between ${count(Math.min(...found))} and ${count(Math.max(...found))}`;
  const spoken = `${label}: ${found.length ? `${range()} since ${clock(samples.at(-found.length).at)}`
    : 'no samples yet'}`;
  const seconds = found.length > 1 ? (samples.at(-1).at - samples.at(-found.length).at) / 1000 : 0;
  const change = seconds ? (found.at(-1) - found[0]) / seconds : 0;
  return h('span', { class: 'trend' },
    h('svg', { class: 'spark', viewBox: `0 0 ${SPARK_WIDE} 18`, width: SPARK_WIDE, height: 18, role: 'img',
      'aria-label': spoken },
    points.length > 1 ? h('polyline', { points: points.join(' ') }) : null),
    h('span', { class: 'change' }, Math.abs(change) < 0.05 ? '' : (change > 0 ? '+' : '−') + rate(Math.abs(change))));
}

/** Whether publishers are blocked because of the disk: all of it is used, or the share of a queue. */
export const isDiskShort = ({ disk, alarms = [] }) => Boolean(disk) && (disk.is_full
  || alarms.some((text) => String(text).startsWith('disk:')));

/** The bars of memory and disk of a status. */
export function resourceBars({ memory, disk, alarms } = {}) {
  const isShort = isDiskShort({ disk, alarms });
  return [
    memory ? bar({ label: 'Memory', text: `${bytes(memory.used, memory.limit)} of ${bytes(memory.limit)}`,
      limit: memory.limit, over: memory.used > 0.95 * memory.limit,
      parts: [{ label: 'used', value: memory.used, shown: bytes(memory.used, memory.limit) }],
      marks: [{ label: 'peak', value: memory.peak, shown: bytes(memory.peak, memory.limit) }] }) : null,
    disk ? bar({ label: 'Disk', text: `${bytes(disk.live, disk.limit)} of ${bytes(disk.usable, disk.limit)}${isShort
      ? ': publishers are blocked' : ''}`, limit: disk.limit, over: isShort,
    parts: [{ label: 'messages', value: disk.live, shown: bytes(disk.live, disk.limit), kind: 'live' },
      { label: 'log', value: disk.log, shown: bytes(disk.log, disk.limit) }],
    marks: [{ label: 'usable', value: disk.usable, shown: bytes(disk.usable, disk.limit) },
      { label: 'disk_limit', value: disk.limit, shown: bytes(disk.limit) }] })
      : memory ? h('p', { class: 'muted' }, 'There is no store: nothing is written to the disk.') : null,
  ];
}
