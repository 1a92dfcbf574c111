// The words around the drawings: titles, the chooser of layers and units, the table of exact numbers,
// and what a screen reader is told.

import { among, exact, kind, names, show, welded } from "./cell.js";
import { at, field, lane, model, run } from "./data.js";
import { el, write } from "./paint.js";

const $ = (id) => document.getElementById(id);

const say = (id, text) => write($(id), text);

const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

// What a unit's memory length means: null is none, by its last forget gate for one of two reasons.
function memoryNote(memory, last) {
  if (memory !== null)
    return `Left alone, its memory fades to 37\u00a0% in ${show(memory)} steps (−1 / mean log f). `;
  return Number.isNaN(last)
    ? "Its forget gate is not a number at some steps. "
    : "Its forget gate never closes: what it holds stays. ";
}

// What the gates are, by their kind: valves if all of them lie between 0 and 1.
function leadOf(cell) {
  if (!cell.has_cell_state)
    return "A plain RNN has one number a unit and no gates: each step mixes the input with its last answer and writes over the old state. The dashed parts are what an LSTM adds.";
  const gates = [..."ifo"].filter((gate) => !welded(cell, gate));
  const valves = gates.every((gate) => kind(cell, gate) === "gate");
  const how = valves
    ? "numbers between 0 and 1, act as valves: they decide what is forgotten, what is written and what is shown"
    : "numbers of any size, are factors: they multiply what is kept, what is written and what is shown";
  return `The cell is a memory that runs along the top. At each step it reads one input, and its gates, ${how}.`;
}

// What is said of a lane in which not every value is a number; empty if every one is.
function brokenNote(broken, weights, reverse) {
  const why = weights ? "Weights of this lane are not numbers (NaN or infinite). " : "";
  if (broken === null) return why;
  const from = `From step ${broken} ${reverse ? "down" : "on"}`;
  return `${why}${from}, values of this lane are not numbers (NaN or infinite): they are drawn in grey.`;
}

// Draws everything that is text about the state; `remember` is told when it has come to rest.
export function labels(app, remember) {
  const { page } = app;
  let rest = null;
  return (s, word) => {
    const { cell, size, name } = model(page, s);
    const T = run(page, s).T;
    const here = lane(page, s);
    const unit = `unit ${s.unit}`;
    const what = [
      page.meta.models.map((one) => one.name).join(" beside "),
      count(size.L, "layer"),
      count(size.H, "unit") + (size.D === 2 ? " each way" : ""),
      ...(size.P === size.H ? [] : [count(size.P, "output")]),
      count(T, "step"),
      ...(page.meta.batch.length < page.meta.of
        ? [`${page.meta.batch.length} of ${count(page.meta.of, "sequence")}`]
        : []),
    ];
    say("what", what.join(" · "));
    say("where-step", String(s.t));
    say("where-among", among(T));
    const lead = `${leadOf(cell)} Below: step ${s.t}, ${word}, ${unit}.`;
    say("lead", lead);
    const broken = brokenNote(
      here.broken,
      model(page, s).broken_weights[s.layer]?.[s.dir] ?? false,
      s.dir === 1,
    );
    say("broken", broken);
    $("broken").hidden = broken === "";
    say("cell-title", `One step of the ${name}`);
    say("unit-title", `Unit ${s.unit} over time`);
    const memory = here.memory === null ? undefined : here.memory[s.unit];
    const last = at(page, s, "f", s.dir === 1 ? 0 : T - 1, s.unit);
    const note = memory === undefined ? "" : memoryNote(memory, last);
    const { loss } = page.meta;
    const whose = loss === null ? "the loss" : loss.name;
    say("unit-lead", note + (s.grad ? `The curves show the gradient of ${whose}.` : ""));
    say("loss", loss === null ? "" : `The loss is here ${loss.name}; an upright line marks that step.`);
    $("loss").hidden = loss === null || here.grad === null;
    const value = `${s.grad ? "the gradient of " : ""}${names[s.field]} ${s.field}`;
    say("text-title", `The text, coloured by ${value} of ${app.rowName()} ${app.row()}`);
    const states = cell.has_cell_state ? ", h_n and c_n" : " and h_n";
    say(
      "lanes-title",
      size.D === 2 ? "Two directions, joined" : `Where output${states} come from`,
    );
    $("gradient").classList.toggle("with-hint", here.grad === null);
    $("play").classList.toggle("on", s.playing);
    $("play").ariaLabel = s.playing ? "Pause" : "Play";
    $("play").title = `${$("play").ariaLabel} (space)`;
    $("pace").value = s.pace;
    const gated = [..."ifo"].some((gate) => !welded(cell, gate) && kind(cell, gate) === "gate");
    $("key-gates").hidden = !gated;
    say("theme", app.theme() === "dark" ? "Light" : "Dark");
    $("grad").checked = s.grad;
    $("grad").disabled = here.grad === null;
    $("grad-hint").hidden = here.grad !== null;
    $("sort").value = s.sort;
    for (const option of $("sort").options)
      option.disabled = option.value !== "index" && !here[option.value];
    for (const button of $("fields").children) {
      const gone =
        button.value === "c"
          ? !cell.has_cell_state
          : button.value !== "h" && welded(cell, button.value);
      button.disabled = gone || (s.grad && field(page, s, button.value, true) === null);
      button.setAttribute("aria-checked", String(button.value === s.field));
      button.tabIndex = button.value === s.field ? 0 : -1;
    }
    chooser(app, s);
    clearTimeout(rest);
    if (!s.playing) {
      rest = setTimeout(() => {
        $("live").textContent =
          `Step ${s.t}${among(T)}, ${word}, ${unit}: ` +
          [...cell.gates, ...(cell.has_cell_state ? ["c"] : []), "h"]
            .map((n) => `${names[n]} ${show(at(page, s, n, s.t, n === "h" ? s.out : s.unit))}`)
            .join(", ");
        remember(s);
      }, 400);
    }
  };
}

// The table of exact numbers, with the line of Python that gives each.
export function table(app, s) {
  const { page } = app;
  const lanePath = `l${s.layer}.${s.dir === 1 ? "reverse" : "fwd"}`;
  const batch = page.meta.batch[s.batch];
  const key = [s.model, s.batch, s.layer, s.dir, s.t, s.unit, s.out].join();
  if ($("rows").dataset.key === key) return;
  $("rows").dataset.key = key;
  $("rows").replaceChildren(
    ...["i", "f", "g", "o", "c", "h"].map((name) => {
      const u = name === "h" ? s.out : s.unit;
      const v = at(page, s, name, s.t, u);
      const slope = lane(page, s).grad === null ? null : at(page, s, name, s.t, u, true);
      const value = el("td", { className: "exact" }, exact(v));
      value.dataset.name = name;
      value.dataset.value = v;
      const grad = el("td", { className: "exact" }, slope === null ? "–" : exact(slope));
      if (slope !== null) grad.dataset.value = slope;
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, `${names[name]} ${name}`),
        value,
        grad,
        el("td", {}, el("code", {}, `trace["${lanePath}.${name}"][${s.t}, ${batch}, ${u}]`)),
      );
    }),
  );
}

// Choosers of what there is more than one of.
function chooser(app, s) {
  const { page, set } = app;
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
    host.replaceChildren(
      ...wanted.map(([name, options]) => {
        const select = el(
          "select",
          {
            ariaLabel: { model: "Model", layer: "Layer", dir: "Direction", batch: "Sequence" }[
              name
            ],
          },
          ...options.map((text, k) => el("option", { value: k }, text)),
        );
        select.dataset.name = name;
        select.addEventListener("change", () =>
          set({ [name]: Number(select.value), playing: false }),
        );
        return select;
      }),
    );
    const unit = el("input", { type: "number", min: 0, id: "unit-number", ariaLabel: "Unit" });
    unit.addEventListener("change", () => {
      if (unit.value !== "") set({ unit: Math.round(Number(unit.value)) });
      unit.value = app.state.unit; // the nearest that there is
    });
    host.append(el("label", { className: "unit-pick" }, "unit ", unit));
  }
  for (const select of host.querySelectorAll("select")) select.value = s[select.dataset.name];
  const unit = $("unit-number");
  unit.max = size.H - 1;
  if (document.activeElement !== unit) unit.value = s.unit;
}
