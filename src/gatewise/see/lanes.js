// The directions of a layer as lanes that run against each other, and how they are joined:
// output[t] is both h at t; h_n and c_n are where each lane ends.

import { scale } from "./colour.js";
import { model, run } from "./data.js";
import { axis, el, fit, gallery } from "./paint.js";

export function lanes(host, app) {
  const bar = el("div", { className: "lane-bar" });
  const button = el("button", { type: "button", className: "quiet" }, "Run the lanes");
  const slider = el("input", {
    type: "range",
    min: 0,
    step: 1,
    id: "clock",
    ariaLabel: "How many steps the lanes have run",
  });
  const said = el("output", {});
  bar.append(button, slider, said);
  const canvas = el("canvas", { id: "lanes", role: "img" });
  const caption = el("p", { className: "caption" });
  host.append(bar, canvas, caption);
  let timer = null;
  const images = [gallery(12), gallery(12)]; // of each direction

  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Run the lanes";
  };
  slider.addEventListener("input", () => {
    stop();
    app.set({ clock: Number(slider.value) });
  });
  button.addEventListener("click", () => {
    if (timer !== null) {
      stop();
      return;
    }
    const T = run(app.page, app.state).T;
    const by = Math.max(1, Math.round(T / 80));
    app.set({ clock: 0 });
    button.textContent = "Stop";
    timer = setInterval(
      () => {
        const next = Math.min(T, app.state.clock + by);
        app.set({ clock: next });
        if (next >= T) stop();
      },
      Math.max(50, Math.min(600, 5000 / T)),
    );
  });

  const rowsOf = (width) => Array.from({ length: width }, (_, k) => k);
  const scaleOf = (s, d, name) => scale("signed", app.limit({ ...s, dir: d }, name));

  // All of a lane, for a place of that size.
  function image(s, d, theme, width, height) {
    const key = ["h", s.model, s.batch, s.layer, d, theme, width, height].join();
    const values = app.field({ ...s, dir: d }, "h");
    const T = values.data.length / values.width;
    const then = s.printing ? null : () => draw(app.state);
    const how = [rowsOf(values.width), 0, T, scaleOf(s, d, "h"), theme, width, height];
    return images[d](key, then, values, ...how);
  }

  // Where a lane ended, h_n or c_n; null if the cell has no such state.
  function ending(s, d, name, theme, width, height) {
    const block = run(app.page, s).lanes[s.layer][d][name];
    if (block === null) return null;
    const key = [name, s.model, s.batch, s.layer, d, theme, width, height].join();
    const data = app.page.block(block);
    const how = [rowsOf(data.length), 0, 1, scaleOf(s, d, name[0]), theme, width, height];
    return images[d](key, null, { data, width: data.length }, ...how);
  }

  function draw(s) {
    const { size } = model(app.page, s);
    const T = run(app.page, s).T;
    const clock = Math.min(s.clock, T);
    slider.max = T;
    slider.value = clock;
    slider.style.setProperty("--done", `${(100 * clock) / T}%`);
    said.textContent = clock === T ? "both ends reached" : `${clock} of ${T} steps read`;
    if (size.D === 1) said.textContent = clock === T ? "the end is reached" : said.textContent;

    const style = app.style();
    const theme = app.theme();
    const outer = app.width(host);
    const narrow = outer < 620;
    const gutter = narrow ? 76 : 132;
    const width = outer - 2 * gutter;
    if (width < 40) return;
    const tall = Math.max(64, Math.min(96, size.P * 4));
    const each = width / T;
    const xOf = (t) => gutter + t * each;
    const half = Math.round(tall * 0.75);
    const gap = 46;
    const top = 34;
    const out = top + tall + gap; // the output lies between the lanes
    const second = out + size.D * half + gap;
    const words = size.D === 2 ? second + tall + 8 : out + half + 8;
    const height = words + 24;
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
      const wide = (to - from) / T;
      context.drawImage(
        source,
        (from / T) * source.width,
        0,
        wide * source.width,
        source.height,
        xOf(from),
        y,
        wide * width,
        h,
      );
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

    axis(context, { a: 0, b: T, left: gutter, width, y: top - 22, style, words: app.words() });
    axis(context, { a: 0, b: T, left: gutter, width, y: words, style, words: app.words() });
    const spans = [
      [0, clock],
      [T - clock, T],
    ];
    const tops = [top, second];
    for (let d = 0; d < size.D; d++) {
      const y = tops[d];
      const ink = d === 0 ? style.forward : style.reverse;
      part(image(s, d, theme, width, tall), ...spans[d], y, tall);
      frame(gutter, y, width, tall);
      // the lane's name beside where it starts, its end state beside where it ends
      const [start, end] = d === 0 ? [gutter, gutter + width] : [gutter + width, gutter];
      const out1 = d === 0 ? -1 : 1;
      const side = d === 0 ? "right" : "left";
      label(
        d === 0 ? "forward" : "reverse",
        start + 12 * out1,
        y + tall / 2 - 4,
        side,
        style.smallBold,
        ink,
      );
      if (!narrow)
        label(
          d === 0 ? "reads →" : "← reads",
          start + 12 * out1,
          y + tall / 2 + 12,
          side,
          style.small,
          ink,
        );
      if (clock > 0 && clock < T) {
        const x = d === 0 ? xOf(clock) : xOf(T - clock);
        context.fillStyle = ink;
        context.fillRect(x - 1, y - 4, 2, tall + 8);
      }
      const done = clock === T;
      const w = narrow ? 10 : 16;
      const states = ["h_n", "c_n"]
        .map((name) => [name, ending(s, d, name, theme, w, tall)])
        .filter(([, v]) => v !== null);
      states.forEach(([name, strip], k) => {
        const x =
          d === 0
            ? end + 26 + k * (w + (narrow ? 17 : 32))
            : end - 26 - w - k * (w + (narrow ? 17 : 32));
        if (done) context.drawImage(strip, x, y, w, tall);
        frame(x, y, w, tall, done ? ink : style.line, done ? 1.5 : 1);
        const text = narrow ? name : `${name}[${s.layer * size.D + d}]`;
        label(
          text,
          x + w / 2,
          d === 0 ? y - 9 : y + tall + 17,
          "center",
          style.monoSmall,
          done ? style.ink : style.soft,
        );
      });
      if (done) {
        const wide = Math.max(3, each);
        frame(d === 0 ? end - wide : end, y - 1, wide, tall + 2, ink, 2);
        arrow(end + (d === 0 ? 5 : -5), end + (d === 0 ? 22 : -22), y + tall / 2, ink);
      }
    }

    // the join
    context.font = style.monoSmall;
    const whole = `output[t, ${size.P * (size.D - 1)}:${size.P * size.D}]`; // the longest
    const room = context.measureText(whole).width < gutter - 8;
    const slice = (from, to) => (room ? `output[t, ${from}:${to}]` : `${from}:${to}`);
    const both = [Math.max(0, T - clock), Math.min(T, clock)];
    const ready = size.D === 1 ? [0, clock] : both;
    for (let d = 0; d < size.D; d++) {
      part(image(s, d, theme, width, half), ...ready, out + d * half, half);
      frame(gutter, out + d * half, width, half);
      const ink = d === 0 ? style.forward : style.reverse;
      const [from, to] = [d * size.P, (d + 1) * size.P];
      const middle = out + d * half + half / 2 + 4;
      label(slice(from, to), gutter - 8, middle, "right", style.monoSmall, ink);
      if (!narrow) {
        const words = d === 0 ? "forward h" : "reverse h";
        label(words, gutter + width + 10, middle, "left", style.small, ink);
      }
    }
    const x = xOf(s.t + 0.5);
    const wide = Math.max(4, each);
    for (let d = 0; d < size.D; d++) {
      const ink = d === 0 ? style.forward : style.reverse;
      frame(x - wide / 2, tops[d], wide, tall, ink, 2);
      frame(x - wide / 2, out + d * half, wide, half, ink, 2);
      const [from, to] = d === 0 ? [top + tall, out] : [second, out + 2 * half];
      context.strokeStyle = context.fillStyle = ink;
      context.lineWidth = 1.75;
      context.beginPath();
      context.moveTo(x, from);
      context.lineTo(x, to);
      context.stroke();
      const by = Math.sign(to - from);
      context.beginPath();
      context.moveTo(x, to);
      context.lineTo(x - 4.5, to - 8 * by);
      context.lineTo(x + 4.5, to - 8 * by);
      context.fill();
    }
    const late = x > gutter + width - 90;
    label(
      `output[${s.t}]`,
      x + (late ? -10 : 10),
      out - gap / 2 + 4,
      late ? "right" : "left",
      style.monoBold,
      style.ink,
    );

    const code = (text) => el("code", {}, text);
    const k = s.layer * size.D;
    const top1 = s.layer === size.L - 1;
    const steps = (a, to, b) => (a === b ? `step ${a} alone` : `steps ${a}${to}${b}`);
    const name = top1 ? "output" : "what the layer above reads";
    if (size.D === 2) {
      caption.replaceChildren(
        code(`output[${s.t}]`),
        top1 ? "" : ` (of this layer: ${name})`,
        ` joins the forward h at step ${s.t}, which has read ${steps(0, " to ", s.t)}, with the reverse h at step ${s.t}, which has read ${steps(T - 1, " down to ", s.t)}. `,
        code(`h_n[${k}]`),
        " is the forward lane’s last column and ",
        code(`h_n[${k + 1}]`),
        " the reverse lane’s ",
        el("em", {}, "first"),
        " column, because that lane ends there.",
        ...(T > 1
          ? [
              " So ",
              code("output[-1]"),
              " is not ",
              code("h_n"),
              ": its reverse half has read one step only.",
            ]
          : []),
      );
      canvas.ariaLabel = `Two lanes over ${T} steps: forward left to right, reverse right to left. At each step both hidden states are joined into the output, forward half first. h_n ${k} ends at the right, h_n ${k + 1} at the left.`;
    } else {
      caption.replaceChildren(
        code(`output[${s.t}]`),
        top1 ? "" : ` (of this layer: ${name})`,
        ` is h at step ${s.t}, which has read ${steps(0, " to ", s.t)}. `,
        code(`h_n[${k}]`),
        " is the last column",
        ...(model(app.page, s).cell.has_cell_state
          ? [
              ", and ",
              code(`c_n[${k}]`),
              " the cell at the same step, which the output does not hold",
            ]
          : []),
        ".",
      );
      canvas.ariaLabel = `One lane over ${T} steps, left to right; its hidden states are the output, and its last one is h_n ${k}.`;
    }
  }

  return draw;
}
