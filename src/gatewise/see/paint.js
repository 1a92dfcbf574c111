// Drawing on canvas that several parts share: sharp canvases, maps of values, axes of steps.

import { paint } from "./colour.js";
import { finish, means, store } from "./data.js";

// An element with properties and children; text children are text, never markup.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Text that stays is left alone, and other text takes its place in the same node: an element need not
// be styled and laid out again for it.
export function write(element, text) {
  const node = element.firstChild;
  if (node === null) element.textContent = text;
  else if (node.data !== text) node.data = text;
}

// A cleared context in CSS pixels, as sharp as the screen.
export function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const context = canvas.getContext("2d");
  const [wide, tall] = [width, height].map((size) => Math.round(size * ratio));
  // Paper takes a canvas as its calls, and what clears it there wipes out what lies under it, too: a
  // canvas that is given its size anew is empty without a call.
  const printing = document.documentElement.classList.contains("printing");
  if (printing || canvas.width !== wide || canvas.height !== tall) {
    canvas.width = 0; // to give it the size that it has would clear it by a call, too
    canvas.width = wide;
    canvas.height = tall;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  } else context.reset();
  context.scale(ratio, ratio);
  context.imageSmoothingEnabled = false; // an image here is made of values
  return context;
}

// Pixels as something that can be drawn.
export function picture(image) {
  const made = new OffscreenCanvas(image.width, image.height);
  made.getContext("2d").putImageData(image, 0, 0);
  return made;
}

// Values of steps a .. b - 1 as an image, a pixel a value: a column a step, row r the unit rows[r]. Where
// there are more values than pixels in a place of across * down CSS pixels, a pixel is their mean, never
// a mix of colours. With a place to stop after each column.
export function* heat(values, rows, a, b, scaled, theme, across, down) {
  const ratio = window.devicePixelRatio || 1;
  const [wide, tall] = [across, down].map((size) => Math.max(1, Math.round(size * ratio)));
  const [n, m] = [Math.min(b - a, wide), Math.min(rows.length, tall)];
  const image = new ImageData(n, m);
  const out = new Uint32Array(image.data.buffer);
  for (const [column, one] of means(values, rows, a, b, n, m)) {
    paint(out, column, n, one, theme, scaled);
    yield;
  }
  return picture(image);
}

const SOON = 100_000; // so many values are drawn within a frame

// Images of values, kept by key. image(key, then, ...as for heat): the whole image at once if it is known
// or soon made, or if `then` is null; else a coarse one, of every by-th step and row, and then() is called
// when the whole one is there.
export function gallery(most) {
  const kept = store(most);
  const whole = slices();
  const image = (key, then, values, rows, a, b, ...how) => {
    const by = Math.ceil(Math.sqrt(((b - a) * rows.length) / SOON));
    if (by <= 1 || then === null || kept.has(key))
      return kept(key, () => finish(heat(values, rows, a, b, ...how)));
    whole(heat(values, rows, a, b, ...how), (made) => {
      kept(key, () => made);
      then();
    });
    const fewer = { data: values.data, width: by * values.width };
    const some = rows.filter((_, r) => r % by === 0);
    return finish(heat(fewer, some, Math.ceil(a / by), Math.ceil(b / by), ...how));
  };
  image.has = kept.has;
  return image;
}

const PAUSE = 50; // milliseconds: the frame that a key asked for needs the processors first

let begun = 0; // of those that run in slices, how many have not come to their end
export const slicing = () => begun > 0;

// Runs a generator to its end some time after the next frame, in slices of a few milliseconds, so that
// keys and frames come between them. One at a time: what is started takes the place of what is not done.
export function slices() {
  let current = null;
  return (making, then) => {
    if (current === null) begun += 1;
    current = making;
    const slice = () => {
      if (current !== making) return;
      const end = performance.now() + 5;
      let step;
      do step = making.next();
      while (!step.done && performance.now() < end);
      if (!step.done) {
        setTimeout(slice);
        return;
      }
      current = null;
      then(step.value);
      begun -= 1;
    };
    requestAnimationFrame(() => setTimeout(slice, PAUSE));
  };
}

// Round steps of an axis from a to b: at most `count` of them.
export function ticks(a, b, count) {
  const raw = Math.max(1, (b - a) / Math.max(1, count));
  const power = 10 ** Math.floor(Math.log10(raw));
  const by = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw);
  const out = [];
  for (let t = Math.ceil(a / by) * by; t < b; t += by) out.push(t);
  return out;
}

// Round values of an axis of numbers.
export function levels(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const by = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= raw * 0.999);
  const out = [];
  for (let v = Math.ceil(low / by - 1e-9) * by; v <= high + 1e-9 * by; v += by)
    out.push(Math.abs(v) < by / 1e6 ? 0 : v);
  return out;
}

// The words of the steps under a plot if they fit, their numbers otherwise.
export function axis(context, { a, b, left, width, y, style, words }) {
  const each = width / (b - a);
  context.fillStyle = style.soft;
  context.textAlign = "center";
  context.textBaseline = "top";
  const few = words !== null && b - a <= 200;
  const widest = few ? Math.max(...words.slice(a, b).map((w) => w.length)) : Infinity;
  if (few && each >= 7.5 * widest + 4) {
    context.font = style.mono;
    context.fillStyle = style.ink;
    for (let t = a; t < b; t++) context.fillText(visible(words[t]), left + (t - a + 0.5) * each, y);
    return;
  }
  context.font = style.small;
  for (const t of ticks(a, b, width / 70))
    context.fillText(String(t), left + (t - a + 0.5) * each, y);
}

// A token as it can be seen: spaces and line ends as signs.
export function visible(token) {
  if (token === "") return "∅";
  return token.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

// A token short enough for a sentence or a wire.
export function brief(token) {
  const signs = [...visible(token)];
  return signs.length > 24 ? `${signs.slice(0, 23).join("")}…` : signs.join("");
}

// A curve. More points than pixels become, in each pixel, the range that they cross.
export function curve(context, values, a, b, xOf, yOf) {
  if (b - a > 0.75 * Math.abs(xOf(b) - xOf(a)) || b - a > 1500) {
    crowd(context, values, a, b, xOf, yOf);
    return;
  }
  // A long line that turns at every point takes canvas six times as long as its pieces; those may not
  // overlap where it is dashed or can be seen through.
  const whole = context.getLineDash().length > 0 || context.globalAlpha < 1;
  const piece = whole ? Infinity : 16;
  context.lineCap = "round";
  context.beginPath();
  let pen = false;
  for (let t = a; t < b; t++) {
    const [x, y] = [xOf(t + 0.5), yOf(values[t])];
    const known = Number.isFinite(y);
    if (known && !pen) context.moveTo(x - 0.01, y); // a point alone is a dot
    if (known) context.lineTo(x, y);
    pen = known;
    if ((t - a) % piece !== piece - 1) continue;
    context.stroke();
    context.beginPath();
    if (pen) context.moveTo(x, y);
  }
  context.stroke();
  context.lineCap = "butt";
}

// Upright strokes in one path: canvas takes fifteen times as long for as many rectangles, and longer
// still for a line with as many corners.
function crowd(context, values, a, b, xOf, yOf) {
  const pixels = Math.floor(Math.abs(xOf(b) - xOf(a)));
  const from = (k) => a + Math.floor((k * (b - a)) / pixels);
  context.save();
  context.setLineDash([]);
  context.lineWidth = 1;
  context.beginPath();
  let last = NaN; // a stroke begins where the one before it ended
  for (let k = 0; k < pixels; k++) {
    let [low, high] = Number.isFinite(last) ? [last, last] : [Infinity, -Infinity];
    for (let t = from(k); t < Math.max(from(k) + 1, from(k + 1)); t++) {
      last = yOf(values[t]);
      if (last < low) low = last;
      if (last > high) high = last;
    }
    if (!(low <= high)) continue;
    const x = Math.floor(xOf(a)) + k + 0.5;
    context.moveTo(x, low - 0.75);
    context.lineTo(x, high + 0.75);
  }
  context.stroke();
  context.restore();
}
