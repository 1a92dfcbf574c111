// The five moments of a step: a stepper, and one panel for each.

import { moments, names, show } from "./cell.js";
import { activations, inputName, projection } from "./data.js";
import { markup, scale } from "./colour.js";
import { brief, el } from "./paint.js";

const SVG = "http://www.w3.org/2000/svg";

// The curve of an activation with the point where this gate stands on it.
function valve(activation, heard, value, fill) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 150 62");
  svg.setAttribute("class", "valve");
  svg.setAttribute("aria-hidden", "true");
  const bounded = activation === "sigmoid";
  const high = activation === "sigmoid" || activation === "tanh" ? 1 : 6;
  const low = bounded ? 0 : activation === "relu" ? 0 : -high;
  const x = (v) => 75 + (Math.max(-6, Math.min(6, v)) / 6) * 70;
  const y = (v) => 52 - ((Math.max(low, Math.min(high, v)) - low) / (high - low)) * 42;
  const add = (tag, attributes) => {
    const made = document.createElementNS(SVG, tag);
    for (const [name, v] of Object.entries(attributes)) made.setAttribute(name, v);
    svg.append(made);
    return made;
  };
  add("path", { d: `M5 ${y(0)}H145M75 6V56`, class: "valve-axis" });
  let d = "";
  for (let z = -6; z <= 6; z += 0.25)
    d += `${d === "" ? "M" : "L"}${x(z).toFixed(1)} ${y(activations[activation](z)).toFixed(1)}`;
  add("path", { d, class: "valve-curve" });
  if (Number.isNaN(heard)) return svg; // there is no such point
  add("path", { d: `M${x(heard)} ${y(0)}V${y(value)}`, class: "valve-drop" });
  add("circle", { cx: x(heard), cy: y(value), r: 5.5, class: "valve-dot" }).style.fill = fill;
  return svg;
}

// The largest magnitude of those that are numbers, and no less than `least`.
const peak = (values, least) =>
  values.reduce((most, v) => (Number.isFinite(v) ? Math.max(most, Math.abs(v)) : most), least);

export function process(host, app) {
  const stepper = el("div", {
    className: "stepper",
    role: "tablist",
    ariaLabel: "The five moments of a step",
  });
  const panels = el("div", { className: "panels" });
  host.append(stepper, panels);
  const keys = ["join", "forget", "write", "update", "read"];
  const tabs = keys.map((key, k) => {
    const tab = el(
      "button",
      { type: "button", role: "tab", id: `tab-${key}`, "aria-controls": `moment-${key}` },
      el("span", { className: "tick" }, String(k + 1)),
      el("span", {}, key[0].toUpperCase() + key.slice(1)),
    );
    tab.addEventListener("click", () => app.set({ moment: k }));
    stepper.append(tab);
    return tab;
  });

  // What one term of a gate's sum is called.
  function label(term, s, p) {
    if (term.kind === "bias") return "bias";
    if (term.kind === "c") return "its own cell";
    if (term.kind === "h") return `h(${app.last()})[${term.index}]`;
    if (term.kind === "m") return `unit ${term.index}`;
    const on = p.x.reduce((sum, v) => sum + (v !== 0), 0);
    if (s.layer === 0 && on === 1 && p.x.length > 1 && app.words() !== null)
      return `“${brief(app.words()[s.t])}”`;
    return inputName(app.page, s, term.index);
  }

  // Horizontal bars from a common zero.
  function bars(rows, limit, className) {
    const box = el("div", { className: `bars ${className}` });
    for (const row of rows) {
      const from = row.from ?? 0;
      const [low, high] = [Math.min(from, from + row.value), Math.max(from, from + row.value)];
      const fill = el("i");
      fill.style.left = `${50 + (50 * Math.max(-limit, low)) / limit}%`;
      fill.style.width = `${(50 * (Math.min(limit, high) - Math.max(-limit, low))) / limit}%`;
      fill.style.background = row.value < 0 ? "var(--below)" : "var(--above)";
      const name = el("span", { className: "bar-label" });
      if (row.markup)
        name.innerHTML = row.markup; // from cell.js, never from a token
      else name.textContent = row.label;
      if (row.detail) name.append(el("small", {}, row.detail));
      const number = el("span", { className: "bar-number" }, show(row.value));
      number.dataset.value = row.value;
      box.append(name, el("span", { className: "track" }, fill), number);
    }
    return box;
  }

  function contributions({ top, others, rest }, s, p, heading) {
    const limit = peak([...top.map((term) => term.part), rest], 1e-9);
    const rows = top.map((term) => ({
      label: label(term, s, p),
      value: term.part,
      detail: term.kind === "bias" ? "" : `${show(term.value)} × ${show(term.weight)}`,
    }));
    if (others > 0) rows.push({ label: `${others} others`, value: rest, detail: "" });
    return el("div", { className: "why" }, el("h4", {}, heading), bars(rows, limit, "terms"));
  }

  function gateBlock(gate, s, p, cell) {
    const heard = p.heard[gate];
    if (heard === null)
      return el(
        "p",
        { className: "hint" },
        "The page was written without the weights, so what each gate hears is not shown.",
      );
    const block = el("div", { className: "gate-block" });
    block.append(
      el(
        "div",
        { className: "gate-head" },
        valve(cell[gate], heard.z, p[gate], markup(app.scaleOf(gate), p[gate]).fill),
        el(
          "p",
          {},
          el("strong", {}, names[gate]),
          ` hears ${show(heard.z)} and gives ${show(p[gate])}`,
        ),
      ),
      contributions(heard.terms, s, p, "what it hears most"),
    );
    return block;
  }

  function joinTable(p, cell) {
    const peep = cell.peephole;
    const head = [
      "gate",
      "from x",
      `from h(${app.last()})`,
      ...(peep ? ["from c"] : []),
      "bias",
      "sum z",
    ];
    const table = el(
      "table",
      { className: "join" },
      el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
    );
    const body = el("tbody");
    for (const gate of cell.gates) {
      const heard = p.heard[gate];
      if (heard === null) continue;
      const cells = [heard.x, heard.h, ...(peep ? [heard.peep] : []), heard.bias, heard.z];
      body.append(
        el(
          "tr",
          {},
          el("th", { scope: "row" }, names[gate]),
          ...cells.map((v, k) => {
            const made = el("td", { className: k === cells.length - 1 ? "sum" : "" }, show(v));
            made.dataset.value = v;
            return made;
          }),
        ),
      );
    }
    table.append(body);
    return table;
  }

  // A vector as a row of coloured cells.
  function strip(values, name, mark = -1, named = (k) => `${name}[${k}]`) {
    const box = el("div", {
      className: "strip",
      role: "img",
      ariaLabel: `${name}: ${values.length} numbers`,
    });
    const limit = peak(values.slice(0, 64), 1);
    const row = el("span", { className: "strip-cells" });
    for (let k = 0; k < Math.min(64, values.length); k++) {
      const cell = el("i", { title: `${named(k)} = ${show(values[k])}` });
      cell.style.background = markup(scale("signed", limit), values[k]).fill;
      if (k === mark) cell.className = "mark";
      row.append(cell);
    }
    box.append(el("span", { className: "strip-name" }, name), row);
    if (values.length > 64)
      box.append(el("span", { className: "strip-more" }, `… ${values.length}`));
    return box;
  }

  return function draw(s, p, cell) {
    const list = moments(cell, p, s.unit, app.last());
    panels.replaceChildren(
      ...list.map((moment, k) => {
        const panel = el("section", {
          className: "moment",
          id: `moment-${moment.key}`,
          role: "tabpanel",
          "aria-labelledby": `tab-${moment.key}`,
        });
        panel.hidden = k !== s.moment;
        if (panel.hidden && !s.printing) return panel; // filled when it is chosen, or printed
        panel.append(el("h3", {}, moment.title));
        const plain = el("p", { className: "plain" });
        plain.innerHTML = moment.plain;
        panel.append(plain);
        if (moment.lines.length > 0) {
          const math = el("div", { className: "math" });
          for (const line of moment.lines) {
            const row = el("p", { className: "formula" });
            row.innerHTML =
              `<span class="symbols">${line.sym}</span>` +
              (line.num ? ` <span class="numbers">= ${line.num}</span>` : "");
            math.append(row);
            if (line.note) row.append(el("small", {}, ` ${line.note}`));
          }
          for (const chip of math.querySelectorAll("b.n")) {
            const { fill, ink } = markup(app.scaleOf(chip.dataset.name), Number(chip.dataset.value));
            chip.style.background = fill;
            chip.style.color = ink;
            chip.title = `${chip.dataset.name} = ${chip.dataset.value}`;
          }
          panel.append(math);
        }
        if (moment.bars.length > 0) {
          const ends = moment.bars.flatMap((b) => [(b.from ?? 0) + b.value, b.value]);
          const most = peak(ends, 0.05);
          panel.append(
            bars(
              moment.bars.map((b) => ({ ...b, markup: b.label })),
              most,
              "amounts",
            ),
          );
        }
        if (moment.table) {
          panel.append(
            strip(p.x, "x(t)", -1, (k) => inputName(app.page, s, k)),
            strip(p.hBefore, `h(${app.last()})`, p.projected ? -1 : s.unit),
          );
          if (p.heard[cell.gates[0]] !== null) panel.append(joinTable(p, cell));
        }
        if (!p.matches)
          panel.append(
            el(
              "p",
              { className: "hint" },
              "A patch changed this value: the sums below are what the gate would have heard.",
            ),
          );
        if (!moment.table) {
          const blocks = moment.gates.map((gate) => gateBlock(gate, s, p, cell));
          if (blocks.length > 0)
            panel.append(el("div", { className: `blocks of-${blocks.length}` }, ...blocks));
        }
        if (moment.key === "read" && p.projected) {
          panel.append(
            contributions(projection(app.page, s), s, p, `what output ${s.out} is made of`),
          );
        }
        return panel;
      }),
    );
    tabs.forEach((tab, k) => {
      tab.setAttribute("aria-selected", String(k === s.moment));
      tab.tabIndex = k === s.moment ? 0 : -1;
      tab.classList.toggle("past", k < s.moment);
    });
  };
}
