// Rows as they pass on a stream. A glance of some rows, a pause, the next glance: a stream of a million rows a second
// costs no more than a slow one.
import { el, write, copy } from './words.js';

const glance = 25, keep = 100, pause = 1500, longest = 200;
const $ = (id) => document.getElementById(id);

export class Tap {
  constructor(graph, said, changed) {
    this.graph = graph;
    this.changed = changed; // told which stream is open, or undefined
    $('tap-close').addEventListener('click', () => this.close());
    $('tap-pause').addEventListener('click', () => (this.running ? this.stop('Paused') : this.run()));
    $('tap-curl').addEventListener('click', (e) => copy(this.curl(), e.currentTarget, said));
    $('tap').addEventListener('keydown', (e) => { if (e.key === 'Escape') this.close(); });
  }

  curl() {
    const url = new URL('/api/tap', location.href);
    url.searchParams.set('stream', this.stream.name);
    url.searchParams.set('rows', '10');
    return `curl -sN '${url.href.replaceAll("'", '%27')}'`;
  }

  open(name) {
    this.stop('');
    this.from = document.activeElement;
    this.stream = this.graph.streams.find((s) => s.name === name);
    this.changed(name);
    write($('tap-title'), `Rows on ${name}`);
    $('tap-head').replaceChildren(el('tr', {}, ...this.stream.fields.map((f) =>
      el('th', { scope: 'col', class: numeric(f.type) ? 'n' : '' }, f.name, el('small', {}, kind(f.type) + (f.nullable ? ', or none' : ''))))));
    $('tap-body').replaceChildren();
    $('tap').hidden = false;
    $('tap-title').focus({ preventScroll: true });
    $('tap').scrollIntoView({ block: 'nearest', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' });
    this.run();
  }

  close() {
    this.stop('');
    $('tap').hidden = true;
    this.stream = undefined;
    this.changed(undefined);
    this.from?.focus?.();
  }

  stop(why) {
    this.running?.abort();
    this.running = undefined;
    write($('tap-hint'), why);
    write($('tap-pause'), 'Resume');
  }

  async run() {
    const running = this.running = new AbortController();
    write($('tap-pause'), 'Pause');
    write($('tap-hint'), 'Waiting for rows …');
    try {
      while (!running.signal.aborted) {
        await this.glance(running.signal);
        write($('tap-hint'), 'A few rows at a time, the newest on top');
        await new Promise((done) => setTimeout(done, pause));
      }
    } catch (e) {
      if (!running.signal.aborted) this.stop(`Stopped: ${e.message}`);
    }
  }

  async glance(signal) {
    const answer = await fetch(`/api/tap?stream=${encodeURIComponent(this.stream.name)}&rows=${glance}`, { signal });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done || signal.aborted) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) this.row(JSON.parse(line));
    }
  }

  row(values) {
    const body = $('tap-body');
    const tr = el('tr', { class: 'new' });
    for (const f of this.stream.fields) {
      const v = values[f.name];
      const text = v === null || v === undefined ? '–' : typeof v === 'object' ? JSON.stringify(v) : say(v, f.type);
      const td = el('td', { class: [numeric(f.type) ? 'n' : '', v === null || v === undefined ? 'null' : ''].join(' ').trim() },
        text.length > longest ? text.slice(0, longest) + '…' : text);
      if (text.length > 30 || f.type.startsWith('timestamp')) td.title = typeof v === 'object' ? text : String(v).slice(0, 2000);
      tr.append(td);
    }
    body.prepend(tr);
    while (body.rows.length > keep) body.lastChild.remove();
  }
}

const numeric = (type) => /^(u?int|float|decimal)/.test(type);

// kind is an Arrow type in the words of who reads a table.
function kind(type) {
  if (type.startsWith('dictionary')) return 'text';
  if (type.startsWith('timestamp')) return 'time, UTC';
  if (type === 'utf8') return 'text';
  if (type.startsWith('map')) return 'pairs';
  if (type.startsWith('float')) return 'number';
  if (/^u?int/.test(type)) return 'whole number';
  return type;
}

function say(v, type) {
  if (type.startsWith('timestamp')) {
    const [, day, time, part] = /^(\S+?)T(\d\d:\d\d:\d\d)(\.\d{1,3})?/.exec(v) ?? [];
    if (!time) return String(v);
    return day === new Date().toISOString().slice(0, 10) ? time + (part ?? '').padEnd(4, part ? '0' : '') : `${day} ${time}`;
  }
  if (typeof v === 'number' && !Number.isInteger(v)) return String(Number(v.toPrecision(7)));
  return String(v);
}
