// The directions of a layer as lanes that run against each other, and how they are joined:
// output[t] is both h at t; h_n and c_n are where each lane ends.

import { scale } from "./colour.js";
import { model, run } from "./data.js";
import { axis, el, fit, heat, place } from "./paint.js";

export function lanes(host, app) {
  const bar = el("div", { className: "lane-bar" });
  const button = el("button", { type: "button", className: "quiet" }, "Run the lanes");
  const slider = el("input", { type: "range", min: 0, step: 1, id: "clock", ariaLabel: "How many steps the lanes have run" });
  const said = el("output", {});
  bar.append(button, slider, said);
  const canvas = el("canvas", { id: "lanes", role: "img" });
  const caption = el("p", { className: "caption" });
  host.append(bar, canvas, caption);
  let timer = null;
  const images = new Map();

  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Run the lanes"; };
  slider.addEventListener("input", () => { stop(); app.set({ clock: Number(slider.value) }); });
  button.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    const T = run(app.page, app.state).T;
    const by = Math.max(1, Math.round(T / 80));
    app.set({ clock: 0 });
    button.textContent = "Stop";
    timer = setInterval(() => {
      const next = Math.min(T, app.state.clock + by);
      app.set({ clock: next });
      if (next >= T) stop();
    }, Math.max(50, Math.min(600, 5000 / T)));
  });

  function image(s, d, name, theme) {
    const key = [s.model, s.batch, s.layer, d, name, theme].join();
    if (!images.has(key)) {
      if (images.size > 12) images.clear();
      const { data, width } = app.field({ ...s, dir: d }, name);
      const rows = Array.from({ length: width }, (_, k) => k);
      images.set(key, heat({ data, width }, rows, 0, data.length / width, scale("signed", app.limit({ ...s, dir: d }, name)), theme));
    }
    return images.get(key);
  }

  function ending(s, d, name, theme) {
    const here = run(app.page, s).lanes[s.layer][d];
    if (here[name] === null) return null;
    const data = app.page.block(here[name]);
    const rows = Array.from({ length: data.length }, (_, k) => k);
    return heat({ data, width: data.length }, rows, 0, 1, scale("signed", app.limit({ ...s, dir: d }, name[0])), theme);
  }

  return function draw(s) {
    const { size } = model(app.page, s);
    const T = run(app.page, s).T;
    const clock = Math.min(s.clock, T);
    slider.max = T;
    slider.value = clock;
    said.textContent = clock === T ? "both ends reached" : `${clock} of ${T} steps read`;
    if (size.D === 1) said.textContent = clock === T ? "the end is reached" : said.textContent;

    const style = app.style();
    const theme = app.theme();
    const outer = host.clientWidth;
    const narrow = outer < 620;
    const gutter = narrow ? 64 : 132;
    const width = outer - 2 * gutter;
    if (width < 40) return;
    const tall = Math.max(46, Math.min(84, size.P * 3));
    const each = width / T;
    const xOf = (t) => gutter + t * each;
    const top = 30;
    const words = top + tall + 9;
    const second = words + 28;
    const out = size.D === 2 ? second + tall + 58 : words + 64;
    const half = Math.round(tall * 0.85);
    const height = out + size.D * half + 30;
    const context = fit(canvas, outer, height);
    const label = (text, x, y, align = "left", font = style.small, ink = style.soft) => {
      context.font = font;
      context.fillStyle = ink;
      context.textAlign = align;
      context.textBaseline = "alphabetic";
      context.fillText(text, x, y);
    };
    const frame = (x, y, w, h, ink = style.line, thick = 1) => {
      context.strokeStyle = ink;
      context.lineWidth = thick;
      context.strokeRect(x, y, w, h);
    };
    // columns from .. to - 1 of an image
    const part = (source, from, to, y, h) => {
      if (to <= from) return;
      context.save();
      context.beginPath();
      context.rect(xOf(from), y, (to - from) * each, h);
      context.clip();
      place(context, source, gutter, y, width, h);
      context.restore();
    };
    const arrow = (x0, x1, y, ink) => {
      const by = Math.sign(x1 - x0);
      context.strokeStyle = context.fillStyle = ink;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(x0, y);
      context.lineTo(x1 - 5 * by, y);
      context.stroke();
      context.beginPath();
      context.moveTo(x1, y);
      context.lineTo(x1 - 8 * by, y - 4.5);
      context.lineTo(x1 - 8 * by, y + 4.5);
      context.fill();
    };

    axis(context, { a: 0, b: T, left: gutter, width, y: words + 2, style, words: app.words() });
    const spans = [[0, clock], [T - clock, T]];
    const tops = [top, second];
    for (let d = 0; d < size.D; d++) {
      const y = tops[d];
      const ink = d === 0 ? style.forward : style.reverse;
      part(image(s, d, "h", theme), ...spans[d], y, tall);
      frame(gutter, y, width, tall);
      // the lane's name beside where it starts, its end state beside where it ends
      const [start, end] = d === 0 ? [gutter, gutter + width] : [gutter + width, gutter];
      const out1 = d === 0 ? -1 : 1;
      const side = d === 0 ? "right" : "left";
      label(d === 0 ? "forward" : "reverse", start + 12 * out1, y + tall / 2 - 4, side, style.smallBold, ink);
      if (!narrow) label(d === 0 ? "reads →" : "← reads", start + 12 * out1, y + tall / 2 + 12, side, style.small, ink);
      if (clock > 0 && clock < T) {
        const x = d === 0 ? xOf(clock) : xOf(T - clock);
        context.fillStyle = ink;
        context.fillRect(x - 1, y - 4, 2, tall + 8);
      }
      const done = clock === T;
      const states = ["h_n", "c_n"].map((name) => [name, ending(s, d, name, theme)]).filter(([, v]) => v !== null);
      states.forEach(([name, strip], k) => {
        const w = narrow ? 10 : 16;
        const x = d === 0 ? end + 26 + k * (w + (narrow ? 8 : 32)) : end - 26 - w - k * (w + (narrow ? 8 : 32));
        if (done) place(context, strip, x, y, w, tall);
        frame(x, y, w, tall, done ? ink : style.line, done ? 1.5 : 1);
        const text = narrow ? name : `${name}[${s.layer * size.D + d}]`;
        label(text, x + w / 2, d === 0 ? y - 9 : y + tall + 17, "center", style.monoSmall, done ? style.ink : style.soft);
      });
      if (done) {
        const wide = Math.max(3, each);
        frame(d === 0 ? end - wide : end, y - 1, wide, tall + 2, ink, 2);
        arrow(end + (d === 0 ? 5 : -5), end + (d === 0 ? 22 : -22), y + tall / 2, ink);
      }
    }

    // the join
    const both = [Math.max(0, T - clock), Math.min(T, clock)];
    const ready = size.D === 1 ? [0, clock] : both;
    for (let d = 0; d < size.D; d++) {
      part(image(s, d, "h", theme), ...ready, out + d * half, half);
      frame(gutter, out + d * half, width, half);
      const ink = d === 0 ? style.forward : style.reverse;
      const [from, to] = [d * size.P, (d + 1) * size.P];
      if (narrow) label(`${from}:${to}`, gutter - 8, out + d * half + half / 2 + 4, "right", style.monoSmall, ink);
      else {
        label(`output[t, ${from}:${to}]`, gutter - 10, out + d * half + half / 2 + 4, "right", style.monoSmall, ink);
        label(d === 0 ? "forward h" : "reverse h", gutter + width + 10, out + d * half + half / 2 + 4, "left", style.small, ink);
      }
    }
    const x = xOf(s.t + 0.5);
    const wide = Math.max(4, each);
    for (let d = 0; d < size.D; d++) {
      const ink = d === 0 ? style.forward : style.reverse;
      frame(x - wide / 2, tops[d], wide, tall, ink, 2);
      frame(x - wide / 2, out + d * half, wide, half, ink, 2);
      const bend = (size.D === 1 ? 0 : d === 0 ? -1 : 1) * (wide / 2 + 9);
      context.strokeStyle = ink;
      context.lineWidth = 1.75;
      context.beginPath();
      if (d === 0 && size.D === 2) { // around the reverse lane's column
        context.moveTo(x - wide / 2, tops[0] + tall - 4);
        context.bezierCurveTo(x + bend - 6, tops[0] + tall + 6, x + bend, second, x + bend, second + tall / 2);
        context.bezierCurveTo(x + bend, out - 34, x - wide / 4, out - 34, x - wide / 4, out);
      } else {
        context.moveTo(x + (size.D === 2 ? wide / 4 : 0), tops[d] + tall);
        context.lineTo(x + (size.D === 2 ? wide / 4 : 0), out - 6);
        if (size.D === 2) context.lineTo(x + wide / 4, out);
        else context.lineTo(x, out);
      }
      context.stroke();
    }
    label(`output[${s.t}]`, Math.max(gutter + 34, Math.min(gutter + width - 34, x)), out + size.D * half + 18, "center", style.monoBold, style.ink);

    const code = (text) => el("code", {}, text);
    const k = s.layer * size.D;
    const top1 = s.layer === size.L - 1;
    const name = top1 ? "output" : "what the layer above reads";
    if (size.D === 2) {
      caption.replaceChildren(
        code(`output[${s.t}]`), top1 ? "" : ` (of this layer: ${name})`, ` joins the forward h at step ${s.t}, which has read steps 0 to ${s.t}, with the reverse h at step ${s.t}, which has read steps ${T - 1} down to ${s.t}. `,
        code(`h_n[${k}]`), " is the forward lane’s last column and ", code(`h_n[${k + 1}]`), " the reverse lane’s ", el("em", {}, "first"), " column, because that lane ends there. So ",
        code("output[-1]"), " is not ", code("h_n"), ": its reverse half has read one step only.");
      canvas.ariaLabel = `Two lanes over ${T} steps: forward left to right, reverse right to left. At each step both hidden states are joined into the output, forward half first. h_n ${k} ends at the right, h_n ${k + 1} at the left.`;
    } else {
      caption.replaceChildren(
        code(`output[${s.t}]`), top1 ? "" : ` (of this layer: ${name})`, ` is h at step ${s.t}, which has read steps 0 to ${s.t}. `,
        code(`h_n[${k}]`), " is the last column", ...(model(app.page, s).cell.has_cell_state ? [", and ", code(`c_n[${k}]`), " the cell at the same step, which the output does not hold"] : []), ".");
      canvas.ariaLabel = `One lane over ${T} steps, left to right; its hidden states are the output, and its last one is h_n ${k}.`;
    }
  };
}
