// How far the gradient of the loss reaches back: its norm at each step, on a scale of powers of ten,
// for this layer and for the one beside it.

import { scale } from "./colour.js";
import { distance, norms, run, store, there } from "./data.js";
import { show } from "./cell.js";
import { axis, curve, el, fit, gallery } from "./paint.js";

const LEFT = 60;
const RIGHT = 130;

// How far back a lane's gradient reaches, in words that follow the lane's name.
export function sentence(norm, reverse) {
  const some = norm.filter((n) => n > 0 && Number.isFinite(n));
  if (some.length === 0)
    return norm.some(Number.isNaN)
      ? "has a gradient that is not a number"
      : "has no gradient: the loss does not depend on it";
  const { steps, whole } = distance(norm, reverse);
  const far = `${steps} ${steps === 1 ? "step" : "steps"}`;
  const top = some.reduce((a, b) => Math.max(a, b));
  if (whole && steps > 0) {
    const share = (100 * norm[reverse ? norm.length - 1 : 0]) / top;
    return `still has ${Number(share.toPrecision(2))}\u00a0% of its largest gradient at the step it read first, ${far} before`;
  }
  if (whole)
    return some.length === 1
      ? "has its gradient at one step only, the first that it read"
      : "has its largest gradient at the step it read first";
  return `has less than 1\u00a0% of its largest gradient ${steps === 0 ? "at every step" : `more than ${far}`} before it`;
}

export function reaching(host, app) {
  const said = el("ul", { className: "reach-said" });
  const canvas = el("canvas", { id: "reach", role: "img" });
  const hint = el("p", { className: "hint" });
  const maps = el("canvas", { id: "beside", role: "img" });
  const mapsName = el("h3", {}, "The hidden states side by side");
  host.append(said, canvas, hint, mapsName, maps);
  const known = store(64);
  const images = app.page.meta.models.map(() => gallery(4));

  function lines(s) {
    const out = [];
    app.page.meta.models.forEach((one, m) => {
      const place = there(app.page, s, m);
      for (const name of one.cell.has_cell_state ? ["c", "h"] : ["h"]) {
        const key = [m, place.batch, place.layer, place.dir, name].join();
        const norm = known(key, () => norms(app.page, place, name));
        if (norm !== null) out.push({ m, name, place, title: one.name, norm });
      }
    });
    return out;
  }

  function drawMaps(s) {
    const models = app.page.meta.models;
    maps.hidden = mapsName.hidden = models.length < 2;
    if (maps.hidden) return;
    const style = app.style();
    const outer = app.width(host);
    const right = outer < 560 ? 10 : RIGHT;
    const width = outer - LEFT - right;
    const T = run(app.page, s).T;
    const tall = 92;
    const context = fit(maps, outer, models.length * (tall + 26) + 30);
    const limit = Math.max(...models.map((_, m) => app.limit(there(app.page, s, m), "h"))); // one scale for both
    models.forEach((one, m) => {
      const place = there(app.page, s, m);
      const values = app.field(place, "h");
      const top = m * (tall + 26) + 16;
      const rows = Array.from({ length: values.width }, (_, k) => k);
      const key = [m, place.batch, place.layer, place.dir, app.theme(), width].join();
      const then = s.printing ? null : () => drawMaps(app.state);
      const how = [rows, 0, T, scale("signed", limit), app.theme(), width, tall];
      context.drawImage(images[m](key, then, values, ...how), LEFT, top, width, tall);
      context.strokeStyle = style.line;
      context.strokeRect(LEFT + 0.5, top + 0.5, width - 1, tall - 1);
      context.fillStyle = style.ink;
      context.font = style.smallBold;
      context.textAlign = "left";
      context.textBaseline = "alphabetic";
      context.fillText(`${one.name}: h`, LEFT, top - 5);
    });
    axis(context, {
      a: 0,
      b: T,
      left: LEFT,
      width,
      y: models.length * (tall + 26) + 2,
      style,
      words: app.words(),
    });
    maps.ariaLabel = `Hidden states of ${models.map((one) => one.name).join(" and ")} over ${T} steps`;
  }

  return function draw(s) {
    const T = run(app.page, s).T;
    const all = lines(s);
    drawMaps(s);
    hint.hidden = all.length > 0;
    canvas.hidden = said.hidden = all.length === 0;
    if (all.length === 0) {
      hint.replaceChildren(
        "This trace has no gradients. Call backward on a loss before writing the page: ",
        el("code", {}, "trace = lstm.trace(x); loss(trace.output).backward(); trace.explore(path)"),
      );
      return;
    }
    const style = app.style();
    const inks = [style.forward, style.other];
    let [low, high] = [Infinity, -Infinity];
    for (const { norm } of all) {
      for (const n of norm) {
        if (!(n > 0) || !Number.isFinite(n)) continue;
        const power = Math.log10(n);
        if (power < low) low = power;
        if (power > high) high = power;
      }
    }
    if (!(high >= low)) [low, high] = [-1, 0];
    [low, high] = [Math.floor(Math.max(low, high - 30)), Math.ceil(high + 1e-9)];
    if (high === low) high += 1;

    const outer = app.width(host);
    const narrow = outer < 560;
    const tall = 220;
    const context = fit(canvas, outer, tall + 44);
    const called = ({ name, title }) => `${title}, ∂${name}`;
    context.font = style.smallBold;
    const longest = Math.max(...all.map((one) => context.measureText(called(one)).width));
    const right = Math.max(narrow ? 0 : RIGHT, Math.ceil(longest) + 12);
    const width = outer - LEFT - right;
    const yOf = (n) =>
      n >= 10 ** low ? 10 + tall - ((Math.log10(n) - low) / (high - low)) * tall : NaN;
    const xOf = (t) => LEFT + (t / T) * width;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const by = Math.max(1, Math.ceil((high - low) / 7));
    for (let power = high; power >= low; power -= by) {
      const y = Math.round(yOf(10 ** power)) + 0.5;
      context.strokeStyle = style.line;
      context.lineWidth = 0.75;
      context.beginPath();
      context.moveTo(LEFT, y);
      context.lineTo(LEFT + width, y);
      context.stroke();
      context.font = style.small;
      context.fillStyle = style.soft;
      const raised = [...String(power)].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d] ?? "⁻").join("");
      context.fillText(`10${raised}`, LEFT - 8, y);
    }
    context.strokeStyle = style.soft;
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(xOf(s.t + 0.5), 10);
    context.lineTo(xOf(s.t + 0.5), 10 + tall);
    context.stroke();
    context.setLineDash([]);
    const { loss } = app.page.meta;
    if (loss !== null) {
      const x = xOf(loss.t + 0.5);
      const late = x > LEFT + width / 2;
      context.strokeStyle = context.fillStyle = style.soft;
      context.lineWidth = 1.25;
      context.beginPath();
      context.moveTo(x, 4);
      context.lineTo(x, 10 + tall);
      context.stroke();
      context.font = style.small;
      context.textAlign = late ? "right" : "left";
      context.fillText("loss", x + (late ? -5 : 5), 8);
    }
    const labels = [];
    for (const { m, name, norm, title } of all) {
      context.strokeStyle = inks[m];
      context.lineWidth = name === "c" || all.length === 1 || m === 1 ? 2.25 : 1.5;
      if (name === "h" && m === 0 && all.some((one) => one.m === 0 && one.name === "c"))
        context.setLineDash([5, 4]);
      curve(context, norm, 0, T, xOf, yOf);
      context.setLineDash([]);
      const seen = norm.reduce((count, n) => count + (n > 0), 0);
      if (seen === 1) {
        // a line needs two
        const t = norm.findIndex((n) => n > 0);
        context.fillStyle = inks[m];
        context.beginPath();
        context.arc(xOf(t + 0.5), yOf(norm[t]), name === "c" ? 5 : 3, 0, 7);
        context.fill();
      }
      const end = yOf(norm.findLast((n) => n > 0) ?? 0); // where the curve is last seen
      labels.push({
        y: Number.isFinite(end) ? end : 10 + tall,
        ink: inks[m],
        text: called({ name, title }),
      });
    }
    labels.sort((p, q) => p.y - q.y);
    context.textAlign = "left";
    context.font = style.smallBold;
    labels.forEach((one, k) => {
      one.y = Math.max(one.y, k > 0 ? labels[k - 1].y + 16 : 16);
      context.fillStyle = one.ink;
      context.fillText(one.text, LEFT + width + 10, one.y);
    });
    axis(context, { a: 0, b: T, left: LEFT, width, y: tall + 20, style, words: app.words() });
    canvas.ariaLabel = "Norm of the gradient of the loss at each step, logarithmic";

    said.replaceChildren(
      ...app.page.meta.models.flatMap((one, m) => {
        const name = one.cell.has_cell_state ? "c" : "h";
        const line = all.find((candidate) => candidate.m === m && candidate.name === name);
        if (line === undefined) return [];
        const reverse = line.place.dir === 1;
        const text = ` ${sentence(line.norm, reverse)}.`;
        const item = el("li", {}, el("strong", {}, one.name), text);
        item.style.setProperty("--mark", inks[m]);
        item.dataset.steps = distance(line.norm, reverse).steps;
        return [item];
      }),
    );
  };
}
