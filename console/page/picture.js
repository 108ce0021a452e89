// The graph as a picture. The server says where everything stands; here it is drawn and kept up to date.
import { svg, write, mark, rate, short, cut, fit, count, plural } from './words.js';

const icons = {
  gateway: 'M1 6.5 7 1.5l6 5V13H1Z M5 13V9h4v4',
  source: 'M1 2.5h7v9H1Z M8 7h5.5 M11 4.5 13.5 7 11 9.5',
  stage: 'M1 2h12L8.5 7.5V12l-3 1.5v-6Z',
  sink: 'M1.5 3.2c0-2.6 11-2.6 11 0s-11 2.6-11 0V11c0 2.6 11 2.6 11 0V3.2 M1.5 7.1c0 2.6 11 2.6 11 0',
};

export class Picture {
  constructor(root, graph, open) {
    this.root = root;
    this.graph = graph;
    this.open = open; // called with the stream that somebody wants to look at; undefined when nobody can
    this.narrow = matchMedia('(max-width: 899px)');
    this.narrow.addEventListener('change', () => this.draw());
    this.draw();
  }

  draw() {
    const tall = this.narrow.matches;
    const d = tall ? this.graph.tall : this.graph.wide;
    this.parts = { lines: [], labels: new Map(), nodes: new Map(), drain: [] };
    this.root.replaceChildren();
    mark(this.root, 'viewBox', `0 0 ${d.width} ${d.height}`);
    this.root.style.maxWidth = tall ? '480px' : `${Math.round(d.width * 1.3)}px`;
    this.root.style.margin = '0 auto';
    for (const g of d.groups) this.group(g);
    for (const l of d.drain) this.drain(l);
    const lines = svg('g', { 'aria-hidden': 'true' });
    for (const l of d.lines) this.line(lines, l);
    this.root.append(lines);
    for (const l of d.labels) l.name === '*.dead' ? this.drainLabel(l) : this.label(l, tall);
    for (const n of d.nodes) this.node(n, tall);
    if (this.status) this.update(this.status);
    this.mark(this.opened);
  }

  group(g) {
    this.root.append(svg('g', { class: 'group' },
      svg('rect', { x: g.x, y: g.y, width: g.w, height: g.h, rx: 14 }),
      ...(g.w < 240 ? [svg('text', { x: g.x + 12, y: g.y + 17 }, g.title)] : [])));
  }

  line(into, l) {
    const bed = svg('path', { d: l.path, class: 'bed' });
    const run = svg('path', { d: l.path, class: 'run' });
    into.append(bed, run);
    this.parts.lines.push({ ...l, bed, run });
  }

  drain(l) {
    const path = svg('path', { d: l.path, class: l.stream ? 'dead stub' : 'dead', 'aria-hidden': 'true' });
    this.root.append(path);
    this.parts.drain.push({ ...l, path });
  }

  drainLabel(l) {
    const text = svg('text', { x: l.x, y: l.y + 13 });
    this.drainText = { g: svg('g', { class: 'drain' }, text), text };
    this.root.append(this.drainText.g);
  }

  // press makes g a button that opens a stream.
  press(g, stream) {
    if (!this.open) return;
    g.classList.add('press');
    mark(g, 'role', 'button');
    mark(g, 'tabindex', '0');
    g.addEventListener('click', () => this.open(stream));
    g.addEventListener('keydown', (e) => {
      if (e.key !== 'Enter' && e.key !== ' ') return;
      e.preventDefault();
      this.open(stream);
    });
  }

  label(l, tall) {
    const stream = this.graph.streams.find((s) => s.name === l.name);
    const inner = stream.unit !== '' && stream.unit !== undefined;
    const room = tall ? l.w - 100 : l.w - 18;
    const rateText = svg('text', { class: 'rate' });
    const name = svg('text', { class: 'name' }, cut(l.name, room, 12.5));
    if (tall) {
      place(name, l.x + 8, l.y + l.h / 2 + 4.5);
      place(rateText, l.x + l.w - 10, l.y + l.h / 2 + 4.5, 'end');
    } else {
      place(name, l.x + 10, l.y + 15);
      place(rateText, l.x + 10, l.y + 29);
    }
    const g = svg('g', { class: inner ? 'label inner' : 'label' },
      svg('title', {}, `${l.name}: ${stream.fields.map((f) => f.name).join(', ')}`),
      svg('rect', { class: 'plate', x: l.x, y: l.y, width: l.w, height: l.h, rx: 8 }), name, rateText);
    this.press(g, l.name);
    this.root.append(g);
    fit(name, room);
    this.parts.labels.set(l.name, { g, rate: rateText, room: tall ? 88 : room });
  }

  node(n, tall) {
    const node = this.graph.nodes.find((o) => o.name === n.name);
    const middle = n.y + n.h / 2;
    const room = tall ? n.w - 170 : n.w - 42;
    const rateText = svg('text', { class: 'rate' });
    const name = svg('text', { class: 'name' }, cut(n.name, room, 14));
    if (tall) {
      place(name, n.x + 36, middle + 5);
      place(rateText, n.x + n.w - 12, middle + 4.5, 'end');
    } else {
      place(name, n.x + 34, middle - 2);
      place(rateText, n.x + 34, middle + 14);
    }
    const g = svg('g', { class: 'node', 'data-kind': node.kind },
      svg('title', {}, node.topic ? `${n.name}, from the topic ${node.topic}` : node.use && node.use !== n.name ? `${n.name} (${node.use})` : n.name),
      svg('rect', { class: 'box', x: n.x, y: n.y, width: n.w, height: n.h, rx: 11 }),
      svg('path', { class: 'icon', d: icons[node.kind], transform: `translate(${n.x + 12} ${middle - 7})` }), name, rateText);
    const badText = svg('text', {});
    const badBox = svg('rect', { height: 19, rx: 9.5 });
    const bad = svg('g', { class: 'bad' }, badBox, badText);
    if (node.dead) this.press(bad, node.dead);
    this.root.append(g, bad);
    fit(name, room);
    this.parts.nodes.set(n.name, { g, rate: rateText, bad, badBox, badText, box: n, node, tall, room: tall ? 70 : room });
  }

  update(status) {
    this.status = status;
    const edges = new Map(status.edges.map((e) => [`${e.stream} ${e.reader}`, e]));
    const streams = new Map(status.streams.map((s) => [s.name, s]));
    const worst = new Map();
    const rank = { idle: 0, ok: 0, slow: 1, stuck: 2 };
    for (const e of status.edges) {
      for (const key of [`s ${e.stream}`, `n ${e.reader}`]) {
        if (rank[e.state] > rank[worst.get(key)?.state ?? 'ok']) worst.set(key, e);
      }
    }
    for (const l of this.parts.lines) this.updateLine(l, edges, streams);
    for (const [name, l] of this.parts.labels) {
      const s = streams.get(name), w = worst.get(`s ${name}`);
      const text = w ? `${short(w.lag)} waiting` : `${rate(s?.rate ?? 0)}/s`;
      say(l.rate, text, l.room);
      mark(l.g, 'data-state', w?.state);
      mark(l.g, 'aria-label', `Stream ${name}, ${w ? `${count(w.lag)} messages wait` : `${rate(s?.rate ?? 0)} rows a second`}. Look at its rows`);
    }
    this.updateNodes(status, worst, edges, streams);
  }

  updateLine(l, edges, streams) {
    const e = l.reader ? edges.get(`${l.stream} ${l.reader}`) : streams.get(l.stream);
    const rows = e?.rate ?? 0;
    const state = e?.state === 'slow' || e?.state === 'stuck' ? e.state : rows > 0 ? undefined : 'idle';
    // By the logarithm: a stream of alerts is seen beside one of readings.
    const most = this.narrow.matches ? 4 : 7;
    const wide = rows > 0 ? Math.min(most, 2 + most / 7 * Math.log10(1 + rows)) : 2;
    mark(l.bed, 'stroke-width', state === 'stuck' ? 3.5 : wide.toFixed(1));
    mark(l.bed, 'data-state', state);
    mark(l.run, 'stroke-width', Math.max(1.8, wide * 0.6).toFixed(1));
    mark(l.run, 'data-state', state);
    mark(l.run, 'data-speed', rows <= 0 || state === 'stuck' ? undefined : rows < 10 ? 1 : rows < 200 ? 2 : rows < 5000 ? 3 : 4);
  }

  updateNodes(status, worst, edges, streams) {
    const views = new Map();
    for (const n of status.nodes) {
      const name = n.name.startsWith('gateway/') ? 'gateway' : n.name;
      const sum = views.get(name) ?? { bad: 0 };
      sum.bad += n.bad;
      sum.out = (sum.out ?? 0) + n.out_rate;
      views.set(name, sum);
    }
    // What the stream of the gateway carries is its own and the sources'.
    const sources = this.graph.nodes.reduce((sum, n) => sum + (n.kind === 'source' ? views.get(n.name)?.out ?? 0 : 0), 0);
    let dead = 0;
    for (const [name, p] of this.parts.nodes) {
      const rows = p.node.kind === 'source' ? views.get(name)?.out ?? 0
        : p.node.kind === 'gateway' ? Math.max(0, p.node.outputs.reduce((sum, s) => sum + (streams.get(s)?.rate ?? 0), 0) - sources)
        : p.node.inputs.reduce((sum, s) => sum + (edges.get(`${s} ${name}`)?.rate ?? 0), 0);
      say(p.rate, `${rate(rows)}${p.tall ? '' : ' rows'}/s`, p.room);
      mark(p.g, 'data-state', worst.get(`n ${name}`)?.state);
      const bad = views.get(name)?.bad ?? 0;
      dead += bad;
      p.bad.style.display = bad > 0 ? '' : 'none';
      if (bad > 0) this.badge(p, bad);
      for (const l of this.parts.drain) {
        if (l.stream && l.stream === p.node.dead) mark(l.path, 'data-state', bad > 0 ? 'dead' : undefined);
      }
    }
    for (const l of this.parts.drain) {
      if (!l.stream) mark(l.path, 'data-state', dead > 0 ? 'dead' : undefined);
    }
    if (this.drainText && !this.narrow.matches) {
      write(this.drainText.text, dead > 0 ? plural(dead, 'dead letter', 'dead letters') : 'No dead letters');
      mark(this.drainText.g, 'data-state', dead > 0 ? 'dead' : undefined);
    }
  }

  badge(p, bad) {
    const text = `${short(bad)} bad`;
    if (p.badText.textContent === text) return;
    const width = text.length * 6.2 + 16;
    const right = p.box.x + p.box.w + (p.tall ? -72 : 8), y = p.tall ? p.box.y + p.box.h / 2 - 9.5 : p.box.y - 10;
    mark(p.badBox, 'x', right - width);
    mark(p.badBox, 'y', y);
    mark(p.badBox, 'width', width);
    place(p.badText, right - width / 2, y + 13.5);
    p.badText.textContent = text;
    mark(p.bad, 'aria-label', `${plural(bad, 'dead letter', 'dead letters')} of ${p.node.name}. Look at new ones`);
  }

  // mark shows which stream is open.
  mark(stream) {
    this.opened = stream;
    for (const [name, l] of this.parts.labels) mark(l.g, 'data-open', name === stream ? 'true' : undefined);
  }
}

// say writes a text that must fit into a room.
function say(text, words, room) {
  if (text.textContent === words) return;
  text.textContent = words;
  fit(text, room);
}

function place(text, x, y, anchor) {
  mark(text, 'x', x);
  mark(text, 'y', y);
  mark(text, 'text-anchor', anchor);
}
