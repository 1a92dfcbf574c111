// All units over time: a row a unit, a column a step. Hover reads, click selects.

import { colour, palette } from "./colour.js";
import { names, show } from "./cell.js";
import { before, field, lane, order, run, shown } from "./data.js";
import { axis, brief, el, fit, gallery, picture } from "./paint.js";

const LEFT = 46;
const BOTTOM = 24;

export function map(host, app) {
  const frame = el("div", { className: "map-frame" });
  const canvas = el("canvas", { id: "map-image", role: "img", tabIndex: 0 });
  const overlay = el("canvas", { className: "overlay", ariaHidden: "true" });
  const tip = el("div", { className: "tip", hidden: true, role: "status" });
  const loupe = el("canvas", { className: "loupe" });
  const said = el("div", { className: "said" });
  tip.append(said, loupe);
  frame.append(canvas, overlay, tip);
  const legend = el("div", { className: "legend" });
  host.append(frame, legend);
  let at = null; // what the pointer is on: {row, t}
  const image = gallery(12); // of every field and its gradient, each up to some megabytes
  let drawn = null; // the geometry and values of the last drawing

  const hit = (event) => {
    if (drawn === null) return null;
    const box = canvas.getBoundingClientRect();
    const t =
      drawn.a + Math.floor(((event.clientX - box.left - LEFT) / drawn.width) * (drawn.b - drawn.a));
    const row = Math.floor(((event.clientY - box.top) / drawn.height) * drawn.rows.length);
    const inside = t >= drawn.a && t < drawn.b && row >= 0 && row < drawn.rows.length;
    return inside ? { t, row, x: event.clientX - box.left, y: event.clientY - box.top } : null;
  };
  canvas.addEventListener("pointermove", (event) => {
    at = hit(event);
    drawOverlay();
  });
  canvas.addEventListener("pointerleave", () => {
    at = null;
    drawOverlay();
  });
  canvas.addEventListener("click", (event) => {
    const found = hit(event);
    if (found) app.select(drawn.rows[found.row], { t: found.t, playing: false });
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey) return; // pinch, or the wheel with control: zoom in time
      event.preventDefault();
      app.zoom(event.deltaY < 0 ? 0.5 : 2);
    },
    { passive: false },
  );

  function drawOverlay() {
    const { a, b, rows, width, height, values, scaled, s, words } = drawn;
    const style = app.style();
    const context = fit(overlay, width + LEFT, height + BOTTOM);
    const each = width / (b - a);
    const tall = height / rows.length;
    const column = (t, fill, alpha) => {
      context.globalAlpha = alpha;
      context.strokeStyle = fill;
      context.lineWidth = 1.5;
      if (each >= 6) context.strokeRect(LEFT + (t - a) * each, 0.75, each, height - 1.5);
      else context.fillRect(LEFT + (t - a + 0.5) * each - 0.75, 0, 1.5, height);
      context.globalAlpha = 1;
    };
    const selected = rows.indexOf(app.row());
    context.fillStyle = context.strokeStyle = style.ink;
    if (s.t >= a && s.t < b) column(s.t, style.ink, 0.9);
    if (selected >= 0) {
      const y = (selected + 0.5) * tall;
      context.lineWidth = 1.5;
      if (tall >= 5) context.strokeRect(LEFT, selected * tall, width, tall);
      else context.fillRect(LEFT, y - 0.6, width, 1.2);
      context.font = style.smallBold;
      context.textAlign = "right";
      context.textBaseline = "middle";
      const text = `${rows[selected]}`;
      const beside = Math.max(6, Math.min(height - 6, y)); // whole at the edges, too
      context.fillText(text, LEFT - 12, beside);
      context.beginPath();
      context.moveTo(LEFT - 9, beside - 4);
      context.lineTo(LEFT - 3, beside);
      context.lineTo(LEFT - 9, beside + 4);
      context.fill();
      drawCount(context, beside);
    }
    tip.hidden = at === null;
    if (at === null) return;
    const u = rows[at.row];
    const v = values.data[at.t * values.width + u];
    said.replaceChildren(
      el("b", {}, show(v)),
      ` ${s.grad ? "gradient of " : ""}${names[s.field]} ${s.field}`,
      el("br"),
      `${app.rowName()} ${u}, step ${at.t}${words ? ` “${brief(words[at.t])}”` : ""}`,
    );
    tip.dataset.value = v;
    const small = each < 5 || tall < 5;
    loupe.hidden = !small;
    if (small) {
      const size = 9;
      const [across, down] = [Math.min(17, run(app.page, s).T), Math.min(9, rows.length)];
      const lens = fit(loupe, across * size, down * size);
      const T = run(app.page, s).T;
      const first = (middle, shown, all) => Math.max(0, Math.min(all - shown, middle - (shown >> 1)));
      const [top, from] = [first(at.row, down, rows.length), first(at.t, across, T)];
      for (let r = 0; r < down; r++) {
        for (let k = 0; k < across; k++) {
          const [row, t] = [top + r, from + k];
          lens.fillStyle = colour(app.theme(), scaled, values.data[t * values.width + rows[row]]);
          lens.fillRect(k * size, r * size, size, size);
        }
      }
      lens.strokeStyle = style.ink;
      lens.lineWidth = 1.5;
      lens.strokeRect((at.t - from) * size, (at.row - top) * size, size, size);
    }
    context.lineWidth = 2;
    context.strokeStyle = style.accent;
    context.strokeRect(
      LEFT + (at.t - a) * each - 0.5,
      at.row * tall - 0.5,
      Math.max(4, each) + 1,
      Math.max(4, tall) + 1,
    );
    const right = at.x > width * 0.65;
    tip.style.left = right ? "" : `${at.x + 16}px`;
    tip.style.right = right ? `${width + LEFT - at.x + 16}px` : "";
    tip.style.top = `${Math.min(at.y + 12, height - (small ? 110 : 36))}px`;
  }

  // How many rows there are, beside them and clear of the number of the chosen one.
  function drawCount(context, taken) {
    const { height, values, s } = drawn;
    const { H, P } = app.page.meta.models[s.model].size;
    const style = app.style();
    const text = `${values.width} ${s.field === "h" && P !== H ? "outputs" : "units"}`;
    context.font = style.small;
    const half = context.measureText(text).width / 2;
    const clear = (y) => y >= half && y + half <= height && Math.abs(y - taken) > half + 9;
    const y = [1 / 2, 3 / 4, 1 / 4].map((part) => part * height).find(clear);
    if (y === undefined) return;
    context.save();
    context.translate(11, y);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = style.soft;
    context.fillText(text, 0, 0);
    context.restore();
  }

  function drawLegend(scaled, s) {
    const bar = el("canvas", { ariaHidden: "true" });
    const context = fit(bar, 180, 10);
    const colours = palette(app.theme(), scaled.kind).fill;
    const image = new ImageData(256, 1);
    new Uint32Array(image.data.buffer).set(colours.subarray(0, 256));
    context.drawImage(picture(image), 0, 0, 180, 10);
    const text = (place) => el("span", {}, show(scaled.value(place)));
    const marks =
      scaled.kind === "gate"
        ? [
            el("span", {}, s.field === "f" ? "0 forget" : "0 shut"),
            el("span", {}, s.field === "f" ? "keep 1" : "open 1"),
          ]
        : [text(0), el("span", {}, "0"), text(255)];
    legend.replaceChildren(
      el(
        "div",
        { className: "legend-bar" },
        bar,
        el("div", { className: "legend-marks" }, ...marks),
      ),
      el("p", {}, ...note(scaled, s)),
    );
  }

  function note(scaled, s) {
    const sorted = {
      index: "rows in the order of the weights",
      activity: "rows by mean |c|, the most active first",
      memory: "rows by memory length, −1 / mean log f, the longest first",
      similarity: "rows with similar curves side by side",
    }[lane(app.page, s)[s.sort] || s.sort === "index" ? s.sort : "index"];
    const { a, b, rows, width, height } = drawn;
    const ratio = window.devicePixelRatio || 1;
    const crowded = b - a > width * ratio || rows.length > height * ratio;
    return [
      `${sorted}${crowded ? "; more values than pixels, so a pixel is a mean: the lens shows each" : ""}${scaled.power === 1 ? "" : "; colours by cube root, so that small gradients show"}`,
    ];
  }

  // What the map of a state shows, and where.
  function view(s) {
    const [a, b] = s.win;
    const values = field(app.page, s, s.field, s.grad);
    const width = app.width(frame) - LEFT;
    if (width <= 0 || values === null) return null;
    const rows = order(lane(app.page, s), s.sort, values.width);
    const tall = Math.max(3, Math.min(16, Math.floor(360 / rows.length)));
    const height = rows.length * tall > 400 ? 380 : rows.length * tall;
    const key = shown(s, s.sort, a, b, app.theme(), width);
    return { key, a, b, rows, width, height, values, scaled: app.scale(s), s: { ...s } };
  }

  function drawImage({ key, a, b, rows, width, height, values, scaled, s }) {
    const again = () => {
      if (drawn.key === key) drawImage(drawn);
    };
    const then = s.printing ? null : again;
    const made = image(key, then, values, rows, a, b, scaled, app.theme(), width, height);
    const context = canvas.getContext("2d");
    context.drawImage(made, LEFT, 0, width, height);
    context.strokeStyle = app.style().line;
    context.strokeRect(LEFT + 0.5, 0.5, width - 1, height - 1);
    canvas.ariaBusy = String(!image.has(key));
  }

  function draw(s) {
    const now = view(s);
    if (now === null) return;
    const same = drawn !== null && drawn.key === now.key;
    drawn = { ...now, words: app.words() };
    if (same && !s.printing) {
      drawOverlay();
      return;
    } // only the marks moved
    const { a, b, width, height, values, scaled } = now;
    const T = run(app.page, s).T;
    const style = app.style();
    const context = fit(canvas, width + LEFT, height + BOTTOM);
    drawImage(now);
    axis(context, { a, b, left: LEFT, width, y: height + 7, style, words: app.words() });
    const from = before(s, 0) < 0 ? "left to right" : "right to left";
    canvas.ariaLabel =
      `Map of ${s.grad ? "the gradients of " : ""}${names[s.field]} ${s.field}: ` +
      `${values.width} units in rows, steps ${a} to ${b - 1} in columns, read ${from}. ` +
      "Arrow keys move the step and the unit; the numbers of the chosen one are in the table at the end.";
    drawLegend(scaled, s);
    drawOverlay();
  }

  return draw;
}
