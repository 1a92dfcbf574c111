// The chosen unit over time: its gates, what is written and shown, its cell.

import { hues } from "./colour.js";
import { names, show, welded } from "./cell.js";
import { lane, run, series, shown } from "./data.js";
import { axis, curve, el, fit, levels } from "./paint.js";

// A number of an axis: as elsewhere where it is very large or small, else with no more digits than it has.
const tick = (v) =>
  v !== 0 && (Math.abs(v) >= 10000 || Math.abs(v) < 0.0005)
    ? show(v)
    : String(Number(v.toPrecision(4))).replace("-", "−");

const LEFT = 46;
const RIGHT = 150;
const LONGEST = "−8.8·10⁻⁸⁸"; // number beside a curve: its place is the same at every step

// The lowest and highest value of a band: where its lines have bounds, those; else as far as they go.
function range(lines, bounds, bounded) {
  if (bounded) return bounds;
  let [least, most] = bounds ?? [0, 0];
  for (const { values } of lines) {
    for (const v of values) {
      if (!Number.isFinite(v)) continue;
      if (v < least) least = v;
      if (v > most) most = v;
    }
  }
  if (most === least) [least, most] = [-1, 1]; // all zero, or no number at all
  const pad = (most - least) * 0.08;
  return [least < 0 ? least - pad : 0, most > 0 ? most + pad : 0];
}

export function curves(host, app) {
  const canvas = el("canvas", { id: "curves", role: "img" });
  host.append(canvas);
  let drawn = ""; // what the last drawing showed
  let [left, right] = [LEFT, RIGHT];
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const [a, b] = app.state.win;
    const t =
      a + Math.floor(((event.clientX - box.left - left) / (box.width - left - right)) * (b - a));
    if (t >= a && t < b) app.set({ t, playing: false });
  });

  return function* draw(s) {
    const { cell } = app.page.meta.models[s.model];
    const style = app.style();
    const outer = app.width(host);
    const key = shown({ ...s, field: "all" }, s.unit, s.out, s.t, s.win, app.theme(), outer);
    if (outer <= LEFT + RIGHT || (key === drawn && !s.printing)) return;
    drawn = ""; // until all of it is
    const [a, b] = s.win;
    const gates = ["f", "i", "o"].filter((gate) => !welded(cell, gate));
    const bands = [
      ...(gates.length > 0 ? [{ fields: gates, height: 110, bounds: [0, 1] }] : []),
      {
        fields: cell.has_cell_state ? ["g", "h"] : ["h"],
        height: 110,
        ...(cell.g === "tanh" &&
        (cell.out === "tanh" || !cell.has_cell_state) &&
        gates.every((gate) => cell[gate] === "sigmoid")
          ? { bounds: [-1, 1] }
          : {}),
      },
      ...(cell.has_cell_state ? [{ fields: ["c"], height: 110 }] : []),
    ];
    for (const band of bands) {
      band.lines = band.fields
        .map((name) => ({
          name,
          values: series(app.page, s, name, name === "h" ? s.out : s.unit, s.grad),
        }))
        .filter((line) => line.values !== null);
      const bounds = s.grad ? undefined : band.bounds;
      const open = gates.some((gate) => cell[gate] !== "sigmoid" && band.fields.includes(gate));
      [band.low, band.high] = range(band.lines, bounds, bounds !== undefined && !open);
      band.marks = levels(band.low, band.high, 2.5).map((v) => [v, tick(v)]);
    }
    const narrow = outer < 560;
    const { size } = app.page.meta.models[s.model];
    const called = (name) =>
      narrow ? name : name === "h" && size.P !== size.H ? `output ${s.out}` : names[name];
    const gap = 18;
    const height = bands.reduce((sum, band) => sum + band.height + gap, 0) + 30;
    const context = fit(canvas, outer, height);
    const widest = (font, texts) => {
      context.font = font;
      return Math.ceil(Math.max(...texts.map((text) => context.measureText(text).width)));
    };
    const sides = bands.flatMap((band) => band.lines.map(({ name }) => called(name)));
    const marks = bands.flatMap((band) => band.marks.map(([, text]) => text));
    left = Math.max(LEFT, 9 + widest(style.small, marks));
    right = Math.max(
      narrow ? 96 : RIGHT,
      18 + widest(style.smallBold, sides) + widest(style.small, [LONGEST]),
    );
    const width = outer - left - right;
    const xOf = (t) => left + ((t - a) / (b - a)) * width;
    const crowded = b - a > width;
    let top = 22;
    for (const band of bands) {
      const { lines, low, high } = band;
      const yOf = (v) => top + band.height - ((v - low) / (high - low)) * band.height;
      context.font = style.small;
      context.textBaseline = "middle";
      context.textAlign = "right";
      for (const [v, text] of band.marks) {
        context.strokeStyle = style.line;
        context.lineWidth = v === 0 ? 1.25 : 0.75;
        context.beginPath();
        context.moveTo(left, Math.round(yOf(v)) + 0.5);
        context.lineTo(left + width, Math.round(yOf(v)) + 0.5);
        context.stroke();
        context.fillStyle = style.soft;
        context.fillText(text, left - 7, yOf(v));
      }
      if (s.t >= a && s.t < b) {
        context.strokeStyle = style.soft;
        context.lineWidth = 1;
        context.setLineDash([2, 3]);
        context.beginPath();
        context.moveTo(xOf(s.t + 0.5), top);
        context.lineTo(xOf(s.t + 0.5), top + band.height);
        context.stroke();
        context.setLineDash([]);
      }
      const labels = [];
      for (const { name, values } of lines) {
        const hue = hues[app.theme()][name];
        context.strokeStyle = hue;
        context.lineWidth = 1.75;
        context.lineJoin = "round";
        context.globalAlpha = crowded && lines.length > 1 ? 0.6 : 1; // none hides another
        curve(context, values, a, b, xOf, yOf);
        context.globalAlpha = 1;
        if (s.t >= a && s.t < b && Number.isFinite(values[s.t])) {
          context.fillStyle = hue;
          context.beginPath();
          context.arc(xOf(s.t + 0.5), yOf(values[s.t]), 3.5, 0, 7);
          context.fill();
        }
        const last = values[b - 1];
        labels.push({ name, hue, y: Number.isFinite(last) ? yOf(last) : top, now: values[s.t] });
      }
      // names at the ends of their curves, kept apart
      labels.sort((p, q) => p.y - q.y);
      for (let k = 0; k < labels.length; k++) {
        labels[k].y = Math.max(labels[k].y, k > 0 ? labels[k - 1].y + 16 : top + 6);
      }
      const over =
        labels.length > 0 ? Math.max(0, labels[labels.length - 1].y - (top + band.height - 6)) : 0;
      context.textAlign = "left";
      for (const { name, hue, y, now } of labels) {
        context.fillStyle = hue;
        context.font = style.smallBold;
        const text = called(name);
        context.fillText(text, left + width + 10, y - over);
        const from = context.measureText(text).width;
        context.font = style.small;
        context.fillText(show(now), left + width + 16 + from, y - over);
      }
      top += band.height + gap;
      yield;
    }
    context.font = style.small;
    context.fillStyle = style.soft;
    context.fillText(`at step ${s.t}`, left + width + 10, 8);
    axis(context, { a, b, left, width, y: top - gap + 8, style, words: app.words() });
    drawn = key;
    const memory = lane(app.page, s).memory;
    canvas.ariaLabel =
      `Curves of unit ${s.unit} over ${run(app.page, s).T} steps` +
      (memory && memory[s.unit] !== null ? `; memory length ${show(memory[s.unit])} steps` : "");
  };
}
