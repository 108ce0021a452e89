import { el, write, mark, count, clock, copy, plural } from './words.js';
import { Picture } from './picture.js';
import { Edges } from './edges.js';
import { Tap } from './tap.js';
import { Versions } from './versions.js';

const $ = (id) => document.getElementById(id);
const said = $('said');

$('theme').addEventListener('click', () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  try { localStorage.setItem('theme', root.dataset.theme); } catch { /* storage may be forbidden */ }
});

function connection(state, text) {
  mark($('connection'), 'data-state', state);
  write($('connection-text'), text);
}

// links shows addresses; only those of the web can be followed.
function links(all) {
  $('links').hidden = all.length === 0;
  $('links-list').replaceChildren(...all.map((l) => {
    const web = /^https?:\/\//.test(l.url);
    const url = web ? el('a', { href: l.url, rel: 'noreferrer', class: 'url' }, l.url) : el('span', { class: 'url' }, l.url);
    const button = el('button', { type: 'button', 'aria-label': `Copy the address of ${l.name}` }, 'Copy');
    button.addEventListener('click', () => copy(l.url, button, said));
    const sub = el('span', { class: 'sub' });
    if (l.user) sub.append('user ', el('code', {}, l.user));
    if (l.user && l.note) sub.append(' · ');
    if (l.note) sub.append(l.note);
    return el('li', {}, el('b', {}, l.name), button, url, ...(sub.childNodes.length ? [sub] : []));
  }));
}

function queries(all) {
  $('queries').hidden = all.length === 0;
  $('queries-list').replaceChildren(...all.map((q) => {
    const button = el('button', { type: 'button', 'aria-label': `Copy the query: ${q.title}` }, 'Copy');
    button.addEventListener('click', () => copy(q.sql, button, said));
    return el('li', {}, el('div', { class: 'top' }, el('b', {}, q.title), button), el('pre', { tabindex: '0' }, q.sql));
  }));
}

const tiles = new Map();

function numbers(status) {
  $('numbers').hidden = status.numbers.length === 0;
  const agreement = new Map(status.agreement.map((a) => [a.same, a]));
  const first = new Map(status.numbers.toReversed().map((n) => [n.same, n])); // the others are compared with it
  const seen = new Set();
  for (const n of status.numbers) {
    seen.add(n.label);
    let t = tiles.get(n.label);
    if (!t) {
      t = { value: document.createTextNode(''), unit: el('span'), note: el('dd', { class: 'note' }), same: el('dd', { class: 'same' }) };
      t.root = el('div', {}, el('dt', {}, n.label), el('dd', { class: 'v' }, t.value, t.unit), t.note, t.same);
      tiles.set(n.label, t);
      $('numbers-list').append(t.root);
    }
    if (t.value.data !== count(n.value)) t.value.data = count(n.value);
    write(t.unit, n.unit ?? '');
    write(t.note, n.note ?? '');
    t.note.hidden = !n.note;
    const a = n.same && agreement.get(n.same);
    const behind = (first.get(n.same)?.value ?? 0) - n.value;
    t.same.hidden = !a || first.get(n.same) === n;
    if (a) {
      mark(t.same, 'data-equal', behind === 0);
      write(t.same, behind === 0 ? '✓ equal' : behind > 0 ? `${count(behind)} on the way` : `${count(-behind)} more`);
    }
  }
  for (const [label, t] of tiles) if (!seen.has(label)) { t.root.remove(); tiles.delete(label); }
}

let alertsShown = '';

function alerts(status) {
  const key = JSON.stringify(status.alerts);
  if (key === alertsShown) return;
  alertsShown = key;
  const firing = status.alerts.filter((a) => a.state === 'firing').length;
  write($('alerts-hint'), firing > 0 ? `${firing} of ${status.alerts.length} firing` : '');
  const short = (v) => (v === null ? '–' : String(Number(v.toPrecision(4))));
  $('alerts-list').replaceChildren(...status.alerts.map((a) => {
    const facts = [`${a.state}${a.severity ? `, ${a.severity}` : ''}`, `${a.metric} ${short(a.value)}`, `score ${short(a.score)}, limit ${short(a.threshold)}`, a.home];
    const when = el('time', { datetime: new Date(a.time / 1000).toISOString(), title: new Date(a.time / 1000).toLocaleString() }, clock(a.time));
    return el('li', { 'data-state': a.state, 'data-severity': a.severity }, el('span', { class: 'dot' }),
      el('span', { class: 'what' }, a.device), when,
      el('span', { class: 'sub' }, ...facts.map((f) => el('span', {}, f))));
  }));
  if (status.alerts.length === 0) $('alerts-list').replaceChildren(el('li', { class: 'none' }, 'None so far.'));
}

let level = '';

function verdict(v, panels) {
  $('verdict').hidden = !panels.graph;
  mark($('verdict'), 'data-level', v.level);
  write($('verdict-text'), v.text);
  // Said aloud when the situation changes, not each time a number does.
  const now = `${v.level} ${v.node ?? ''} ${v.stream ?? ''}`;
  if (level && now !== level) said.textContent = v.text;
  level = now;
}

function problems(status) {
  const all = status.problems.map((p) => `${p.what}: ${p.error}`);
  if (status.live) all.unshift(`Beyond help: ${status.live}`);
  $('problems').hidden = all.length === 0;
  while ($('problems').children.length > all.length) $('problems').lastChild.remove();
  while ($('problems').children.length < all.length) $('problems').append(el('li'));
  all.forEach((text, i) => write($('problems').children[i], text));
}

class Console {
  constructor(graph) {
    const p = this.panels = graph.panels;
    write($('pipeline'), graph.pipeline);
    if (graph.pipeline) document.title = `${graph.pipeline} · Hearthline`;
    $('metrics-link').hidden = !p.metrics;
    $('graph').hidden = $('edges').hidden = !p.graph;
    $('alerts').hidden = !p.alerts;
    links(graph.links);
    queries(graph.queries);
    const open = p.taps ? (stream) => this.tap.open(stream) : undefined;
    this.tap = new Tap(graph, said, (stream) => this.picture?.mark(stream));
    if (!p.graph) return;
    write($('graph-hint'), p.taps ? `${plural(graph.partitions, 'partition', 'partitions')}. Choose a stream to see its rows` : plural(graph.partitions, 'partition', 'partitions'));
    this.picture = new Picture($('picture'), graph, open);
    this.edges = new Edges(document.querySelector('table.edges'), graph, open, p.lag);
  }

  show(status) {
    verdict(status.verdict, this.panels);
    problems(status);
    if (this.panels.numbers) numbers(status);
    if (this.panels.alerts) alerts(status);
    this.edges?.history(status.history);
    this.edges?.update(status);
    this.picture?.update(status);
    connection(status.ready ? 'unready' : 'live', status.ready ? `not ready: ${status.ready}` : 'live');
  }

  // listen follows the feed while the page can be seen. It asks for the minute before first, so that the lines in the
  // table have no gap where the page was hidden.
  async listen() {
    this.feed?.close();
    if (document.hidden) return;
    const turn = this.turn = {};
    try {
      this.show(await ask('/api/status'));
    } catch {
      connection('lost', 'no answer, trying again');
      setTimeout(() => { if (turn === this.turn) this.listen(); }, 5000);
      return;
    }
    if (turn !== this.turn || document.hidden) return; // called again while it waited
    this.feed = new EventSource('/api/status/stream');
    this.feed.onmessage = (e) => this.show(JSON.parse(e.data));
    this.feed.onerror = () => {
      connection('lost', 'no answer, trying again');
      // A refusal ends an EventSource for good; a lost connection does not.
      if (this.feed.readyState === EventSource.CLOSED) setTimeout(() => this.listen(), 5000);
    };
  }
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

async function start() {
  try {
    const graph = await ask('/api/graph');
    const page = new Console(graph);
    new Versions(graph.nodes.filter((n) => n.trial));
    page.listen();
    document.addEventListener('visibilitychange', () => page.listen());
  } catch (e) {
    connection('lost', `no answer, trying again (${e.message})`);
    setTimeout(() => location.reload(), 5000);
  }
}

start();
