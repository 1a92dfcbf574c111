// Keys, buttons and playing: everything that changes the state by hand or by the clock.

import { names } from "./cell.js";
import { before, field, lane, model, order, run } from "./data.js";
import { el } from "./paint.js";

const $ = (id) => document.getElementById(id);
export const SORTS = ["index", "activity", "memory", "similarity"];

// The orders of rows that a lane has.
export const sorts = (here) => SORTS.filter((one) => one === "index" || here[one]);

// Within a row of tabs or of choices the arrows move from one to the next, as everywhere; choices have
// those up and down, too.
function rove(on, key) {
  const by = { ArrowLeft: -1, ArrowRight: 1 };
  if (on.matches("[role=radio]")) Object.assign(by, { ArrowUp: -1, ArrowDown: 1 });
  if (!on.matches("[role=tab], [role=radio]") || by[key] === undefined) return false;
  const row = [...on.parentNode.children].filter((one) => !one.disabled);
  const next = row[(row.indexOf(on) + by[key] + row.length) % row.length];
  next.focus();
  next.click();
  return true;
}

// Listens; returns the function that stops playing.
export function controls(app) {
  const { page, state, set } = app;
  let timer = null;

  // One step in the order in which the lane reads.
  const following = (s, n) => (s.dir === 1 ? s.t - n : s.t + n);

  function tick() {
    const T = run(page, state).T;
    const next = following(state, 1);
    const more = next >= 0 && next < T;
    if (state.pace === "moment" && state.moment < 4) set({ moment: state.moment + 1 });
    else if (more) set({ t: next, ...(state.pace === "moment" ? { moment: 0 } : {}) });
    else {
      set({ playing: false });
      return;
    }
    timer = setTimeout(tick, { moment: 1400, step: 700, fast: 90 }[state.pace]);
  }

  function play() {
    if (state.playing) {
      set({ playing: false });
      return;
    }
    const T = run(page, state).T;
    const end = before(state, state.t) < state.t ? T - 1 : 0;
    const again = state.t === end && (state.pace !== "moment" || state.moment === 4);
    set({
      playing: true,
      ...(again ? { t: T - 1 - end, moment: state.pace === "moment" ? 0 : state.moment } : {}),
    });
    timer = setTimeout(tick, state.pace === "fast" ? 90 : 700);
  }

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
      const known = sorts(lane(page, state));
      set({ sort: known[(known.indexOf(state.sort) + 1) % known.length] });
    },
    l: () => cycle("layer", model(page, state).size.L),
    r: () => cycle("dir", model(page, state).size.D),
    b: () => cycle("batch", page.meta.batch.length),
    m: () => cycle("model", page.meta.models.length),
    "+": () => app.zoom(0.5),
    "=": () => app.zoom(0.5),
    "-": () => app.zoom(2),
    "−": () => app.zoom(2),
    0: () => app.zoom(0),
    t: () => set({ theme: app.theme() === "dark" ? "light" : "dark" }),
    "?": () => $("help").showModal(),
  };
  for (const name of "ifgoch")
    keys[name] = () => {
      if (!$("fields").querySelector(`[value=${name}]`).disabled) set({ field: name });
    };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const on = event.target;
    const typing = on.matches("input[type=number], select");
    if (rove(on, event.key)) {
      event.preventDefault();
      return;
    }
    const own =
      on.matches("button, summary, a, input[type=checkbox]") && [" ", "Enter"].includes(event.key);
    const slides = on.id === "clock" && event.key.startsWith("Arrow");
    const action = keys[event.key];
    if (typing || own || slides || action === undefined) return;
    event.preventDefault();
    action(event);
  });

  for (const name of "figoch") {
    const button = el(
      "button",
      { type: "button", value: name, title: `${names[name]} (${name})`, ariaLabel: names[name] },
      el("b", {}, name),
      el("span", {}, names[name].replace(" gate", "")),
    );
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
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is that of the view
    $("step").focus();
  });

  return () => {
    clearTimeout(timer);
    timer = null;
    state.playing = false;
  };
}
