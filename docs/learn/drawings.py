"""The drawings of the lessons as SVG text: the structure, the two lanes, and shapes as boxes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

INK, PALE, GREY = "#222222", "#f2f2f2", "#6b6b6b"
#: The colours of gatewise.figures, and a second one for the direction right to left.
I, F, G, O, H, BACK = "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#0072B2", "#D55E00"


class Drawing:
    """Shapes on a white ground, in the order in which they were drawn."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size, self.title = (width, height), title
        self.parts: list[str] = []

    def add(self, tag: str, body: str = "", **attributes: object) -> None:
        pairs = " ".join(f'{name.replace("_", "-")}="{v}"' for name, v in attributes.items())
        self.parts.append(f"<{tag} {pairs}>{body}</{tag}>" if body else f"<{tag} {pairs}/>")

    def text(
        self, x: float, y: float, words: str, size: int = 14, colour: str = INK,
        anchor: str = "middle", bold: bool = False,
    ) -> None:  # fmt: skip
        weight = "bold" if bold else "normal"
        self.add(
            "text", escape(words), x=x, y=y, font_size=size, fill=colour, text_anchor=anchor,
            font_weight=weight,
        )  # fmt: skip

    def box(
        self, x: float, y: float, width: float, height: float, words: str = "",
        fill: str = PALE, edge: str = INK, size: int = 14,
    ) -> None:  # fmt: skip
        self.add("rect", x=x, y=y, width=width, height=height, rx=4, fill=fill, stroke=edge)
        if words:
            self.text(x + width / 2, y + height / 2 + size * 0.35, words, size)

    def wire(self, *points: tuple[float, float], colour: str = INK, arrow: bool = True) -> None:
        """A line through the points, with an arrow at its end."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        end = {"marker_end": f"url(#{colour.lstrip('#')})"} if arrow else {}
        self.add("path", d=path, fill="none", stroke=colour, stroke_width=1.8, **end)

    def node(self, x: float, y: float, sign: str, colour: str = INK) -> None:
        self.add("circle", cx=x, cy=y, r=13, fill="white", stroke=colour, stroke_width=1.8)
        self.text(x, y + 6, sign, 18, colour)

    def block(
        self, x: float, y: float, w: float, h: float, d: float, edges: Sequence[str], fill: str
    ) -> None:
        """A box in three dimensions; edges say what lies down, across and in depth."""
        top = f"{x},{y} {x + d},{y - d} {x + w + d},{y - d} {x + w},{y}"
        side = f"{x + w},{y} {x + w + d},{y - d} {x + w + d},{y + h - d} {x + w},{y + h}"
        for points, shade in ((top, 0.45), (side, 0.75)):
            self.add("polygon", points=points, fill=fill, fill_opacity=shade, stroke=INK)
        self.add("rect", x=x, y=y, width=w, height=h, fill=fill, fill_opacity=0.3, stroke=INK)
        down, across, depth = edges
        self.text(x - 8, y + h / 2 + 5, down, 13, anchor="end")
        self.text(x + w / 2, y + h + 17, across, 13)
        self.text(x + d / 2 - 4, y - d / 2 - 3, depth, 13, anchor="end")

    def __str__(self) -> str:
        width, height = self.size
        colours = dict.fromkeys((INK, I, F, G, O, H, BACK, GREY))
        heads = "".join(
            f'<marker id="{c.lstrip("#")}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5.5" '
            f'markerHeight="5.5" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{c}"/></marker>'
            for c in colours
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" font-family="Helvetica, Arial, sans-serif" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<defs>{heads}</defs>\n"
            f'<rect width="{width}" height="{height}" rx="8" fill="white"/>\n{body}\n</svg>\n'
        )


def structure() -> Drawing:
    """One step of the cell."""
    s = Drawing(760, 380, "One step of an LSTM")
    s.add("rect", x=110, y=40, width=540, height=290, rx=16, fill="#fafafa", stroke=GREY)
    top, gates, low = 85, 215, 285
    # The cell's own line, from left to right through * and +.
    s.wire((40, top), (207, top))
    s.wire((233, top), (387, top))
    s.wire((413, top), (715, top))
    s.text(38, top - 12, "c(t-1)", 15, anchor="start")
    s.text(722, top - 12, "c(t)", 15, anchor="end")
    s.text(310, top - 18, "cell state: kept in part, added to", 12, GREY)
    # The join: h(t-1) and x(t), one line under all four.
    s.wire((40, low), (160, low), colour=INK, arrow=False)
    s.wire((160, 370), (160, low), colour=INK, arrow=False)
    s.wire((160, low), (520, low), arrow=False)
    s.add("circle", cx=160, cy=low, r=4, fill=INK)
    s.text(38, low - 10, "h(t-1)", 15, anchor="start")
    s.text(172, 366, "x(t)", 15, anchor="start")
    s.text(150, low + 20, "join", 12, GREY, anchor="end")
    for x, curve, name, colour in (
        (220, "σ", "forget f", F), (320, "σ", "input i", I),
        (400, "tanh", "candidate g", G), (520, "σ", "output o", O),
    ):  # fmt: skip
        s.wire((x, low), (x, gates + 15))
        s.box(x - 27, gates - 15, 54, 30, curve, fill="white", edge=colour, size=16)
        s.text(x, low + 20, name, 12, bold=True)
    s.wire((220, gates - 15), (220, top + 13), colour=F)
    s.wire((320, gates - 15), (320, 150), (387, 150), colour=I)
    s.wire((400, gates - 15), (400, 163), colour=G)
    s.wire((400, 137), (400, top + 13), colour=G)
    s.node(220, top, "×", F)
    s.node(400, 150, "×", I)
    s.node(400, top, "+")
    # Read: tanh of the cell, times o, out to the right and up.
    s.wire((600, top), (600, 118))
    s.box(573, 118, 54, 30, "tanh", fill="white", size=16)
    s.wire((600, 148), (600, gates - 13))
    s.wire((547, gates), (587, gates), colour=O)
    s.node(600, gates, "×", O)
    s.wire((600, gates + 13), (600, low), (715, low), colour=H)
    s.text(722, low - 12, "h(t)", 15, H, anchor="end")
    s.text(722, low + 20, "output", 12, H, anchor="end")
    return s


def bilstm() -> Drawing:
    """Two lanes against each other, joined at every step."""
    steps, first, apart = 5, 130, 115
    s = Drawing(760, 400, "Two directions, joined at every step")
    ahead, back, joined, read = 240, 160, 62, 335
    s.text(14, ahead + 5, "left to right", 13, H, "start", bold=True)
    s.text(14, back + 24, "right to left", 13, BACK, "start", bold=True)
    s.text(14, joined + 5, "output", 13, INK, "start", bold=True)
    s.text(14, read + 5, "input x", 13, INK, "start", bold=True)
    for t in range(steps):
        x = first + t * apart
        middle = x + 32
        s.box(x, read - 16, 64, 32, f"x({t})")
        s.wire((middle - 12, read - 16), (middle - 12, ahead + 18))
        s.add(
            "path", d=f"M{x + 78} {read - 10} V{back + 8} H{x + 66}", fill="none", stroke=GREY,
            stroke_width=1.6, marker_end=f"url(#{GREY.lstrip('#')})",
        )  # fmt: skip
        s.wire((x + 64, read - 10), (x + 78, read - 10), colour=GREY, arrow=False)
        s.box(x, ahead - 16, 64, 32, "LSTM", fill="#dcebf5", edge=H, size=13)
        s.box(x, back - 16, 64, 32, "LSTM", fill="#fae3d5", edge=BACK, size=13)
        if t + 1 < steps:
            s.wire((x + 64, ahead + 6), (x + apart - 1, ahead + 6), colour=H)
            s.wire((x + apart, back - 6), (x + 65, back - 6), colour=BACK)
        s.wire((x - 10, ahead - 6), (x - 10, 100), (x + 12, 100), (x + 12, joined + 17), colour=H)
        s.wire((x, ahead - 6), (x - 10, ahead - 6), colour=H, arrow=False)
        s.wire((middle + 16, back - 16), (middle + 16, joined + 17), colour=BACK)
        s.box(x, joined - 16, 32, 32, "P", fill="#dcebf5", edge=H, size=13)
        s.box(x + 32, joined - 16, 32, 32, "P", fill="#fae3d5", edge=BACK, size=13)
        s.text(middle, joined - 24, f"output[{t}]", 12, GREY)
    right = first + (steps - 1) * apart + 64
    s.wire((right, ahead + 6), (right + 46, ahead + 6), (right + 46, ahead + 40), colour=H)
    s.text(right + 46, ahead + 57, "h_n[0]", 13, H, bold=True)
    s.wire((first, back - 6), (first - 36, back - 6), (first - 36, back - 32), colour=BACK)
    s.text(first - 38, back - 40, "h_n[1]", 13, BACK, bold=True)
    s.text(380, 385, "h_n[0] is in output[4], h_n[1] in output[0]. c_n has the same two rows.", 13)
    return s


def rows() -> Drawing:
    """The rows of h_n and c_n for two layers and two directions."""
    s = Drawing(560, 190, "The rows of h_n and c_n: L = 2, D = 2")
    for row in range(4):
        layer, way = divmod(row, 2)
        y = 34 + row * 36
        name = ("left to right", "right to left")[way]
        s.box(90, y, 230, 32, f"layer {layer}, {name}", fill=("#dcebf5", "#fae3d5")[way], edge=GREY)
        s.text(78, y + 21, f"h_n[{row}]", 14, anchor="end")
        s.text(335, y + 21, f"l{layer}.{('fwd', 'reverse')[way]}", 14, GREY, "start")
        s.text(440, y + 21, ("h_n[-4]", "h_n[-3]", "h_n[-2]", "h_n[-1]")[row], 14, GREY, "start")
    s.text(205, 22, "each row (B, P); in c_n (B, H)", 12, GREY)
    s.text(335, 22, "in a trace", 12, GREY, "start")
    s.text(440, 22, "from the end", 12, GREY, "start")
    return s


def shapes() -> Drawing:
    """What goes in and comes out of a call, as blocks."""
    s = Drawing(760, 430, "The shapes of a call")
    s.text(60, 28, "input", 15, anchor="start", bold=True)
    s.block(70, 90, 62, 90, 34, ("T", "I", "B"), G)
    s.text(60, 238, "h_0", 15, anchor="start", bold=True)
    s.block(70, 290, 50, 44, 34, ("L*D", "P", "B"), H)
    s.text(178, 238, "c_0", 15, anchor="start", bold=True)
    s.block(188, 290, 80, 44, 34, ("L*D", "H", "B"), "#999999")
    s.box(330, 90, 112, 90, "LSTM", fill="white", size=18)
    s.wire((180, 130), (326, 130))
    s.wire((312, 310), (386, 310), (386, 184))
    s.text(512, 28, "output", 15, anchor="start", bold=True)
    s.block(530, 90, 124, 90, 34, ("T", "D*P", "B"), H)
    s.wire((446, 130), (505, 130))
    s.add("path", d="M592 90 V180", stroke=INK, stroke_dasharray="4 3", fill="none")
    s.text(561, 140, "fwd", 12, GREY)
    s.text(623, 140, "reverse", 12, GREY)
    s.text(512, 238, "h_n", 15, anchor="start", bold=True)
    s.block(530, 290, 50, 44, 34, ("L*D", "P", "B"), H)
    s.text(632, 238, "c_n", 15, anchor="start", bold=True)
    s.block(648, 290, 62, 44, 34, ("L*D", "H", "B"), "#999999")
    s.wire((420, 184), (420, 310), (492, 310))
    s.text(380, 392, "batch_first=True turns input and output to (B, T, ...).", 13, GREY)
    s.text(380, 412, "h_0, c_0, h_n, c_n stay as they are: L*D first, then B.", 13, GREY)
    return s


def weights() -> Drawing:
    """The weights of one layer in one direction: four blocks of H rows."""
    s = Drawing(760, 250, "The weights of one layer in one direction")
    x = 90
    for name, width, across in (
        ("weight_ih_l0", 90, "I"), ("weight_hh_l0", 120, "P"), ("bias_ih_l0", 26, "1"),
        ("bias_hh_l0", 26, "1"),
    ):  # fmt: skip
        s.text(x + width / 2, 28, name, 13, bold=True)
        for block, (gate, colour) in enumerate(zip("ifgo", (I, F, G, O), strict=True)):
            s.add(
                "rect", x=x, y=42 + block * 42, width=width, height=42, fill=colour,
                fill_opacity=0.28, stroke=INK,
            )  # fmt: skip
            s.text(x + width / 2, 69 + block * 42, gate, 16)
        s.text(x + width / 2, 229, across, 13)
        x += width + 58
    for block in range(4):
        s.text(78, 68 + block * 42, "H", 13, anchor="end")
    s.add("rect", x=x + 8, y=42, width=130, height=70, fill=H, fill_opacity=0.25, stroke=INK)
    s.text(x + 73, 28, "weight_hr_l0", 13, bold=True)
    s.text(x - 2, 82, "P", 13, anchor="end")
    s.text(x + 73, 130, "H", 13)
    s.text(x + 73, 152, "only with proj_size", 12, GREY)
    return s


def packed() -> Drawing:
    """Sequences of different lengths, padded and packed."""
    s = Drawing(760, 250, "Padded and packed")
    lengths, names, colours = (3, 5, 2), "abc", ("#dcebf5", "#fae3d5", "#d8efe8")
    s.text(40, 28, "padded (T, B): 15 places", 14, anchor="start", bold=True)
    for b, length in enumerate(lengths):
        for t in range(max(lengths)):
            real = t < length
            s.box(
                70 + b * 46, 44 + t * 34, 42, 30, f"{names[b]}{t}" if real else "pad",
                fill=colours[b] if real else "white", edge=INK if real else "#cccccc", size=12,
            )  # fmt: skip
    for t in range(max(lengths)):
        s.text(60, 64 + t * 34, f"t = {t}", 12, GREY, "end")
    s.wire((225, 125), (270, 125), colour=GREY)
    s.text(290, 28, "packed (N): 10 tokens, step after step, longest first", 14, INK, "start", True)
    order = sorted(range(3), key=lambda b: -lengths[b])
    at = 0
    for t in range(max(lengths)):
        active = [b for b in order if t < lengths[b]]
        x = 290 + at * 43
        for b in active:
            s.box(290 + at * 43, 100, 40, 30, f"{names[b]}{t}", fill=colours[b], size=12)
            at += 1
        s.wire((x, 142), (290 + at * 43 - 4, 142), colour=GREY, arrow=False)
        s.text((x + 290 + at * 43) / 2 - 2, 160, str(len(active)), 13)
    s.text(290, 184, "batch_sizes: how many sequences reach each step", 12, GREY, "start")
    s.text(290, 216, "h_n[.., b] is the state after b's own last step,", 12, GREY, "start")
    s.text(290, 232, "in the order in which you gave the sequences.", 12, GREY, "start")
    return s


def all_drawings() -> dict[str, str]:
    """Every drawing by the name of its file."""
    made = (structure, bilstm, rows, shapes, weights, packed)
    return {each.__name__: str(each()) for each in made}
