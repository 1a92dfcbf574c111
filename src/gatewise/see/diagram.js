// The structure of the cell, drawn from its row: what the row does not have is a ghost, so that a
// plain RNN is seen to be an LSTM with its gates welded.

import { names, show, welded } from "./cell.js";
import { markup } from "./colour.js";
import { write } from "./paint.js";

const SVG = "http://www.w3.org/2000/svg";

function node(parent, tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

// Where things stand.
const Y = { cell: 82, tanh: 158, read: 238, write: 182, gate: 330, bus: 424, x: 486 };
const X = { left: 34, join: 118, f: 196, i: 322, g: 440, plus: 381, o: 558, tap: 658, right: 776 };
const GATE = { width: 110, height: 54 };
const marks = { sigmoid: "σ", tanh: "tanh", relu: "relu", identity: "" };
const spoken = { cBefore: "old cell", read: "cell, squashed", shown: "shown", kept: "kept", written: "written" };
const titles = { i: "input", f: "forget", g: "candidate", o: "output" };

// A number of the drawing in words: what a gate hears, its z, among them.
const said = (name) =>
  name.startsWith("z_") ? `${names[name[2]]} hears` : (spoken[name] ?? names[name]);

// The wires of a cell: [name of its value, path, moments, ghost].
function wires(cell, projected) {
  const has = (gate) => !welded(cell, gate);
  const state = cell.has_cell_state;
  const up = (gate, to) => `M${X[gate]} ${Y.gate - 27}V${to}`;
  const hear = (gate) => `M${X[gate]} ${Y.bus}V${Y.gate + 27}`;
  const fBus = has("f") && !cell.coupled;
  const last = has("o") ? X.o : X.g;
  const list = [
    ["hBefore", `M${X.left} ${Y.bus}H${X.join}`, "join", false],
    ["x", `M${X.join} ${Y.x}V${Y.bus}`, "join", false],
    ["bus", `M${X.join} ${Y.bus}H${last}`, "join", false],
    ["cBefore", `M${X.left} ${Y.cell}H${X.f}`, "forget", !state],
    ["kept", `M${X.f} ${Y.cell}H${X.plus}`, "forget update", !state],
    ["z_f", hear("f"), "join", !fBus],
    ["f", cell.coupled ? `M${X.i} 270H${X.f}V${Y.cell}` : up("f", Y.cell), "forget", !has("f")],
    ["z_i", hear("i"), "join", !has("i")],
    ["i", `M${X.i} ${Y.gate - 27}V${Y.write}H${X.plus}`, "write", !has("i")],
    ["z_g", hear("g"), "join", false],
    ["g", `M${X.g} ${Y.gate - 27}V${Y.write}H${X.plus}`, "write", false],
    ["written", `M${X.plus} ${Y.write}V${Y.cell}`, "write update", false],
    ["c", `M${X.plus} ${Y.cell}H${X.tap}`, "update read", false],
    ["cOut", `M${X.tap} ${Y.cell}H${X.right}`, "update", !state],
    ["c2", `M${X.tap} ${Y.cell}V${Y.tanh}`, "read", false],
    ["read", `M${X.tap} ${Y.tanh}V${Y.read}`, "read", false],
    ["z_o", hear("o"), "join", !has("o")],
    ["o", `M${X.o} ${Y.gate - 27}V${Y.read}H${X.tap}`, "read", !has("o")],
    ...(projected
      ? [
          ["shown", `M${X.tap} ${Y.read}V${Y.gate}`, "read", false],
          ["h", `M${X.tap} ${Y.gate}V${Y.bus}H${X.right}`, "read", false],
        ]
      : [["h", `M${X.tap} ${Y.read}V${Y.bus}H${X.right}`, "read", false]]),
  ];
  if (cell.peephole) {
    list.push(
      ["peep", `M158 ${Y.cell}V284H${X.f - 26}V${Y.gate - 27}`, "join", false],
      ["peep", `M${X.f - 26} 284H${X.i - 28}V${Y.gate - 27}`, "join", false],
      ["peepO", `M${X.o + 28} ${Y.cell}V${Y.gate - 27}`, "join read", false],
    );
  }
  return list;
}

// Draws the parts for a model and a direction; returns them as {svg, draw}. draw gives them the values of a
// step. moment: the one to stress, or null.
export function diagram(cell, reverse, projected) {
  const last = reverse ? "t+1" : "t−1";
  const svg = node(document.createDocumentFragment(), "svg", { viewBox: "10 22 800 508", role: "img", class: "diagram" });
  const title = node(svg, "title", {}, "Structure of the cell");
  const has = (gate) => !welded(cell, gate);
  const state = cell.has_cell_state;

  node(svg, "rect", { x: 80, y: 34, width: 650, height: 424, rx: 18, class: "body" });

  const drawn = wires(cell, projected)
    .sort((a, b) => Number(b[3]) - Number(a[3]))
    .map(([name, d, when, ghost]) => {
      const group = node(svg, "g", { "data-when": when, class: ghost ? "wire ghost" : "wire" });
      if (name.startsWith("peep")) node(group, "path", { d, class: "casing" }); // these alone cross others
      node(group, "path", { d, class: "edge" });
      const core = ghost
        ? null
        : node(group, "path", { d, class: name.startsWith("peep") ? "core thin" : "core" });
      const flow = ghost ? null : node(group, "path", { d, class: "flow" });
      return { name: name === "cOut" || name === "c2" ? "c" : name, group, core, flow, when };
    });

  // places where wires meet
  const operator = (x, y, text, when, ghost) => {
    const group = node(svg, "g", { "data-when": when, class: ghost ? "op ghost" : "op" });
    node(group, "circle", { cx: x, cy: y, r: 17 });
    node(group, "text", { x, y: y + 7 }, text);
    return group;
  };
  const operators = [
    operator(X.f, Y.cell, "×", "forget", !has("f") || !state),
    operator(X.plus, Y.cell, "+", "update", !state),
    operator(X.plus, Y.write, "×", "write", !has("i")),
    operator(X.tap, Y.read, "×", "read", !has("o")),
  ];
  const dot = (x, y, when) =>
    node(svg, "circle", { cx: x, cy: y, r: 4.5, class: "joint", "data-when": when });
  const joints = [dot(X.join, Y.bus, "join")];
  for (const gate of cell.gates) {
    if (gate !== (has("o") ? "o" : "g")) joints.push(dot(X[gate], Y.bus, "join"));
  }
  joints.push(dot(X.tap, Y.cell, "read"));
  const pill = (x, y, text, when) => {
    const group = node(svg, "g", { "data-when": when, class: "op" });
    node(group, "rect", { x: x - 30, y: y - 15, width: 60, height: 30, rx: 15 });
    node(group, "text", { x, y: y + 5, class: "small" }, text);
    operators.push(group);
  };
  if (marks[cell.out] !== "") pill(X.tap, Y.tanh, marks[cell.out], "read");
  if (projected) pill(X.tap, Y.gate, "W hr", "read");
  if (cell.coupled) pill((X.f + X.i) / 2, 270, "1 −", "forget");

  // gates
  const whens = { f: "forget", i: "write", g: "write", o: "read" };
  const gates = {};
  for (const gate of ["f", "i", "g", "o"]) {
    const ghost = !has(gate) || (gate === "f" && cell.coupled);
    const group = node(svg, "g", {
      "data-when": whens[gate],
      class: ghost ? "gate ghost" : "gate",
    });
    const box = node(group, "rect", {
      x: X[gate] - GATE.width / 2,
      y: Y.gate - GATE.height / 2,
      width: GATE.width,
      height: GATE.height,
      rx: 9,
    });
    const label = node(
      group,
      "text",
      { x: X[gate], y: Y.gate - 4, class: "gate-name" },
      titles[gate],
    );
    const how = ghost
      ? gate === "f" && cell.coupled
        ? "= 1 − input"
        : cell[gate] === "one"
          ? "always open"
          : "always shut"
      : marks[cell[gate]] || "as it is";
    const under = node(group, "text", { x: X[gate], y: Y.gate + 16, class: "gate-how" }, how);
    gates[gate] = { group, box, label, under, ghost };
  }

  // numbers on the wires
  const numbers = [];
  const number = (name, x, y, when, anchor = "start", ghost = false) => {
    if (ghost) return;
    numbers.push({
      name,
      when,
      text: node(svg, "text", {
        x,
        y,
        class: "number",
        "text-anchor": anchor,
        "data-when": when,
        "data-name": name,
      }),
    });
  };
  number("cBefore", 138, Y.cell - 16, "forget", "middle", !state);
  number("kept", (X.f + X.plus) / 2, Y.cell - 16, "forget update", "middle", !state);
  number("c", (X.plus + X.tap) / 2, Y.cell - 16, "update read", "middle");
  number("f", X.f + 10, 206, "forget", "start", !has("f"));
  number("i", X.i - 10, 246, "write", "end", !has("i"));
  number("g", X.g + 10, 246, "write");
  number("written", X.plus + 12, 140, "write update");
  number("read", X.tap + 11, 207, "read", "start", marks[cell.out] === "");
  number("o", X.o - 10, 284, "read", "end", !has("o"));
  if (projected) number("shown", X.tap + 11, 290, "read");
  number("h", X.tap + 42, Y.bus - 14, "read", "middle");
  for (const gate of cell.gates) number(`z_${gate}`, X[gate] + 10, Y.bus - 26, "join");

  // names at the ends
  const end = (x, y, name, step, anchor, ghost = false) => {
    const text = node(svg, "text", {
      x,
      y,
      class: ghost ? "end ghost" : "end",
      "text-anchor": anchor,
    });
    node(text, "tspan", { class: "it" }, name);
    node(text, "tspan", { class: "sub", dy: 5 }, step);
  };
  end(X.left - 4, Y.cell - 16, "c", last, "start", !state);
  end(X.right + 6, Y.cell - 16, "c", "t", "end", !state);
  end(X.left - 4, Y.bus - 16, "h", last, "start");
  end(X.right + 6, Y.bus - 16, "h", "t", "end");
  end(X.join - 12, Y.x + 4, "x", "t", "end");
  for (const [x, y, ghost] of [
    [X.right, Y.cell, !state],
    [X.right, Y.bus, false],
  ]) {
    node(svg, "path", {
      d: `M${x - 2} ${y - 6}l10 6l-10 6`,
      class: ghost ? "arrow ghost" : "arrow",
    });
  }
  const token = node(svg, "text", { x: X.join + 16, y: Y.x + 4, class: "token" });
  node(svg, "text", { x: X.join + 16, y: Y.x + 26, class: "caption" }, "the input at this step");

  const all = [
    ...drawn.map((w) => w.group),
    ...operators,
    ...joints,
    ...Object.values(gates).map((g) => g.group),
    ...numbers.map((n) => n.text),
  ];

  function draw(p, { scaleOf, moment, playing, word, unit }) {
    const valueOf = (name) => {
      if (name.startsWith("z_")) return p.heard[name[2]] ? p.heard[name[2]].z : NaN;
      return p[name];
    };
    for (const wire of drawn) {
      if (wire.core === null) continue;
      const vector = ["hBefore", "x", "bus"].includes(wire.name);
      wire.core.style.stroke = vector
        ? "var(--bus)"
        : wire.name.startsWith("peep")
          ? markup(scaleOf("c"), wire.name === "peep" ? p.cBefore : p.c).fill
          : markup(scaleOf(wire.name), valueOf(wire.name)).fill;
    }
    for (const [gate, parts] of Object.entries(gates)) {
      if (parts.ghost) continue;
      const { fill, ink } = markup(scaleOf(gate), p[gate]);
      parts.box.style.fill = fill;
      parts.label.style.fill = parts.under.style.fill = ink;
      const heard = p.heard[gate];
      if (heard)
        write(
          parts.under,
          marks[cell[gate]] ? `${marks[cell[gate]]}(${show(heard.z)})` : show(heard.z),
        );
    }
    for (const { name, text } of numbers) {
      const v = valueOf(name);
      write(text, Number.isNaN(v) ? "" : show(v));
      text.dataset.value = v;
    }
    for (const part of all) {
      part.classList.toggle(
        "off",
        moment !== null && !part.dataset.when.split(" ").includes(moment),
      );
      part.classList.toggle(
        "flows",
        playing && moment !== null && part.dataset.when.split(" ").includes(moment),
      );
    }
    write(token, word);
    write(
      title,
      `Structure of the cell with the values of unit ${unit}: ` +
        numbers.map(({ name, text }) => `${said(name)} ${text.textContent}`).join(", "),
    );
  }
  return { svg, draw };
}
