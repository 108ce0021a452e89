// The two versions of a stage that has a shadow or a canary: a report of how they differ, every second while it is open.
import { el, write, count } from './words.js';

const $ = (id) => document.getElementById(id);

export class Versions {
  constructor(stages) {
    $('versions').hidden = stages.length === 0;
    $('versions-buttons').replaceChildren(...stages.map((s) => {
      const button = el('button', { type: 'button' }, `${s.name}: ${s.trial}`);
      button.addEventListener('click', () => this.open(s.name));
      return button;
    }));
    document.addEventListener('visibilitychange', () => { if (document.hidden) this.close('Paused'); });
  }

  close(why) {
    this.running?.abort();
    this.running = undefined;
    write($('versions-hint'), why);
  }

  async open(stage) {
    this.close('Waiting for rows …');
    const running = this.running = new AbortController();
    try {
      const answer = await fetch(`/api/compare?stage=${encodeURIComponent(stage)}`, { signal: running.signal });
      if (!answer.ok) throw new Error((await answer.text()).trim());
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done || running.signal.aborted) return;
        const lines = (rest + value).split('\n');
        rest = lines.pop();
        if (lines.length > 0) this.show(JSON.parse(lines.at(-1)));
      }
    } catch (e) {
      if (!running.signal.aborted) this.close(`Stopped: ${e.message}`);
    }
  }

  show(r) {
    write($('versions-hint'), `${r.stage}: ${r.first} (1) and ${r.second} (2), for ${r.seconds.toFixed(0)} s; set aside ${count(r.dead[0])} and ${count(r.dead[1])}`);
    $('versions-body').replaceChildren(...(r.outputs ?? []).flatMap((o) => [
      el('tr', {}, el('th', { scope: 'rowgroup', colspan: '7' },
        `${o.stream}: ${count(o.paired)} rows paired, only in (1) ${count(o.only[0])}, only in (2) ${count(o.only[1])}, waiting ${count(o.waiting)}`)),
      ...(o.columns ?? []).flatMap((c) => [row(c.name, share(c.equal, c.paired), '(1)', c.first), row('', '', '(2)', c.second)]),
    ]));
  }
}

function row(name, equal, version, s) {
  const n = s.numbers;
  const cells = n ? [n.mean, n.std, n.p50, n.p99].map((x) => String(Number(x.toPrecision(4)))) : ['', '', '', s.distinct === undefined ? '' : `${count(s.distinct)} different`];
  return el('tr', {}, el('td', {}, name), el('td', { class: 'n' }, equal), el('td', {}, version), ...cells.map((c) => el('td', { class: 'n' }, c)));
}

// share says 100 % only where it is all.
const share = (part, all) => (all === 0 ? '–' : part === all ? '100 %' : `${(Math.floor((10_000 * part) / all) / 100).toFixed(2)} %`);
