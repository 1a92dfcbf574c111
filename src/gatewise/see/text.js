// The whole text, each token on the colour of the unit's value. Drawn on canvas, and only the lines in
// view: two thousand coloured pieces of markup cost more to paint than a step may take. So do a thousand
// calls of canvas: the colours of a line, and the inks on them, are an image one pixel high, and the words,
// which stay while the values change, cut the inks out.

import { inkOn, palette, placeOf } from "./colour.js";
import { series, shown } from "./data.js";
import { brief, el, fit, picture } from "./paint.js";

const LINE = 30;
const MOST = 420; // height, in pixels, before the text scrolls

// Where each token stands: x and line. Lines break after a space or a newline, between any two words,
// and inside a run of characters only if it is longer than a line.
export function flow(words, widths, room) {
  const chars = words.every((word) => [...word].length <= 1);
  const place = [];
  let [x, line, run] = [0, 0, 0]; // run: the first token that may not be parted from this one
  for (let t = 0; t < words.length; t++) {
    if (x + widths[t] > room && x > 0) {
      const whole = chars && run < t && place[run].x > 0; // the run fits on a line of its own
      const from = whole ? run : t;
      line += 1;
      x = 0;
      for (let k = from; k < t; k++) {
        place[k] = { x, line };
        x += widths[k];
      }
      run = from;
    }
    place.push({ x, line });
    x += widths[t];
    if (words[t] === "\n") {
      line += 1;
      x = 0;
    }
    if (!chars || words[t].trim() === "") run = t + 1;
  }
  return place;
}

export function text(host, app) {
  const spoken = el("p", { className: "hidden" });
  const box = el("div", { className: "text-box" });
  const canvas = el("canvas", { id: "text", role: "img" });
  const spacer = el("div");
  const mark = el("div", { className: "text-mark", ariaHidden: "true" }); // around the chosen token
  box.append(canvas, spacer, mark);
  host.append(spoken, box);
  host.hidden = app.page.meta.kind === "series"; // the ribbon draws it, and its colours
  let made = null; // the layout: {key, words, chars, said, widths, place, lines}
  let ask = null; // what to draw: {key, values, scaled}
  let cut = null; // the words in view: {key, canvas}
  let scrolled = 0; // to ask the box would lay out the page

  box.addEventListener("scroll", () => {
    scrolled = box.scrollTop;
    paint();
  });
  canvas.addEventListener("click", (event) => {
    const line = Math.floor((event.offsetY + scrolled) / LINE);
    const t = made.place.findIndex(
      (p, k) => p.line === line && event.offsetX < p.x + made.widths[k],
    );
    if (t >= 0) app.set({ t, playing: false });
  });

  function lay(words) {
    const room = app.width(box) - 4;
    const key = `${app.state.model} ${app.state.batch} ${room}`;
    if (made !== null && made.key === key) return;
    const chars = words.every((word) => [...word].length <= 1);
    const said = words.map((word) => (chars && word === " " ? " " : brief(word)));
    made = { key, words, chars, said };
    const context = canvas.getContext("2d");
    context.font = app.style()[chars ? "text" : "textWords"];
    const known = new Map();
    const measure = (word) => {
      if (!known.has(word))
        known.set(word, Math.ceil(context.measureText(word).width) + (chars ? 2 : 10));
      return known.get(word);
    };
    made.widths = said.map(measure);
    made.place = flow(words, made.widths, room);
    made.lines = made.place[made.place.length - 1].line + 1;
    spoken.textContent = words.join(chars ? "" : " ");
    canvas.ariaLabel =
      "The text, each token on the colour of the value; the same text is above in words";
  }

  // The place of a token in the whole text.
  function spot(t) {
    const { x, line } = made.place[t];
    const width = made.widths[t] - (made.chars ? 0 : 3);
    return { left: x + 2, top: line * LINE + 2, width, height: LINE - 4 };
  }

  // The lines in view: {top, width, height, lines, tokens}, lines from .. to - 1.
  function view() {
    const tall = made.lines * LINE;
    const height = app.state.printing ? tall : Math.min(MOST, tall);
    const top = app.state.printing ? 0 : scrolled;
    box.style.height = `${height}px`;
    spacer.style.height = `${tall - height}px`;
    const lines = [Math.floor(top / LINE), Math.min(made.lines, Math.ceil((top + height) / LINE))];
    const inside = (line) => line >= lines[0] && line < lines[1];
    const tokens = [...made.place.keys()].filter((t) => inside(made.place[t].line));
    return { top, width: app.width(box), height, lines, tokens };
  }

  function write(context, { top, tokens }, inkOf) {
    context.font = app.style()[made.chars ? "text" : "textWords"];
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (const t of tokens) {
      const at = spot(t);
      context.fillStyle = inkOf(t);
      context.fillText(made.said[t], at.left + at.width / 2, at.top - top + LINE / 2 - 1);
    }
  }

  // The words in view, to cut inks with.
  function stencil(now) {
    const key = `${made.key} ${now.top}`;
    if (cut === null || cut.key !== key) {
      cut = { key, canvas: el("canvas") };
      write(fit(cut.canvas, now.width, now.height), now, () => "#000000");
    }
    return cut.canvas;
  }

  // Fills the place of each token with one of the colours, by its value.
  function fill(context, { top, width, lines: [from, to], tokens }, colours) {
    const ratio = window.devicePixelRatio || 1;
    const image = new ImageData(Math.round(width * ratio), to - from);
    const out = new Uint32Array(image.data.buffer);
    for (const t of tokens) {
      const at = spot(t);
      const row = (made.place[t].line - from) * image.width;
      const [left, right] = [at.left, at.left + at.width].map((x) => row + Math.round(x * ratio));
      out.fill(colours[placeOf(ask.scaled, ask.values[t])], left, right);
    }
    const rows = picture(image);
    for (let line = from; line < to; line++) {
      const y = line * LINE + 2 - top;
      context.drawImage(rows, 0, line - from, image.width, 1, 0, y, width, LINE - 4);
    }
  }

  function paint() {
    const now = view();
    const theme = app.theme();
    const colours = palette(theme, ask.scaled.kind);
    const context = fit(canvas, now.width, now.height);
    if (app.state.printing) {
      fill(context, now, colours.fill);
      write(context, now, (t) => inkOn(theme, ask.scaled, ask.values[t])); // sharp on paper
      return;
    }
    fill(context, now, colours.ink);
    context.globalCompositeOperation = "destination-in";
    context.drawImage(stencil(now), 0, 0, now.width, now.height);
    context.globalCompositeOperation = "destination-over";
    fill(context, now, colours.fill);
  }

  return function draw(s) {
    const values = host.hidden ? null : series(app.page, s, s.field, app.row(), s.grad);
    if (values === null) return;
    lay(app.words());
    const key = shown(s, app.row(), app.theme(), s.printing, made.key);
    const old = ask;
    ask = { key, values, scaled: app.scale(), t: s.t };
    if (old === null || old.key !== key) paint();
    const at = spot(s.t);
    for (const [name, size] of Object.entries(at)) mark.style[name] = `${size}px`;
    const outside = at.top < scrolled || at.top + at.height > scrolled + MOST;
    if (outside && (old === null || old.t !== s.t)) box.scrollTop = at.top - MOST / 2;
  };
}
