// The whole text, each token on the colour of the unit's value. Drawn on canvas, and only the lines in
// view: two thousand coloured pieces of markup cost more to paint than a step may take.

import { colour, inkOn } from "./colour.js";
import { series } from "./data.js";
import { brief, el, fit } from "./paint.js";

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
  box.append(canvas, spacer);
  host.append(spoken, box);
  host.hidden = app.page.meta.kind === "series"; // the ribbon draws it, and its colours
  let made = null; // the layout: {key, words, place, widths, lines, chars}
  let ask = null; // what to draw: {values, scaled, theme, t}

  box.addEventListener("scroll", () => paint());
  canvas.addEventListener("click", (event) => {
    const line = Math.floor((event.offsetY + box.scrollTop) / LINE);
    const t = made.place.findIndex(
      (p, k) => p.line === line && event.offsetX < p.x + made.widths[k],
    );
    if (t >= 0) app.set({ t, playing: false });
  });

  function font(style) {
    return made.chars ? style.text : style.textWords;
  }

  function lay(words) {
    const room = app.width(box) - 4;
    const key = `${room}`;
    if (made !== null && made.words === words && made.key === key) return;
    const chars = words.every((word) => [...word].length <= 1);
    made = { key, words, chars };
    const context = canvas.getContext("2d");
    context.font = font(app.style());
    const known = new Map();
    const measure = (word) => {
      if (!known.has(word))
        known.set(word, Math.ceil(context.measureText(shown(word)).width) + (chars ? 2 : 10));
      return known.get(word);
    };
    made.widths = words.map(measure);
    made.place = flow(words, made.widths, room);
    made.lines = made.place[made.place.length - 1].line + 1;
    spoken.textContent = words.join(chars ? "" : " ");
    canvas.ariaLabel =
      "The text, each token on the colour of the value; the same text is above in words";
  }

  const shown = (word) => (made.chars && word === " " ? " " : brief(word));

  // One token; the chosen one in a frame that stays inside its own place.
  function token(context, t, y, style) {
    const { x } = made.place[t];
    const wide = made.widths[t] - (made.chars ? 0 : 3);
    const fill = colour(ask.theme, ask.scaled, ask.values[t]);
    context.fillStyle = fill;
    context.fillRect(x + 2, y + 2, wide, LINE - 4);
    context.fillStyle = inkOn(fill);
    context.fillText(shown(made.words[t]), x + 2 + wide / 2, y + LINE / 2 + 1);
    if (t !== ask.t) return;
    context.lineWidth = 2;
    context.strokeStyle = style.ink;
    context.strokeRect(x + 3, y + 3, wide - 2, LINE - 6);
  }

  // All tokens in view, or of those only some.
  function paint(only = null) {
    const style = app.style();
    const tall = made.lines * LINE;
    const height = app.state.printing ? tall : Math.min(MOST, tall);
    const top = app.state.printing ? 0 : box.scrollTop;
    let context = canvas.getContext("2d");
    if (!Array.isArray(only)) {
      box.style.height = `${height}px`;
      spacer.style.height = `${tall - height}px`;
      context = fit(canvas, app.width(box), height);
    }
    context.font = font(style);
    context.textBaseline = "middle";
    context.textAlign = "center";
    for (const t of Array.isArray(only) ? only : made.words.keys()) {
      const y = made.place[t].line * LINE - top;
      if (y > -LINE && y < height) token(context, t, y, style);
    }
  }

  return function draw(s) {
    const words = app.words();
    const values = host.hidden ? null : series(app.page, s, s.field, app.row(), s.grad);
    if (values === null) return;
    lay(words);
    const key = [s.model, s.batch, s.layer, s.dir, s.field, s.grad, app.row(), app.theme()];
    key.push(canvas.width, s.printing, made.key);
    const old = ask;
    ask = { values, scaled: app.scale(), theme: app.theme(), t: s.t, key: key.join() };
    if (old !== null && old.key === ask.key) paint([old.t, s.t]);
    else paint();
    const y = made.place[s.t].line * LINE;
    const outside = y < box.scrollTop || y > box.scrollTop + box.clientHeight - LINE;
    if ((old === null || old.t !== s.t) && outside) box.scrollTop = y - box.clientHeight / 2;
  };
}
