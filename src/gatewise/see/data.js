// The numbers of the page, and what is computed from them. Pure: nothing here draws or listens.
//   T steps   I input size   H hidden size   P output size   t a step, u a unit, d a direction

import { welded } from "./cell.js";

// Runs a generator to its end: what it returns.
export function finish(making) {
  let step;
  do step = making.next();
  while (!step.done);
  return step.value;
}

// What was made under a key, made once; of too many, the one asked for longest ago leaves.
export function store(most) {
  const kept = new Map();
  const get = (key, make) => {
    const found = kept.has(key) ? kept.get(key) : make();
    kept.delete(key);
    kept.set(key, found);
    if (kept.size > most) kept.delete(kept.keys().next().value);
    return found;
  };
  get.has = (key) => kept.has(key);
  return get;
}

const PIECE = 1 << 16; // characters of base64, a multiple of 4

// A base64 block of little-endian float32 as a typed array, with a place to stop after each piece.
export function* decode(text) {
  const last = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
  const bytes = new Uint8Array((text.length / 4) * 3 - last);
  for (let from = 0; from < text.length; from += PIECE) {
    const piece = text.slice(from, from + PIECE);
    const here = bytes.subarray((from / 4) * 3);
    if (here.setFromBase64) here.setFromBase64(piece);
    else {
      const raw = atob(piece);
      for (let k = 0; k < raw.length; k++) here[k] = raw.charCodeAt(k);
    }
    yield;
  }
  return new Float32Array(bytes.buffer);
}

// The page's numbers: its description, and blocks decoded when first asked for, or ahead of that by
// `decoding`, step by step.
export function openPage(meta, read) {
  const blocks = new Map();
  const begun = new Map();
  function* opening(id) {
    const text = read(id); // megabytes: to reach them is a piece of work of its own
    yield;
    blocks.set(id, yield* decode(text));
  }
  const decoding = (id) => {
    if (!begun.has(id)) begun.set(id, opening(id));
    return begun.get(id);
  };
  const block = (id) => {
    if (!blocks.has(id)) finish(decoding(id));
    return blocks.get(id);
  };
  return { meta, block, decoding, filled: new Map(), lines: store(24) };
}

export const model = (page, s) => page.meta.models[s.model];
export const run = (page, s) => model(page, s).runs[s.batch];
export const lane = (page, s) => run(page, s).lanes[s.layer][s.dir];

// The same place in another model: a layer and direction that it has.
export function there(page, s, m) {
  const { D, L } = page.meta.models[m].size;
  return { ...s, model: m, layer: Math.min(s.layer, L - 1), dir: Math.min(s.dir, D - 1) };
}

// What the values on show depend on, as the key of a drawing that is kept.
export const shown = (s, ...more) =>
  [s.model, s.batch, s.layer, s.dir, s.field, s.grad, ...more].join();

// Where a lane reads and writes at step t: a reverse lane comes from t + 1.
export const before = (s, t) => (s.dir === 1 ? t + 1 : t - 1);

// What the page holds of a field: the number of a block, {fill} if it is one value everywhere, or null.
function held(page, s, name, grad) {
  const here = lane(page, s);
  return (grad ? here.grad?.[name] : here.value[name]) ?? null;
}

const widthOf = (page, s, name) => model(page, s).size[name === "h" ? "P" : "H"];

// One field of the chosen lane as {data, width}: step t of unit u is data[t * width + u].
export function field(page, s, name, grad = false) {
  const ref = held(page, s, name, grad);
  const width = widthOf(page, s, name);
  if (ref === null) return null;
  if (typeof ref === "number") return { data: page.block(ref), width };
  const T = run(page, s).T;
  const key = `${ref.fill} ${T * width}`;
  if (!page.filled.has(key)) page.filled.set(key, new Float32Array(T * width).fill(ref.fill));
  return { data: page.filled.get(key), width };
}

export function at(page, s, name, t, u, grad = false) {
  const ref = held(page, s, name, grad);
  if (typeof ref === "number") return page.block(ref)[t * widthOf(page, s, name) + u];
  return ref === null ? null : ref.fill;
}

// All steps of one unit: gathered from all over the memory, so those asked for last are kept.
export function series(page, s, name, u, grad = false) {
  const values = field(page, s, name, grad);
  if (values === null) return null;
  return page.lines(shown(s, name, u, grad), () =>
    Float32Array.from({ length: run(page, s).T }, (_, t) => values.data[t * values.width + u]),
  );
}

// The vector c or h before step t; before the first one, the state the run began with.
export function stateBefore(page, s, name, t) {
  const T = run(page, s).T;
  const from = before(s, t);
  if (from < 0 || from >= T) return page.block(lane(page, s)[`${name}0`]);
  const { data, width } = field(page, s, name);
  return data.subarray(from * width, (from + 1) * width);
}

// The input vector of the chosen layer at step t: x, or the joined output of the layer below.
export function input(page, s, t) {
  const { I, D, P } = model(page, s).size;
  const id = run(page, s).x[s.layer];
  if (id === null) return outputAt(page, { ...s, layer: s.layer - 1 }, t);
  const width = s.layer === 0 ? I : D * P;
  return page.block(id).subarray(t * width, (t + 1) * width);
}

// What number k of that vector is called: by its column, where the data has names.
export const inputName = (page, s, k) =>
  s.layer > 0 ? `below[${k}]` : page.meta.columns?.[k] || `x[${k}]`;

// The output of a layer at step t: h of both directions, forward half first.
export function outputAt(page, s, t) {
  const { D, P } = model(page, s).size;
  const out = new Float32Array(D * P);
  for (let d = 0; d < D; d++) {
    const { data } = field(page, { ...s, dir: d }, "h");
    out.set(data.subarray(t * P, (t + 1) * P), d * P);
  }
  return out;
}

export const activations = {
  sigmoid: (z) => 1 / (1 + Math.exp(-z)),
  tanh: Math.tanh,
  relu: (z) => Math.max(0, z),
  identity: (z) => z,
  one: () => 1,
  zero: () => 0,
};

const NAMED = 5; // so many terms of a sum are told apart

// The products weight * value of a sum as they come: the largest in order, and the others in one.
// A product that is not a number counts as the largest.
function products() {
  const all = { top: [], others: 0, rest: 0 };
  const size = (part) => (Number.isNaN(part) ? Infinity : Math.abs(part));
  const leave = (part) => {
    all.others += 1;
    all.rest += part;
  };
  const add = (kind, index, weight, value) => {
    const part = weight * value;
    const { top } = all;
    if (part === 0) return part;
    if (top.length === NAMED && size(part) <= size(top[NAMED - 1].part)) {
      leave(part);
      return part;
    }
    let at = top.length;
    while (at > 0 && size(part) > size(top[at - 1].part)) at -= 1;
    top.splice(at, 0, { kind, index, weight, value, part });
    if (top.length > NAMED) leave(top.pop().part);
    return part;
  };
  return { all, add };
}

// What one gate of unit u hears at step t: {x, h, bias, peep, z, size, terms}, size the sum of the
// magnitudes; null without weights.
export function hears(page, s, gate) {
  const { cell, weights, size: { H } } = model(page, s);
  const place = cell.gates.indexOf(gate);
  if (weights === null || place < 0) return null;
  const w = weights[s.layer][s.dir];
  const row = place * H + s.unit;
  const { all, add: note } = products();
  let size = 0;
  const add = (...term) => {
    const part = note(...term);
    size += Math.abs(part);
    return part;
  };
  const product = (kind, block, values) => {
    const W = page.block(block);
    let sum = 0;
    for (let k = 0; k < values.length; k++)
      sum += add(kind, k, W[row * values.length + k], values[k]);
    return sum;
  };
  const x = product("x", w.W_ih, input(page, s, s.t));
  const h = product("h", w.W_hh, stateBefore(page, s, "h", s.t));
  const bias = ["b_ih", "b_hh"].reduce(
    (sum, name) => sum + (w[name] === undefined ? 0 : page.block(w[name])[row]),
    0,
  );
  let peep = 0;
  if (cell.peephole && w.peep !== undefined && gate !== "g") {
    const weight = page.block(w.peep)["ifo".indexOf(gate) * H + s.unit];
    const seen =
      gate === "o" ? at(page, s, "c", s.t, s.unit) : stateBefore(page, s, "c", s.t)[s.unit];
    peep = add("c", s.unit, weight, seen);
  }
  add("bias", null, bias, 1);
  return { x, h, bias, peep, z: x + h + bias + peep, size, terms: all };
}

// Everything that happens to the chosen unit at the chosen step.
export function step(page, s) {
  const { cell, size, weights } = model(page, s);
  const value = Object.fromEntries("ifgoc".split("").map((n) => [n, at(page, s, n, s.t, s.unit)]));
  const heard = Object.fromEntries(cell.gates.map((gate) => [gate, hears(page, s, gate)]));
  const cBefore = cell.has_cell_state ? stateBefore(page, s, "c", s.t)[s.unit] : 0;
  const projected = weights !== null && weights[s.layer][s.dir].W_hr !== undefined;
  const read = activations[cell.out](value.c);
  // dropout between layers changes the input on its way here, and then these sums are not the gate's;
  // a float32 sum of large numbers is not quite theirs, either
  const matches = cell.gates.every((gate) => {
    if (heard[gate] === null) return true;
    const apart = Math.abs(activations[cell[gate]](heard[gate].z) - value[gate]);
    return !(apart > 2e-3 + 1e-5 * heard[gate].size);
  });
  return {
    ...value,
    cBefore,
    heard,
    matches,
    projected,
    read,
    h: at(page, s, "h", s.t, s.out),
    x: input(page, s, s.t),
    hBefore: stateBefore(page, s, "h", s.t),
    kept: value.f * cBefore,
    written: value.i * value.g,
    shown: value.o * read,
    first: before(s, s.t) < 0 || before(s, s.t) >= run(page, s).T,
    size,
  };
}

// The parts of output p of a projection: its weights times what each unit shows.
export function projection(page, s) {
  const { cell, size, weights } = model(page, s);
  const W = page.block(weights[s.layer][s.dir].W_hr);
  const { all, add } = products();
  for (let u = 0; u < size.H; u++) {
    const value = at(page, s, "o", s.t, u) * activations[cell.out](at(page, s, "c", s.t, u));
    add("m", u, W[s.out * size.H + u], value);
  }
  return all;
}

// The order of the rows of a map, a permutation of 0 .. width - 1.
export function order(here, how, width) {
  const index = Array.from({ length: width }, (_, k) => k);
  const key = here[how];
  if (how === "index" || !key || key.length !== width) return index;
  if (how === "similarity") return key;
  const value = (k) => (key[k] === null ? Infinity : key[k]); // a gate that never closes
  return index.sort((a, b) => (value(b) === value(a) ? a - b : value(b) > value(a) ? 1 : -1));
}

// Steps a .. b - 1 of a field in n columns of m means. A row is a unit of `rows`, or the mean of the
// neighbours that share it. Yields [column, means]; the means are good until the next is asked for.
export function* means({ data, width }, rows, a, b, n, m) {
  const units = Int32Array.from(rows).sort(); // read as they lie in memory
  const places = Array.from(rows, (unit, r) => [unit, Math.floor((r * m) / rows.length)]);
  const rowOf = Int32Array.from(places.sort(([p], [q]) => p - q), ([, row]) => row);
  const share = new Int32Array(m); // how many units have a row
  for (const row of rowOf) share[row] += 1;
  const sums = new Float64Array(m);
  for (let column = 0, t = a; column < n; column++) {
    const [from, to] = [t, a + Math.ceil(((column + 1) * (b - a)) / n)];
    sums.fill(0);
    for (; t < to; t++) gather(sums, rowOf, data, t * width, units);
    for (let row = 0; row < m; row++) sums[row] /= share[row] * (to - from);
    yield [column, sums];
  }
}

function gather(sums, rowOf, data, from, units) {
  for (let k = 0; k < units.length; k++) sums[rowOf[k]] += data[from + units[k]];
}

// The largest finite magnitude, never 0; at most `samples` values are looked at.
export function reach(data, samples = 200000) {
  const stride = Math.max(1, Math.floor(data.length / samples));
  let most = 0;
  for (let k = 0; k < data.length; k += stride) {
    const size = Math.abs(data[k]);
    if (size > most && size < Infinity) most = size;
  }
  return most || 1;
}

// Norm over the units of a gradient at each step; null if there is none.
export function norms(page, s, name) {
  const values = field(page, s, name, true);
  if (values === null) return null;
  const T = values.data.length / values.width;
  const out = new Float64Array(T);
  for (let t = 0; t < T; t++) {
    let sum = 0;
    for (let u = 0; u < values.width; u++) sum += values.data[t * values.width + u] ** 2;
    out[t] = Math.sqrt(sum);
  }
  return out;
}

// How far a gradient reaches: steps between its largest norm and the farthest step, against the
// direction of the run, that still has `share` of it.
export function distance(norm, reverse, share = 0.01) {
  const seen = Array.from(norm, (n) => (Number.isFinite(n) ? n : 0));
  if (reverse) seen.reverse();
  const top = seen.reduce((a, b) => Math.max(a, b), 0);
  if (!(top > 0)) return { steps: 0, whole: false };
  const from = seen.lastIndexOf(top);
  let far = from;
  for (let t = 0; t < from; t++)
    if (seen[t] >= share * top) {
      far = t;
      break;
    }
  return { steps: from - far, whole: far === 0 };
}

// Steps of a window that shows `width` of T steps and holds t, moving only as far as it must.
export function windowAround([a, b], width, t, T) {
  const size = Math.max(1, Math.min(width, T));
  let from = b - a === size ? a : Math.round(t - size / 2);
  if (t < from) from = t;
  if (t >= from + size) from = t - size + 1;
  from = Math.max(0, Math.min(T - size, from));
  return [from, from + size];
}

// Where to begin: the unit and the step at which most is forgotten (in a plain RNN: at which the
// state moves most), among the first steps and units.
export function telling(page, s) {
  const { cell } = model(page, s);
  const c = field(page, s, "c");
  const f = field(page, s, "f");
  const T = Math.min(run(page, s).T, 200);
  const best = { t: 0, unit: 0, moment: welded(cell, "f") ? 2 : 1 }; // write, where nothing forgets
  let most = -1;
  for (let t = 1; t < T; t++) {
    for (let u = 0; u < Math.min(c.width, 128); u++) {
      const old = c.data[(t - 1) * c.width + u];
      const score = cell.has_cell_state
        ? Math.abs(old) * (1 - f.data[t * f.width + u])
        : Math.abs(c.data[t * c.width + u] - old);
      if (score > most) {
        most = score;
        best.t = t;
        best.unit = u;
      }
    }
  }
  return best;
}
