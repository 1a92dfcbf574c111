// What a cell is, in words and formulas, made from its row of CELLS and the numbers of one step.
// Pure: returns strings and numbers. Markup comes from here alone, never from tokens.

export const names = {
  i: "input gate",
  f: "forget gate",
  g: "candidate",
  o: "output gate",
  c: "cell",
  h: "hidden",
};

const marks = { sigmoid: "σ", tanh: "tanh", relu: "relu", identity: "" };

export const welded = (cell, gate) => cell[gate] === "one" || cell[gate] === "zero";

// How a field is coloured: gates that lie between 0 and 1 on one scale, all else signed.
export const kind = (cell, name) =>
  "ifo".includes(name) && (cell[name] === "sigmoid" || welded(cell, name)) ? "gate" : "signed";

// A number for reading: two decimals, or a power of ten where those would say nothing.
export function show(v) {
  if (v === null || v === undefined) return "–";
  if (Number.isNaN(v)) return "NaN";
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  const size = Math.abs(v);
  let text;
  if (size >= 10000 || (size > 0 && size < 0.0005)) {
    const [digits, power] = size.toExponential(1).split("e");
    const raised = [...String(Number(power))].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d] ?? "⁻").join("");
    text = `${digits}·10${raised}`;
  } else {
    text = size.toFixed(size >= 100 ? 1 : size >= 0.095 || size === 0 ? 2 : 3);
  }
  return (v < 0 ? "−" : "") + text;
}

// As Python writes it: zeros after the point up to three, then a power of ten.
const plain = (v) => (v !== 0 && Math.abs(v) < 1e-4 ? v.toExponential() : String(v));

// A float32 with as few digits as tell it from its neighbours.
export function exact(v) {
  if (!Number.isFinite(v)) return String(v);
  for (let digits = 1; digits < 9; digits++) {
    const text = v.toPrecision(digits);
    if (Math.fround(Number(text)) === v) return plain(Number(text));
  }
  return plain(Number(v.toPrecision(9)));
}

// Where a step stands, after its number: steps count from 0, as in Python and in the formulas.
export const among = (T) => (T === 1 ? ", the only one" : ` of 0 to ${T - 1}`);

const percent = (v) =>
  Number.isNaN(v) ? "an unknown share" : `${Math.round(100 * v)}\u00a0%`;

// A symbol with its step, c at t, c at t - 1; or with its place, W of ih.
const sym = (name, step = "t") => `<var>${name}</var><sub>${step}</sub>`;

// A number that the page colours; in brackets where a sign would follow another sign.
const num = (name, v, inner = false) => {
  const text = `<b class="n" data-name="${name}" data-value="${v}">${show(v)}</b>`;
  return inner && v < 0 ? `(${text})` : text;
};

const applied = (activation, inside) =>
  marks[activation] === "" ? inside : `<span class="fn">${marks[activation]}</span>(${inside})`;

function openness(v) {
  if (Number.isNaN(v)) return "not a number";
  if (v >= 0.9) return "wide open";
  if (v >= 0.65) return "mostly open";
  if (v >= 0.35) return "half open";
  if (v >= 0.1) return "mostly shut";
  return "shut";
}

// A gate's own line: f = σ(1.93) = 0.87.
function gateLine(cell, p, gate) {
  const heard = p.heard[gate];
  if (welded(cell, gate)) {
    return { sym: sym(gate), num: num(gate, p[gate]), note: "always: this cell has no such gate" };
  }
  if (gate === "f" && cell.coupled) {
    return { sym: `${sym("f")} = 1 − ${sym("i")}`, num: `1 − ${num("i", p.i)} = ${num("f", p.f)}` };
  }
  const z = `<var>z</var><sub>${gate}</sub>`;
  if (heard === null)
    return { sym: `${sym(gate)} = ${applied(cell[gate], z)}`, num: num(gate, p[gate]) };
  const inside = applied(cell[gate], num(`z_${gate}`, heard.z));
  return {
    sym: `${sym(gate)} = ${applied(cell[gate], z)}`,
    num: marks[cell[gate]] === "" ? num(gate, p[gate]) : `${inside} = ${num(gate, p[gate])}`,
  };
}

// The five moments of one step. Each: key, verb, title, plain (a sentence or two), lines
// [{sym, num, note}], bars [{label, value, from, kind}], gates (whose contributions belong here).
//   unit: the unit's number    last: "t−1", or "t+1" in a reverse lane
export function moments(cell, p, unit, last) {
  const c = sym("c");
  const cLast = sym("c", last);
  const plainRnn = !cell.has_cell_state;
  const gated = (gate) => !welded(cell, gate);
  const zs = cell.gates.map((gate) => `<var>z</var><sub>${gate}</sub>`).join(", ");

  const join = {
    key: "join",
    verb: "Join",
    title: "Join the input with the last answer",
    plain:
      `The cell looks at two things at once: the input ${sym("x")} and its own last answer ` +
      `${sym("h", last)}${p.first ? ", which is only the initial state here" : ""}. Unit ${unit} ` +
      `weighs every number of both, adds a bias, and gets one number for ` +
      (cell.gates.length === 1 ? "its candidate." : "each gate."),
    lines: [
      {
        sym:
          `${zs} = ${sym("W", "ih")} ${sym("x")} + ${sym("W", "hh")} ${sym("h", last)} + <var>b</var>` +
          (cell.peephole ? " + <var>p</var>·<var>c</var>" : ""),
        num: "",
      },
    ],
    bars: [],
    gates: cell.gates,
    table: true,
  };

  let forgetPlain;
  if (plainRnn) {
    forgetPlain =
      "A plain RNN has no cell to keep things in, so there is nothing to keep: the old " +
      "state lives on only through the join. Every step writes over it.";
  } else if (!gated("f")) {
    forgetPlain = "This cell has no forget gate: all of the old cell stays, at every step.";
  } else if (p.first && p.cBefore === 0) {
    forgetPlain =
      `This is the first step, so there is nothing to forget: the cell begins at 0. The ` +
      `gate still has a value, ${show(p.f)}.`;
  } else if (kind(cell, "f") === "gate") {
    forgetPlain =
      `The forget gate is <em>${openness(p.f)}</em>: unit ${unit} keeps ` +
      `<em>${percent(p.f)}</em> of what it remembered and forgets the rest. (Open means keep.)`;
  } else {
    forgetPlain = `What unit ${unit} remembered is multiplied by ${show(p.f)}.`;
  }
  const forget = {
    key: "forget",
    verb: "Forget",
    title: plainRnn || !gated("f") ? "No forget gate" : "Forget some of the old cell",
    plain: forgetPlain,
    lines: plainRnn
      ? []
      : [
          gateLine(cell, p, "f"),
          {
            sym: `${sym("f")} · ${cLast}`,
            num: `${num("f", p.f)} · ${num("cBefore", p.cBefore, true)} = ` + num("kept", p.kept),
          },
        ],
    bars: plainRnn
      ? []
      : [
          { label: `old cell ${cLast}`, value: p.cBefore },
          { label: "kept", value: p.kept },
        ],
    gates: gated("f") && !cell.coupled ? ["f"] : [],
  };

  const write = {
    key: "write",
    verb: "Write",
    title: "Write something new",
    plain:
      `The candidate says <em>what</em> could be written: ${show(p.g)}. ` +
      (gated("i")
        ? kind(cell, "i") === "gate"
          ? `The input gate says <em>how much</em>: it is ${openness(p.i)} and lets ` +
            `<em>${percent(p.i)}</em> in.`
          : `The input gate multiplies it by ${show(p.i)}.`
        : "There is no input gate, so all of it is written."),
    lines: [
      gateLine(cell, p, "g"),
      ...(gated("i")
        ? [
            gateLine(cell, p, "i"),
            {
              sym: `${sym("i")} · ${sym("g")}`,
              num: `${num("i", p.i)} · ${num("g", p.g, true)} = ` + num("written", p.written),
            },
          ]
        : []),
    ],
    bars: [
      { label: `candidate ${sym("g")}`, value: p.g },
      { label: "written", value: p.written },
    ],
    gates: ["i", "g"].filter((gate) => gated(gate)),
  };

  const update = {
    key: "update",
    verb: "Update",
    title: "Update the cell",
    plain: plainRnn
      ? "There is nothing to add to, so the state simply becomes the candidate."
      : `What was kept plus what is written. No weights stand on this path, only one product and ` +
        `one sum: this is how a memory, and a gradient, can survive many steps.`,
    lines: plainRnn
      ? [{ sym: `${c} = ${sym("g")}`, num: num("c", p.c) }]
      : [
          {
            sym: `${c} = ${gated("f") ? `${sym("f")} · ` : ""}${cLast} + ${gated("i") ? `${sym("i")} · ` : ""}${sym("g")}`,
            num:
              `${gated("f") ? `${num("f", p.f)} · ` : ""}${num("cBefore", p.cBefore, gated("f"))} + ` +
              `${gated("i") ? `${num("i", p.i)} · ` : ""}${num("g", p.g, true)} = ${num("c", p.c)}`,
          },
        ],
    bars: plainRnn
      ? [{ label: `state ${c}`, value: p.c }]
      : [
          { label: "kept", value: p.kept },
          { label: "+ written", value: p.written, from: p.kept },
          { label: `= new cell ${c}`, value: p.c },
        ],
    gates: [],
  };

  const squashed = marks[cell.out] === "" ? c : applied(cell.out, c);
  const read = {
    key: "read",
    verb: "Read",
    title: "Read the cell out",
    plain:
      (plainRnn
        ? "The state is shown as it is: every unit, at every step. "
        : gated("o")
          ? kind(cell, "o") === "gate"
            ? `The output gate is ${openness(p.o)}: it shows <em>${percent(p.o)}</em> of ` +
              `${marks[cell.out] === "" ? "the cell" : `the squashed cell`}. `
            : `The cell is multiplied by ${show(p.o)}. `
          : "There is no output gate, so all of the cell is shown. ") +
      `This answer ${sym("h")} goes to the layer above and into the next join. ` +
      (plainRnn ? "" : "The cell itself stays inside."),
    lines: [
      ...(gated("o") ? [gateLine(cell, p, "o")] : []),
      {
        sym: `${p.projected ? "<var>m</var><sub>t</sub>" : sym("h")} = ${gated("o") ? `${sym("o")} · ` : ""}${squashed}`,
        num:
          `${gated("o") ? `${num("o", p.o)} · ` : ""}` +
          (marks[cell.out] === "" ? num("c", p.c, gated("o")) : applied(cell.out, num("c", p.c))) +
          ` = ${num(p.projected ? "shown" : "h", p.projected ? p.shown : p.h)}`,
      },
      ...(p.projected
        ? [
            {
              sym: `${sym("h")} = ${sym("W", "hr")} ${sym("m")}`,
              num: num("h", p.h),
              note: "all units together make one output",
            },
          ]
        : []),
    ],
    bars: plainRnn
      ? [{ label: `shown ${sym("h")}`, value: p.h }]
      : [
          { label: `cell ${c}`, value: p.c },
          ...(marks[cell.out] === "" ? [] : [{ label: squashed, value: p.read }]),
          {
            label: p.projected ? "shown" : `shown ${sym("h")}`,
            value: p.projected ? p.shown : p.h,
          },
        ],
    gates: gated("o") ? ["o"] : [],
  };
  return [join, forget, write, update, read];
}
