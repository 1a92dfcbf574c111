// The state of the page, its keys, and who draws when.

import { scale } from "./colour.js";
import { exact, kind, names, show, welded } from "./cell.js";
import { at, before, field, input, lane, model, openPage, order, reach, run, step, telling, windowAround } from "./data.js";
import { diagram } from "./diagram.js";
import { process } from "./process.js";
import { ribbon } from "./ribbon.js";
import { map } from "./map.js";
import { curves } from "./curves.js";
import { text } from "./text.js";
import { lanes } from "./lanes.js";
import { reaching } from "./reach.js";
import { el, visible } from "./paint.js";

const $ = (id) => document.getElementById(id);
const page = openPage(JSON.parse($("meta").textContent), (id) => $(`b${id}`).textContent);
const MOMENTS = ["join", "forget", "write", "update", "read"];
const SORTS = ["index", "activity", "memory", "similarity"];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

export const state = {
  model: 0, batch: 0, layer: 0, dir: 0, t: 0, unit: 0, out: 0, moment: 1, field: "c", grad: false,
  sort: "index", win: [0, 1], clock: 0, playing: false, pace: "moment", theme: null, printing: false,
};

// What the parts share -------------------------------------------------------------------------

const limits = new Map();
const app = {
  page, state, set,
  field: (s, name, grad = false) => field(page, s, name, grad),
  words: () => (page.meta.tokens === null ? null : page.meta.tokens[state.batch]),
  last: () => (state.dir === 1 ? "t+1" : "t−1"),
  theme: () => (state.printing ? "light" : state.theme ?? (dark.matches ? "dark" : "light")),
  row: () => (state.field === "h" ? state.out : state.unit),
  rowName: () => (state.field === "h" && projects() ? "output" : "unit"),
  // the largest magnitude of a field over the whole lane
  limit(s, name, grad = false) {
    const key = [s.model, s.batch, s.layer, s.dir, name, grad].join();
    if (!limits.has(key)) limits.set(key, reach(field(page, s, name, grad)?.data ?? []));
    return limits.get(key);
  },
  scale() {
    if (state.grad) return scale("signed", app.limit(state, state.field, true), 1 / 3);
    return app.scaleOf(state.field);
  },
  // the scale of a value of a step by its name, the same wherever it is shown
  scaleOf(name) {
    if (name.startsWith("z_")) return scale("signed", 4);
    if ("ifo".includes(name) && kind(model(page, state).cell, name) === "gate") return scale("gate");
    const like = { cBefore: "c", kept: "c", written: "c", read: "c", shown: projects() ? "c" : "h" };
    return scale("signed", app.limit(state, like[name] ?? name));
  },
  style() {
    const css = getComputedStyle(document.documentElement);
    const get = (name) => css.getPropertyValue(name).trim();
    const [sans, mono] = [get("--sans"), get("--mono")];
    return {
      ink: get("--ink"), soft: get("--soft"), line: get("--line"), accent: get("--accent"),
      forward: get("--forward"), reverse: get("--reverse"), other: get("--other"),
      small: `12px ${sans}`, smallBold: `600 12px ${sans}`, mono: `13px ${mono}`,
      text: `17px ${mono}`, textWords: `17px ${get("--serif")}`, monoSmall: `11.5px ${mono}`, monoBold: `600 12px ${mono}`,
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

let pending = null;

export function set(patch) {
  const T0 = state.win[1] - state.win[0];
  const whole = T0 === run(page, state).T;
  Object.assign(state, patch);
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
  state.win = whole && !patch.win ? [0, T] : windowAround(state.win, state.win[1] - state.win[0], state.t, T);
  if (patch.playing === false) stop();
  if (pending === null) pending = requestAnimationFrame(() => { pending = null; draw(); });
}

// Drawing --------------------------------------------------------------------------------------

// A part draws when its section is near the screen; elsewhere it waits until it is.
const parts = [
  ["ribbon", ribbon($("ribbon"), app)],
  ["cell", cellView()],
  ["units", map($("map"), app)],
  ["unit", curves($("unit-curves"), app)],
  ["unit", text($("unit-text"), app)],
  ["directions", lanes($("lane-view"), app)],
  ["gradient", reaching($("reach-view"), app)],
].map(([id, drawPart]) => ({ section: $(id), draw: drawPart, near: false, stale: true }));

const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    for (const part of parts) if (part.section === entry.target) part.near = entry.isIntersecting;
  }
  refresh();
}, { rootMargin: "200px" });
for (const part of parts) watch.observe(part.section);

function refresh(all = false) {
  for (const part of parts) {
    if (!part.stale || !(part.near || all)) continue;
    part.draw(state);
    part.stale = false;
  }
}

// While nothing happens, bring the parts off screen up to date and decode what a key may ask for.
function prepare(deadline) {
  const waiting = parts.find((part) => part.stale);
  if (waiting !== undefined) {
    waiting.draw(state);
    waiting.stale = false;
    requestIdleCallback(prepare);
    return;
  }
  const here = lane(page, state);
  for (const refs of [here.value, here.grad ?? {}]) {
    for (const ref of Object.values(refs)) {
      if (deadline.timeRemaining() < 10) { requestIdleCallback(prepare); return; }
      if (typeof ref === "number") page.block(ref);
    }
  }
}

function cellView() {
  const moments = process($("process"), app);
  let structure = null;
  let made = null;
  return (s) => {
    const { cell } = model(page, s);
    const key = `${s.model} ${s.dir}`;
    if (made !== key) structure = diagram($("diagram"), cell, s.dir === 1, projects());
    made = key;
    const p = step(page, s);
    structure(p, {
      scaleOf: app.scaleOf, theme: app.theme(), moment: state.printing ? null : MOMENTS[s.moment],
      playing: s.playing && !calm.matches, word: word(s), unit: s.unit,
    });
    moments(s, p, cell);
  };
}

function word(s) {
  const words = app.words();
  if (words !== null) return `“${visible(words[s.t])}”`;
  const x = input(page, { ...s, layer: 0 }, s.t);
  return x.length === 1 ? show(x[0]) : `${x.length} numbers`;
}

function draw() {
  performance.mark("draw-start");
  const s = state;
  document.documentElement.dataset.theme = app.theme();
  document.documentElement.classList.toggle("playing", s.playing && !calm.matches);
  for (const part of parts) part.stale = true;
  refresh(s.printing);
  labels(s, word(s));
  performance.measure("draw", "draw-start");
  clearTimeout(draw.rest);
  if (!s.playing) draw.rest = setTimeout(() => (window.requestIdleCallback ? requestIdleCallback(prepare) : refresh(true)), 500);
}

function labels(s, word) {
  const { cell, size, name } = model(page, s);
  const T = run(page, s).T;
  const here = lane(page, s);
  const unit = `unit ${s.unit}`;
  $("what").textContent = [
    page.meta.models.map((one) => one.name).join(" beside "),
    `${size.L} ${size.L === 1 ? "layer" : "layers"}`,
    `${size.H} units${size.D === 2 ? " each way" : ""}`,
    ...(size.P === size.H ? [] : [`${size.P} outputs`]), `${T} steps`,
  ].join(" · ");
  $("where").replaceChildren("step ", el("b", {}, String(s.t)), ` of ${T}`);
  $("lead").textContent = cell.has_cell_state
    ? `The cell is a memory that runs along the top. At each step it reads one input, and its gates, numbers between 0 and 1, act as valves: they decide what is forgotten, what is written and what is shown. Below: step ${s.t}, ${word}, ${unit}.`
    : `A plain RNN has one number a unit and no gates: each step mixes the input with its last answer and writes over the old state. The dashed parts are what an LSTM adds. Below: step ${s.t}, ${word}, ${unit}.`;
  $("cell-title").textContent = `One step of the ${name}`;
  $("unit-title").textContent = `Unit ${s.unit} over time`;
  const memory = here.memory === null ? undefined : here.memory[s.unit];
  $("unit-lead").textContent = (memory === undefined ? "" : memory === null
    ? "Its forget gate never closes: what it holds stays. "
    : `Left alone, its memory fades to 37 % in ${show(memory)} steps (−1 / mean log f). `)
    + (s.grad ? "The curves show the gradient of the loss." : "");
  $("text-title").textContent = `The text, coloured by ${s.grad ? "the gradient of " : ""}${names[s.field]} ${s.field} of ${app.rowName()} ${app.row()}`;
  $("lanes-title").textContent = size.D === 2 ? "Two directions, joined" : "Where output, h_n and c_n come from";
  $("gradient").classList.toggle("with-hint", here.grad === null);
  $("play").classList.toggle("on", s.playing);
  $("play").ariaLabel = s.playing ? "Pause" : "Play";
  $("theme").textContent = app.theme() === "dark" ? "Light" : "Dark";
  $("grad").checked = s.grad;
  $("grad").disabled = here.grad === null;
  $("grad-hint").hidden = here.grad !== null;
  $("grad-hint").textContent = "Gradients are not in this trace: call backward on a loss of trace.output before writing the page.";
  $("sort").value = s.sort;
  for (const option of $("sort").options) option.disabled = option.value !== "index" && !here[option.value];
  for (const button of $("fields").children) {
    const gone = button.value === "c" ? !cell.has_cell_state : button.value !== "h" && (welded(cell, button.value));
    button.disabled = gone || (s.grad && field(page, s, button.value, true) === null);
    button.setAttribute("aria-checked", String(button.value === s.field));
    button.tabIndex = button.value === s.field ? 0 : -1;
  }
  chooser(s);
  table(s);
  clearTimeout(labels.timer);
  if (!s.playing) {
    labels.timer = setTimeout(() => {
      $("live").textContent = `Step ${s.t} of ${T}, ${word}, ${unit}: `
        + [...cell.gates, ...(cell.has_cell_state ? ["c"] : []), "h"].map((n) => `${names[n]} ${show(at(page, s, n, s.t, n === "h" ? s.out : s.unit))}`).join(", ");
      remember(s);
    }, 400);
  }
}

// The table of exact numbers, with the line of Python that gives each.
function table(s) {
  const lanePath = `l${s.layer}.${s.dir === 1 ? "reverse" : "fwd"}`;
  const batch = page.meta.batch[s.batch];
  $("rows").replaceChildren(...["i", "f", "g", "o", "c", "h"].map((name) => {
    const u = name === "h" ? s.out : s.unit;
    const v = at(page, s, name, s.t, u);
    const slope = lane(page, s).grad === null ? null : at(page, s, name, s.t, u, true);
    const value = el("td", { className: "exact" }, exact(v));
    value.dataset.name = name;
    value.dataset.value = v;
    const grad = el("td", { className: "exact" }, slope === null ? "–" : exact(slope));
    if (slope !== null) grad.dataset.value = slope;
    return el("tr", {}, el("th", { scope: "row" }, `${names[name]} ${name}`), value, grad,
      el("td", {}, el("code", {}, `trace["${lanePath}.${name}"][${s.t}, ${batch}, ${u}]`)));
  }));
}

// Choosers of what there is more than one of.
function chooser(s) {
  const { size } = model(page, s);
  const wanted = [
    ["model", page.meta.models.map((one) => one.name)],
    ["layer", Array.from({ length: size.L }, (_, k) => `layer ${k}`)],
    ["dir", size.D === 2 ? ["forward", "reverse"] : ["forward"]],
    ["batch", page.meta.batch.map((b) => `sequence ${b}`)],
  ].filter(([, options]) => options.length > 1);
  const key = JSON.stringify(wanted);
  const host = $("chooser");
  if (host.dataset.key !== key) {
    host.dataset.key = key;
    host.replaceChildren(...wanted.map(([name, options]) => {
      const select = el("select", { ariaLabel: { model: "Model", layer: "Layer", dir: "Direction", batch: "Sequence" }[name] },
        ...options.map((text, k) => el("option", { value: k }, text)));
      select.dataset.name = name;
      select.addEventListener("change", () => set({ [name]: Number(select.value), playing: false }));
      return select;
    }));
    const unit = el("input", { type: "number", min: 0, id: "unit-number", ariaLabel: "Unit" });
    unit.addEventListener("change", () => set({ unit: Number(unit.value) || 0 }));
    host.append(el("label", { className: "unit-pick" }, "unit ", unit));
  }
  for (const select of host.querySelectorAll("select")) select.value = s[select.dataset.name];
  const unit = $("unit-number");
  unit.max = size.H - 1;
  if (document.activeElement !== unit) unit.value = s.unit;
}

// Playing --------------------------------------------------------------------------------------

let timer = null;

function stop() {
  clearTimeout(timer);
  timer = null;
  state.playing = false;
}

// One step in the order in which the lane reads.
const following = (s, n) => (s.dir === 1 ? s.t - n : s.t + n);

function tick() {
  const T = run(page, state).T;
  const next = following(state, 1);
  const more = next >= 0 && next < T;
  if (state.pace === "moment" && state.moment < 4) set({ moment: state.moment + 1 });
  else if (more) set({ t: next, ...(state.pace === "moment" ? { moment: 0 } : {}) });
  else { set({ playing: false }); return; }
  timer = setTimeout(tick, { moment: 1400, step: 700, fast: 90 }[state.pace]);
}

function play() {
  if (state.playing) { set({ playing: false }); return; }
  const T = run(page, state).T;
  const end = before(state, state.t) < state.t ? T - 1 : 0;
  const again = state.t === end && (state.pace !== "moment" || state.moment === 4);
  set({ playing: true, ...(again ? { t: T - 1 - end, moment: state.pace === "moment" ? 0 : state.moment } : {}) });
  timer = setTimeout(tick, state.pace === "fast" ? 90 : 700);
}

// Input ----------------------------------------------------------------------------------------

const hold = (patch) => set({ ...patch, playing: false });
const cycle = (name, n) => hold({ [name]: (state[name] + 1) % n });

function unitBy(n) {
  const values = field(page, state, state.field, state.grad);
  const rows = order(lane(page, state), state.sort, values.width);
  const at = rows.indexOf(app.row());
  app.select(rows[Math.max(0, Math.min(rows.length - 1, at + n))]);
}

const keys = {
  ArrowLeft: (e) => hold({ t: state.t - (e.shiftKey ? 10 : 1) }),
  ArrowRight: (e) => hold({ t: state.t + (e.shiftKey ? 10 : 1) }),
  ArrowUp: (e) => unitBy(e.shiftKey ? -10 : -1),
  ArrowDown: (e) => unitBy(e.shiftKey ? 10 : 1),
  Home: () => hold({ t: 0 }),
  End: () => hold({ t: run(page, state).T - 1 }),
  " ": play,
  ",": () => hold({ moment: Math.max(0, state.moment - 1) }),
  ".": () => hold({ moment: Math.min(4, state.moment + 1) }),
  d: () => set({ grad: !state.grad }),
  s: () => {
    const known = SORTS.filter((one) => one === "index" || lane(page, state)[one]);
    set({ sort: known[(known.indexOf(state.sort) + 1) % known.length] });
  },
  l: () => cycle("layer", model(page, state).size.L),
  r: () => cycle("dir", model(page, state).size.D),
  b: () => cycle("batch", page.meta.batch.length),
  m: () => cycle("model", page.meta.models.length),
  "+": () => app.zoom(0.5), "=": () => app.zoom(0.5),
  "-": () => app.zoom(2), "−": () => app.zoom(2), 0: () => app.zoom(0),
  t: () => set({ theme: app.theme() === "dark" ? "light" : "dark" }),
  "?": () => $("help").showModal(),
};
for (const name of "ifgoch") keys[name] = () => { if (!$("fields").querySelector(`[value=${name}]`).disabled) set({ field: name }); };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const on = event.target;
  const typing = on.matches("input[type=number], select");
  const own = on.matches("button, summary, a, input[type=checkbox]") && [" ", "Enter"].includes(event.key);
  const slides = on.id === "clock" && event.key.startsWith("Arrow");
  const action = keys[event.key];
  if (typing || own || slides || action === undefined) return;
  event.preventDefault();
  action(event);
});

for (const name of "figoch") {
  const button = el("button", { type: "button", value: name, title: `${names[name]} (${name})` },
    el("b", {}, name), el("span", {}, names[name].replace(" gate", "")));
  button.setAttribute("role", "radio");
  button.addEventListener("click", () => set({ field: name }));
  $("fields").append(button);
}
$("first").addEventListener("click", () => hold({ t: 0 }));
$("back").addEventListener("click", () => hold({ t: state.t - 1 }));
$("on").addEventListener("click", () => hold({ t: state.t + 1 }));
$("play").addEventListener("click", play);
$("pace").addEventListener("change", () => set({ pace: $("pace").value }));
$("grad").addEventListener("change", () => set({ grad: $("grad").checked }));
$("sort").addEventListener("change", () => set({ sort: $("sort").value }));
$("in").addEventListener("click", () => app.zoom(0.5));
$("out").addEventListener("click", () => app.zoom(2));
$("whole").addEventListener("click", () => app.zoom(0));
$("theme").addEventListener("click", () => keys.t());
$("help-open").addEventListener("click", () => $("help").showModal());
dark.addEventListener("change", () => set({}));
calm.addEventListener("change", () => set({}));
window.addEventListener("resize", () => set({}));
const printing = (on) => { state.printing = on; draw(); };
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));

// A view can be linked to: page.html#t=4&unit=7&field=f.
function remember(s) {
  const kept = ["model", "batch", "layer", "dir", "t", "unit", "moment", "field", "sort"];
  const hash = kept.filter((name) => s[name] !== 0 && s[name] !== "index").map((name) => `${name}=${s[name]}`).join("&");
  try {
    history.replaceState(null, "", `#${hash}`);
  } catch { /* a frame without an address of its own */ }
}

function linked() {
  const out = {};
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (["field", "sort", "theme", "pace"].includes(name)) out[name] = text;
    else if (name === "grad") out.grad = text === "1";
    else if (name in state && /^\d+$/.test(text)) out[name] = Number(text);
  }
  if (out.field && !"ifgoch".includes(out.field)) delete out.field;
  if (out.sort && !SORTS.includes(out.sort)) delete out.sort;
  if (out.moment > 4) delete out.moment;
  return out;
}

state.win = [0, run(page, state).T];
state.clock = run(page, state).T;
set({ ...telling(page, state), ...linked() });
