// The sequence: its tokens (those around the step, if there are many) or its series, and a scrubber.

import { markup } from "./colour.js";
import { among, show } from "./cell.js";
import { inputName, run, series, shown, windowAround } from "./data.js";
import { curve, el, fit, gallery, visible, write } from "./paint.js";

export function ribbon(host, app) {
  const { page } = app;
  const cells = el("div", { className: "cells" });
  const canvas = el("canvas", { className: "series", role: "img" });
  const slider = el("input", { type: "range", id: "step", min: 0, step: 1, ariaLabel: "Step" });
  const lead = el("b");
  const others = el("span");
  const legend = el("p", { className: "columns", hidden: true }, lead, others);
  host.append(cells, legend, canvas, slider);
  slider.addEventListener("input", () => app.set({ t: Number(slider.value), playing: false }));
  cells.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-t]");
    if (cell) app.set({ t: Number(cell.dataset.t), playing: false });
  });
  const scrub = (event) => {
    if (event.type === "pointermove" && event.buttons === 0) return;
    const box = canvas.getBoundingClientRect();
    const T = run(page, app.state).T;
    const t = Math.floor(((event.clientX - box.left) / box.width) * T);
    app.set({ t: Math.max(0, Math.min(T - 1, t)), playing: false });
  };
  canvas.addEventListener("pointerdown", scrub);
  canvas.addEventListener("pointermove", scrub);
  let span = [0, 0];
  let said = ""; // what the cells show
  let worn = ""; // and what they wear: words and colours
  const image = gallery(6);

  function drawSeries(s, T) {
    const width = app.width(host);
    const height = 66;
    const plot = 52; // the rest is a strip of the unit's values
    const context = fit(canvas, width, height);
    const I = page.meta.models[s.model].size.I;
    const x = page.block(run(page, s).x[0]);
    const style = app.style();
    const each = width / T;
    const lines = Math.min(I, 6);
    for (let k = lines - 1; k >= 0; k--) {
      const values = Float32Array.from({ length: T }, (_, t) => x[t * I + k]);
      const finite = values.filter(Number.isFinite);
      const [low, high] = [
        finite.reduce((a, b) => Math.min(a, b), Infinity),
        finite.reduce((a, b) => Math.max(a, b), -Infinity),
      ];
      const y = (v) => plot - 6 - ((v - low) / (high - low || 1)) * (plot - 12);
      context.strokeStyle = k === 0 ? style.ink : style.soft;
      context.globalAlpha = k === 0 ? 1 : 0.45;
      context.lineWidth = k === 0 ? 1.5 : 1;
      curve(context, values, 0, T, (t) => t * each, y);
      context.globalAlpha = 1;
      if (k === 0 && Number.isFinite(values[s.t])) {
        context.fillStyle = style.accent;
        context.beginPath();
        context.arc((s.t + 0.5) * each, y(values[s.t]), 4.5, 0, 7);
        context.fill();
      }
    }
    const values = app.field(s, s.field, s.grad);
    if (values !== null) {
      const key = shown(s, app.row(), app.theme(), width);
      context.drawImage(
        image(key, null, values, [app.row()], 0, T, app.scale(), app.theme(), width, 10),
        0,
        plot + 3,
        width,
        10,
      );
    }
    context.fillStyle = style.accent;
    context.globalAlpha = 0.5;
    context.fillRect((s.t + 0.5) * each - 0.5, 0, 1, height);
    context.globalAlpha = 1;
    canvas.ariaLabel = `The input as a series of ${T} steps`;
    legend.hidden = page.meta.columns === null;
    if (legend.hidden) return;
    const names = Array.from({ length: I }, (_, k) => inputName(page, { layer: 0 }, k));
    write(lead, names[0]);
    const more = I > lines ? ` and ${I - lines} more, not drawn` : "";
    write(others, I > 1 ? ` beside ${names.slice(1, lines).join(", ")}${more}` : "");
  }

  return function draw(s) {
    const T = run(page, s).T;
    const words = app.words();
    slider.max = T - 1;
    slider.value = s.t;
    slider.setAttribute(
      "aria-valuetext",
      `step ${s.t}${among(T)}${words ? `, ${visible(words[s.t])}` : ""}`,
    );
    slider.style.setProperty("--done", `${T > 1 ? (100 * s.t) / (T - 1) : 0}%`);
    const drawn = words === null || page.meta.kind === "series";
    canvas.hidden = !drawn;
    cells.hidden = drawn;
    if (drawn) {
      drawSeries(s, T);
      return;
    }
    const key = shown(s, app.row(), s.t, app.width(host));
    if (key === said) return;
    said = key;
    const longest = words.reduce((most, w) => Math.min(12, Math.max(most, w.length)), 0);
    const least = longest <= 2 ? 30 : 9 * longest + 16;
    const fits = Math.max(3, Math.floor(app.width(host) / least));
    // near an end of what is shown the chosen token comes to the middle, so that its neighbours are seen
    const [first, past] = span;
    const near = (first > 0 && s.t < first + 2) || (past < T && s.t >= past - 2);
    span = windowAround(near ? [0, 0] : span, fits, s.t, T);
    const wear = shown(s, app.row(), span);
    const same = wear === worn;
    worn = wear;
    const values = series(page, s, s.field, app.row(), s.grad);
    const scaled = app.scale();
    const [a, b] = span;
    while (cells.children.length > b - a) cells.lastChild.remove();
    while (cells.children.length < b - a)
      cells.append(el("span", { className: "cell" }, el("b"), el("i")));
    for (let t = a; t < b; t++) {
      const cell = cells.children[t - a];
      cell.classList.toggle("now", t === s.t);
      write(cell.lastChild, T <= fits || t % 5 === 0 || t === s.t ? String(t) : "");
      if (same) continue;
      cell.dataset.t = t;
      cell.classList.toggle("space", words[t].trim() === "");
      write(cell.firstChild, visible(words[t]));
      if (values === null) continue;
      const { fill, ink } = markup(scaled, values[t]);
      cell.firstChild.style.background = fill;
      cell.firstChild.style.color = ink;
      cell.title = `step ${t}: ${s.grad ? "gradient of " : ""}${s.field} = ${show(values[t])}`;
    }
    // the thumb stands under the middle of its cell when all of them are there
    const edge = b - a === T ? `${app.width(host) / T / 2 - 8}px` : "0";
    slider.style.paddingInline = edge;
    cells.classList.toggle("more-left", a > 0);
    cells.classList.toggle("more-right", b < T);
  };
}
