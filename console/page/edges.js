// The table of edges, grouped by who reads them.
import { el, svg, write, mark, rate, short, count, age, plural } from './words.js';

const points = 60;

export class Edges {
  constructor(table, graph, open, withLag) {
    this.graph = graph;
    this.groups = [];
    this.series = new Map();
    for (const node of graph.nodes) {
      if (node.inputs.length > 0) this.group(table, node, open, withLag);
    }
  }

  group(table, node, open, withLag) {
    const counts = el('span', { class: 'count' }), mild = el('span', { class: 'count mild' });
    const unit = this.graph.units.find((u) => u.name === node.unit);
    const kind = node.kind === 'stage' && unit && unit.stages.length > 1
      ? `stage, one task with ${unit.stages.filter((s) => s !== node.name).join(', ')}` : node.kind;
    const body = el('tbody', {}, el('tr', {}, el('th', { scope: 'rowgroup', colspan: 7 }, node.name, el('span', { class: 'kind' }, kind), ' ', counts, ' ', mild)));
    const group = { node, counts, mild, rows: [] };
    for (const name of node.inputs) group.rows.push(this.row(body, node, name, open, withLag));
    const empty = el('td', { colspan: 7, class: 'zero' });
    group.empty = el('tr', {}, empty);
    group.emptyText = empty;
    body.append(group.empty);
    table.append(body);
    this.groups.push(group);
  }

  row(body, node, name, open, withLag) {
    const stream = this.graph.streams.find((s) => s.name === name);
    const cell = (c) => el('td', { class: c });
    const r = { stream: name, dead: stream?.dead ?? false, rate: cell('n'), rows: cell('n'), lag: cell('n'), behind: cell('n'), withLag };
    let title = name;
    if (open) {
      title = el('button', { type: 'button' }, name);
      title.addEventListener('click', () => open(name));
    }
    r.line = svg('path');
    r.under = svg('path', { class: 'under' });
    r.tr = el('tr', {}, el('td', {}, title), el('td', { class: 'from wide' }, [stream?.writer, ...stream?.sources ?? []].filter(Boolean).join(', ')),
      el('td', { class: 'wide' }, svg('svg', { class: 'spark', viewBox: '0 0 96 18', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, r.under, r.line)),
      r.rate, r.rows, r.lag, r.behind);
    body.append(r.tr);
    return r;
  }

  // history takes the rates of the minute before the page was opened.
  history(all) {
    for (const h of all ?? []) this.series.set(h.stream, h.rates.slice(-points));
  }

  update(status) {
    for (const s of status.streams) {
      const series = this.series.get(s.name) ?? [];
      series.push(s.rate);
      if (series.length > points) series.shift();
      this.series.set(s.name, series);
    }
    const edges = new Map(status.edges.map((e) => [`${e.stream} ${e.reader}`, e]));
    const nodes = new Map(status.nodes.map((n) => [n.name, n]));
    for (const g of this.groups) this.updateGroup(g, edges, nodes);
  }

  updateGroup(g, edges, nodes) {
    const n = nodes.get(g.node.name), unit = nodes.get(g.node.unit);
    const sum = (field) => (n?.[field] ?? 0) + (unit && unit !== n && this.first(g) ? unit[field] : 0);
    const bad = n?.bad ?? 0, restarts = sum('restarts'), retries = sum('retries'), duplicates = sum('duplicates');
    write(g.counts, [bad > 0 && `${count(bad)} bad`, restarts > 0 && plural(restarts, 'restart', 'restarts')].filter(Boolean).join(', '));
    write(g.mild, [retries > 0 && plural(retries, 'retry', 'retries'), duplicates > 0 && plural(duplicates, 'replayed batch', 'replayed batches')].filter(Boolean).join(', '));
    let empty = 0;
    for (const r of g.rows) {
      const e = edges.get(`${r.stream} ${g.node.name}`);
      const hide = r.dead && !(e && e.rows > 0) && e?.state !== 'slow' && e?.state !== 'stuck';
      r.tr.hidden = hide;
      if (hide) empty++;
      else if (e) this.updateRow(r, e);
    }
    g.empty.hidden = empty === 0;
    write(g.emptyText, `${plural(empty, 'stream', 'streams')} of dead letters, empty`);
  }

  // first says whether a group is the first of its unit: what is counted by the task stands there.
  first(g) { return this.groups.find((o) => o.node.unit === g.node.unit) === g; }

  updateRow(r, e) {
    write(r.rate, rate(e.rate));
    write(r.rows, short(e.rows));
    mark(r.rows, 'title', count(e.rows));
    mark(r.rows, 'data-state', r.dead && e.rows > 0 ? 'dead' : undefined);
    const waits = e.state === 'slow' || e.state === 'stuck' ? e.state : undefined;
    write(r.lag, e.lag < 0 ? '–' : short(e.lag));
    mark(r.lag, 'data-state', waits);
    mark(r.lag, 'class', waits ? 'n' : 'n fine');
    mark(r.lag, 'title', e.lags.length > 0 ? `by partition: ${e.lags.map(count).join(', ')}` : 'a plain call inside the task: nothing can wait');
    write(r.behind, e.watermark_age < 0 ? '–' : age(e.watermark_age));
    mark(r.behind, 'data-state', waits);
    mark(r.behind, 'class', waits ? 'n' : 'n fine');
    const series = this.series.get(r.stream) ?? [];
    const top = Math.max(...series, 1e-9);
    const x = (i) => (96 - (series.length - 1 - i) * (96 / (points - 1))).toFixed(1);
    const d = series.map((v, i) => `${i ? 'L' : 'M'}${x(i)} ${(17 - 15 * (v / top)).toFixed(1)}`).join('');
    mark(r.line, 'd', d);
    mark(r.under, 'd', d && `${d}L96 18L${x(0)} 18Z`);
  }
}
