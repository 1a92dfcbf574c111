// The chosen unit over time: its gates, what is written and shown, its cell.

import { hues } from "./colour.js";
import { names, show, welded } from "./cell.js";
import { lane, run, series, shown } from "./data.js";
import { axis, curve, el, fit, levels } from "./paint.js";

const tick = (v) => String(Number(v.toPrecision(2))).replace("-", "−");

const LEFT = 46;
const RIGHT = 150;

export function curves(host, app) {
  const canvas = el("canvas", { id: "curves", role: "img" });
  host.append(canvas);
  let drawn = ""; // what the last drawing showed
  let right = RIGHT;
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const [a, b] = app.state.win;
    const t =
      a + Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - right)) * (b - a));
    if (t >= a && t < b) app.set({ t, playing: false });
  });

  return function* draw(s) {
    const { cell } = app.page.meta.models[s.model];
    const style = app.style();
    const outer = app.width(host);
    const key = shown({ ...s, field: "all" }, s.unit, s.out, s.t, s.win, app.theme(), outer);
    if (outer <= LEFT + RIGHT || (key === drawn && !s.printing)) return;
    drawn = ""; // until all of it is
    const narrow = outer < 560;
    right = narrow ? 96 : RIGHT;
    const width = outer - LEFT - right;
    const [a, b] = s.win;
    const gates = ["f", "i", "o"].filter((gate) => !welded(cell, gate));
    const bands = [
      ...(gates.length > 0 ? [{ fields: gates, height: 110, low: 0, high: 1 }] : []),
      {
        fields: cell.has_cell_state ? ["g", "h"] : ["h"],
        height: 110,
        ...(cell.g === "tanh" &&
        (cell.out === "tanh" || !cell.has_cell_state) &&
        gates.every((gate) => cell[gate] === "sigmoid")
          ? { low: -1, high: 1 }
          : {}),
      },
      ...(cell.has_cell_state ? [{ fields: ["c"], height: 110 }] : []),
    ];
    const gap = 18;
    const height = bands.reduce((sum, band) => sum + band.height + gap, 0) + 30;
    const context = fit(canvas, outer, height);
    const xOf = (t) => LEFT + ((t - a) / (b - a)) * width;
    let top = 22;
    for (const band of bands) {
      const lines = band.fields
        .map((name) => ({
          name,
          values: series(app.page, s, name, name === "h" ? s.out : s.unit, s.grad),
        }))
        .filter((line) => line.values !== null);
      let [low, high] = s.grad || band.low === undefined ? [0, 0] : [band.low, band.high];
      if (
        s.grad ||
        band.low === undefined ||
        gates.some((g) => cell[g] !== "sigmoid" && band.fields.includes(g))
      ) {
        for (const { values } of lines) {
          for (const v of values) {
            if (v < low) low = v;
            if (v > high && v < Infinity) high = v;
          }
        }
        if (high === low) [low, high] = [-1, 1]; // all zero, or no number at all
        const pad = (high - low) * 0.08;
        [low, high] = [low < 0 ? low - pad : 0, high > 0 ? high + pad : 0];
      }
      const yOf = (v) => top + band.height - ((v - low) / (high - low)) * band.height;
      context.font = style.small;
      context.textBaseline = "middle";
      context.textAlign = "right";
      for (const v of levels(low, high, 2.5)) {
        context.strokeStyle = style.line;
        context.lineWidth = v === 0 ? 1.25 : 0.75;
        context.beginPath();
        context.moveTo(LEFT, Math.round(yOf(v)) + 0.5);
        context.lineTo(LEFT + width, Math.round(yOf(v)) + 0.5);
        context.stroke();
        context.fillStyle = style.soft;
        context.fillText(tick(v), LEFT - 7, yOf(v));
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
        curve(context, values, a, b, xOf, yOf);
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
        const text = narrow
          ? name
          : name === "h" &&
              app.page.meta.models[s.model].size.P !== app.page.meta.models[s.model].size.H
            ? `output ${s.out}`
            : names[name];
        context.fillText(text, LEFT + width + 10, y - over);
        const from = context.measureText(text).width;
        context.font = style.small;
        context.fillText(show(now), LEFT + width + 16 + from, y - over);
      }
      top += band.height + gap;
      yield;
    }
    context.font = style.small;
    context.fillStyle = style.soft;
    context.fillText(`at step ${s.t}`, LEFT + width + 10, 8);
    axis(context, { a, b, left: LEFT, width, y: top - gap + 8, style, words: app.words() });
    drawn = key;
    const memory = lane(app.page, s).memory;
    canvas.ariaLabel =
      `Curves of unit ${s.unit} over ${run(app.page, s).T} steps` +
      (memory && memory[s.unit] !== null ? `; memory length ${show(memory[s.unit])} steps` : "");
  };
}
