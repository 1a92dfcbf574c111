// The state of the page, and who draws when.

import { scale } from "./colour.js";
import { kind, show, welded } from "./cell.js";
import {
  field,
  finish,
  input,
  lane,
  model,
  openPage,
  reach,
  run,
  step,
  telling,
  there,
  windowAround,
} from "./data.js";
import { diagram } from "./diagram.js";
import { process } from "./process.js";
import { ribbon } from "./ribbon.js";
import { map } from "./map.js";
import { curves } from "./curves.js";
import { text } from "./text.js";
import { lanes } from "./lanes.js";
import { reaching } from "./reach.js";
import { brief, slices, slicing } from "./paint.js";
import { SORTS, controls } from "./controls.js";
import { labels, table } from "./labels.js";

const $ = (id) => document.getElementById(id);
const page = openPage(JSON.parse($("meta").textContent), (id) => $(`b${id}`).textContent);
const MOMENTS = ["join", "forget", "write", "update", "read"];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const low = window.matchMedia("(max-height: 480px)"); // the bar scrolls away

export const state = {
  model: 0,
  batch: 0,
  layer: 0,
  dir: 0,
  t: 0,
  unit: 0,
  out: 0,
  moment: 1,
  field: "c",
  grad: false,
  sort: "index",
  win: [0, 1],
  clock: 0,
  playing: false,
  pace: "moment",
  theme: null,
  printing: false,
};

// What the parts share -------------------------------------------------------------------------

const limits = new Map();
const styles = new Map(); // by theme
const widths = new Map(); // of elements that hold a drawing: to ask lays out the page
const app = {
  page,
  state,
  set,
  field: (s, name, grad = false) => field(page, s, name, grad),
  words: () => (page.meta.tokens === null ? null : page.meta.tokens[state.batch]),
  last: () => (state.dir === 1 ? "t+1" : "t−1"),
  theme: () => (state.printing ? "light" : (state.theme ?? (dark.matches ? "dark" : "light"))),
  row: () => (state.field === "h" ? state.out : state.unit),
  rowName: () => (state.field === "h" && projects() ? "output" : "unit"),
  // the largest magnitude of a field over the whole lane
  limit(s, name, grad = false) {
    const key = [s.model, s.batch, s.layer, s.dir, name, grad].join();
    if (!limits.has(key)) limits.set(key, reach(field(page, s, name, grad)?.data ?? []));
    return limits.get(key);
  },
  scale(s = state) {
    if (s.grad) return scale("signed", app.limit(s, s.field, true), 1 / 3);
    return app.scaleOf(s.field, s);
  },
  // the scale of a value of a step by its name, the same wherever it is shown
  scaleOf(name, s = state) {
    if (name.startsWith("z_")) return scale("signed", 4);
    if ("ifo".includes(name) && kind(model(page, s).cell, name) === "gate") return scale("gate");
    const like = {
      cBefore: "c",
      kept: "c",
      written: "c",
      read: "c",
      shown: projects() ? "c" : "h",
    };
    return scale("signed", app.limit(s, like[name] ?? name));
  },
  width(host) {
    if (!widths.has(host)) widths.set(host, host.clientWidth);
    return widths.get(host);
  },
  style() {
    const theme = app.theme();
    if (!styles.has(theme)) styles.set(theme, app.styleNow());
    return styles.get(theme);
  },
  styleNow() {
    const css = getComputedStyle(document.documentElement);
    const get = (name) => css.getPropertyValue(name).trim();
    const [sans, mono] = [get("--sans"), get("--mono")];
    return {
      ink: get("--ink"),
      soft: get("--soft"),
      line: get("--line"),
      accent: get("--accent"),
      forward: get("--forward"),
      reverse: get("--reverse"),
      other: get("--other"),
      small: `12px ${sans}`,
      smallBold: `600 12px ${sans}`,
      mono: `13px ${mono}`,
      text: `17px ${mono}`,
      textWords: `17px ${get("--serif")}`,
      monoSmall: `11.5px ${mono}`,
      monoBold: `600 12px ${mono}`,
    };
  },
  select(row, more = {}) {
    set({ ...(state.field === "h" && projects() ? { out: row } : { unit: row }), ...more });
  },
  zoom(by) {
    const T = run(page, state).T;
    const width = Math.max(Math.min(T, 8), Math.round((state.win[1] - state.win[0]) * by));
    set({ win: by === 0 || width >= T ? [0, T] : windowAround([0, 0], width, state.t, T) });
  },
};

function projects() {
  const { size } = model(page, state);
  return size.P !== size.H || model(page, state).weights?.[0][0].W_hr !== undefined;
}

// State ----------------------------------------------------------------------------------------

// The first change after a frame is drawn at once, so that the next frame shows it; those that follow
// within that frame wait for it, and are drawn together.
let changed = false;
let waiting = false;

function redraw() {
  if (changed) draw();
}

function change() {
  changed = true;
  stir();
  if (waiting) return;
  waiting = true;
  queueMicrotask(redraw);
  requestAnimationFrame(() => {
    waiting = false;
    redraw();
  });
}

// What was last asked for, so that a model that has it finds it again after one that has not.
const asked = { layer: 0, dir: 0, unit: 0, field: "c" };

export function set(patch) {
  const T0 = state.win[1] - state.win[0];
  const whole = T0 === run(page, state).T;
  for (const name of Object.keys(asked)) if (name in patch) asked[name] = patch[name];
  Object.assign(state, patch, asked);
  const { meta } = page;
  const clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
  state.model = clamp(state.model, meta.models.length);
  state.batch = clamp(state.batch, meta.batch.length);
  const { size, cell } = model(page, state);
  const T = run(page, state).T;
  state.layer = clamp(state.layer, size.L);
  state.dir = clamp(state.dir, size.D);
  state.t = clamp(state.t, T);
  state.unit = clamp(state.unit, size.H);
  state.out = projects() ? clamp(state.out, size.P) : state.unit;
  if (welded(cell, state.field)) state.field = cell.has_cell_state ? "c" : "h";
  if (!cell.has_cell_state && state.field === "c") state.field = "h";
  if (state.grad && lane(page, state).grad === null) state.grad = false;
  if (state.grad && field(page, state, state.field, true) === null) state.field = "h";
  if (state.sort !== "index" && !lane(page, state)[state.sort]) state.sort = "index";
  if (patch.batch !== undefined || patch.model !== undefined) state.clock = T;
  state.win =
    whole && !patch.win ? [0, T] : windowAround(state.win, state.win[1] - state.win[0], state.t, T);
  if (patch.playing === false) stop();
  change();
}

// Drawing --------------------------------------------------------------------------------------

// A part draws when its place is on the screen; elsewhere it waits until it is, or until idle.
const parts = [
  ["ribbon", ribbon($("ribbon"), app)],
  ["cell", cellView()],
  ["units", map($("map"), app)],
  ["unit-curves", curves($("unit-curves"), app)],
  ["unit-text", text($("unit-text"), app)],
  ["directions", lanes($("lane-view"), app)],
  ["gradient", reaching($("reach-view"), app)],
  ["numbers", (s) => table(app, s)],
].map(([id, drawPart]) => ({ place: $(id), draw: drawPart, near: false, stale: true }));

let watch = null;

function observe() {
  watch?.disconnect();
  const covered = low.matches ? 0 : 144; // by the bar
  watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        for (const part of parts) if (part.place === entry.target) part.near = entry.isIntersecting;
      }
      refresh();
    },
    { rootMargin: `-${covered}px 0px 0px 0px` },
  );
  for (const part of parts) {
    if (part.place === $("ribbon"))
      part.near = true; // in the bar, on screen nearly always
    else watch.observe(part.place);
  }
}

observe();
low.addEventListener("change", observe);
const bar = document.querySelector(".bar");
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--bar", `${bar.offsetHeight}px`); // what is focused stays clear of it
}).observe(bar);

let idle = null; // the drawing of the parts off screen, while nothing happens
let resting = false;

// Nothing is left to do: all parts are drawn, and what is made ahead is made.
export const rested = () => resting && !slicing();

function* drawing(which) {
  for (const part of parts) {
    if (!part.stale || !which(part)) continue;
    yield* part.draw(state) ?? []; // a part that takes long has places to stop
    part.stale = false;
    yield;
  }
}

function refresh(all = false) {
  if (idle !== null) idle = drawing(() => true); // a part half drawn there is begun again
  finish(drawing((part) => part.near || all));
}

// The numbers that a key may ask for next: of this lane, of the others of its run, and of the same place
// in the other models and sequences.
const decoded = slices();
let ready = null; // the lane for which they are decoded, or about to be

function* blocks(s) {
  const elsewhere = page.meta.models.flatMap((_, m) =>
    page.meta.batch.map((_, batch) => there(page, { ...s, batch }, m)),
  );
  const beside = run(page, s).lanes.flatMap((all, layer) => all.map((_, dir) => ({ ...s, layer, dir })));
  for (const place of [s, ...beside, ...elsewhere]) {
    const { value, grad } = lane(page, place);
    const weights = model(page, place).weights?.[place.layer][place.dir] ?? {};
    const { x } = run(page, place);
    for (const refs of [value, x, weights, grad ?? {}]) {
      for (const ref of Object.values(refs)) if (typeof ref === "number") yield* page.decoding(ref);
    }
  }
}

// While nothing happens: the parts off screen. Chromium may find a page at rest busy for as long as it
// draws no frame, as after a resize: hence the limit.
const whenIdle = () => requestIdleCallback(work, { timeout: 1000 });

function work(deadline) {
  if (idle === null) return;
  const end = performance.now() + 5; // a key may come while the browser still calls this idle
  let done;
  do {
    done = idle.next().done;
  } while (!done && performance.now() < end && (deadline.didTimeout || deadline.timeRemaining() > 15));
  resting = done;
  if (!done) whenIdle();
}

function stir() {
  clearTimeout(draw.rest);
  idle = null;
  resting = false;
}

function rest() {
  if (!window.requestIdleCallback) {
    refresh(true);
    resting = true;
    return;
  }
  idle = drawing(() => true);
  whenIdle();
}

function cellView() {
  const moments = process($("process"), app);
  const structures = new Map(); // by model and direction
  let drawn = null;
  return (s) => {
    const { cell } = model(page, s);
    const place = `${s.model} ${s.dir}`;
    if (!structures.has(place)) structures.set(place, diagram(cell, s.dir === 1, projects()));
    const { svg, draw } = structures.get(place);
    if (!svg.isConnected) $("diagram").replaceChildren(svg);
    const playing = s.playing && !calm.matches;
    const key = [place, s.batch, s.layer, s.t, s.unit, s.out, s.moment];
    key.push(s.printing, playing);
    if (drawn === key.join()) return; // only the map changed
    drawn = key.join();
    const p = step(page, s);
    draw(p, {
      scaleOf: app.scaleOf,
      moment: state.printing ? null : MOMENTS[s.moment],
      playing,
      word: word(s),
      unit: s.unit,
    });
    moments(s, p, cell);
  };
}

// A number of the reader's own: large ones whole, as they would be known again.
function known(v) {
  const large = Math.abs(v) >= 1e4 && Math.abs(v) < 1e12;
  return large ? Math.round(v).toLocaleString("en").replace("-", "−") : show(v);
}

function word(s) {
  const words = app.words();
  if (words !== null && page.meta.kind !== "series") return `“${brief(words[s.t])}”`;
  const x = words === null ? [...input(page, { ...s, layer: 0 }, s.t)] : [Number(words[s.t])];
  const { columns } = page.meta;
  const name = (k) => (columns?.length === x.length && columns[k] ? `${columns[k]} ` : "");
  const said = x.slice(0, 4).map((v, k) => name(k) + known(v)).join(" and ");
  return x.length <= 3 && said.length <= 38 ? said : `${x.length} numbers`;
}

function draw() {
  performance.mark("draw-start");
  changed = false;
  stir();
  const s = state;
  document.documentElement.dataset.theme = app.theme();
  document.documentElement.classList.toggle("playing", s.playing && !calm.matches);
  document.documentElement.classList.remove("resizing");
  for (const part of parts) part.stale = true;
  describe(s, word(s));
  refresh(s.printing);
  if (ready !== lane(page, s)) {
    ready = lane(page, s);
    decoded(blocks({ ...s }), () => {});
  }
  performance.measure("draw", "draw-start");
  if (!s.playing) draw.rest = setTimeout(rest, 500);
}

dark.addEventListener("change", () => set({}));
calm.addEventListener("change", () => set({}));
// While the window is dragged its drawings stretch with it; they are made anew when it has come to rest.
window.addEventListener("resize", () => {
  stir();
  widths.clear();
  document.documentElement.classList.add("resizing");
  clearTimeout(draw.anew);
  draw.anew = setTimeout(() => set({}), 100);
});
const printing = (on) => {
  state.printing = on;
  document.documentElement.classList.toggle("printing", on); // as wide as paper, before it is drawn
  widths.clear();
  draw();
};
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));

// The address ----------------------------------------------------------------------------------

// A view can be linked to: page.html#t=4&unit=7&field=f.
const NUMBERS = ["model", "batch", "layer", "dir", "t", "unit", "out", "moment"];

function remember(s) {
  const names = [...NUMBERS, "field", "sort", "pace", ...(s.theme === null ? [] : ["theme"])];
  const kept = [...names.map((name) => `${name}=${s[name]}`), `grad=${Number(s.grad)}`];
  const [a, b] = s.win;
  if (b - a < run(page, s).T) kept.push(`win=${a}-${b}`);
  try {
    history.replaceState(null, "", `#${kept.join("&")}`);
  } catch {
    // a frame without an address of its own
  }
}

function linked() {
  const given = new URLSearchParams(location.hash.slice(1));
  const out = {};
  for (const name of NUMBERS)
    if (/^\d+$/.test(given.get(name) ?? "")) out[name] = Number(given.get(name));
  const words = {
    field: [..."ifgoch"],
    sort: SORTS,
    theme: ["light", "dark"],
    pace: ["moment", "step", "fast"],
  };
  for (const [name, known] of Object.entries(words))
    if (known.includes(given.get(name))) out[name] = given.get(name);
  if (given.has("grad")) out.grad = given.get("grad") === "1";
  const win = /^(\d+)-(\d+)$/.exec(given.get("win") ?? "");
  if (win !== null) out.win = [Number(win[1]), Number(win[2])];
  if (out.moment > 4) delete out.moment;
  return out;
}

const describe = labels(app, remember);
const stop = controls(app);
state.win = [0, run(page, state).T];
state.clock = run(page, state).T;
set({ ...telling(page, state), ...linked() });
window.addEventListener("hashchange", () => {
  const given = linked();
  if (Object.keys(given).length > 0) set({ win: [0, Infinity], ...given, playing: false });
});
