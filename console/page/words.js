// How numbers, times and elements are written. Nothing here knows what a pipeline is.

const whole = new Intl.NumberFormat('en-US');

export const count = (n) => whole.format(n);

// 1,234,567 → 1.23M where there is little room.
export function short(n) {
  if (n < 100_000) return whole.format(n);
  for (const [unit, size] of [['G', 1e9], ['M', 1e6], ['k', 1e3]]) {
    if (n >= size) return (n / size).toPrecision(3) + unit;
  }
}

export function rate(n) {
  if (n === 0) return '0';
  if (n < 0.1) return '<0.1';
  if (n < 10) return n.toFixed(1);
  return short(Math.round(n));
}

export function age(seconds) {
  if (seconds < 10) return seconds.toFixed(1) + ' s';
  if (seconds < 120) return seconds.toFixed(0) + ' s';
  if (seconds < 7200) return (seconds / 60).toFixed(0) + ' min';
  if (seconds < 172_800) return (seconds / 3600).toFixed(0) + ' h';
  return (seconds / 86_400).toFixed(0) + ' d';
}

export const plural = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;

export const clock = (micros) => new Date(micros / 1000).toLocaleTimeString([], { hour12: false });

// el makes an element. Text only ever becomes text: names come from devices, and devices may be hostile.
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function fill(e, attributes, children) {
  for (const [k, v] of Object.entries(attributes)) {
    if (v !== undefined && v !== null) e.setAttribute(k, v);
  }
  e.append(...children);
  return e;
}

// write and mark touch the page only where something changed.
export function write(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

export function mark(e, name, value) {
  if (value === undefined || value === null) e.removeAttribute(name);
  else if (e.getAttribute(name) !== String(value)) e.setAttribute(name, value);
}

// cut shortens a text that would be too wide even when set narrowly; fit then sets it as narrowly as needed. Faces
// differ in width by a quarter, and the picture is laid out before anyone knows the face.
export function cut(text, width, px) {
  const fits = Math.floor(width / (px * 0.46));
  return text.length <= fits ? text : text.slice(0, Math.max(1, fits - 1)) + '…';
}

export function fit(text, width) {
  text.removeAttribute('textLength');
  if (text.getComputedTextLength() <= width) return;
  text.setAttribute('textLength', width);
  text.setAttribute('lengthAdjust', 'spacingAndGlyphs');
}

export async function copy(text, button, said) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https, only what is selected can be copied.
    const area = el('textarea', { class: 'only-read' });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    button.focus();
  }
  const before = button.dataset.text ?? button.textContent;
  button.dataset.text = before;
  button.textContent = 'Copied';
  said.textContent = 'Copied';
  setTimeout(() => { button.textContent = before; said.textContent = ''; }, 1400);
}
