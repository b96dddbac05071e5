// RoPE's dials for chapter 3.3: a query and a key as two hands, each turned by its position.
//
// data: thetas [number], the angle by which each pair of columns turns from one position to the next; q and k
// [[number, number]], the query and the key, a row for each pair; positions, how many there are; query and key, the
// positions to begin with.
bookFigures.register("rope", (data, box) => {
  "use strict";
  const { element, slider, choice, button, readouts, speaker, list, isNumber, isRow, format, dot } = bookFigures;

  const thetas = list(data, "thetas", isNumber);
  const q = list(data, "q", isRow(2), thetas.length);
  const k = list(data, "k", isRow(2), thetas.length);
  if (!Number.isInteger(data.positions) || data.positions < 2) throw new Error("positions is missing, or too small");
  const positions = Array.from({ length: data.positions }, (_, n) => n);

  const named = thetas.map((theta, n) => `${2 * n} and ${2 * n + 1}: ${theta.toPrecision(2)} rad a step`);
  const pair = choice({ name: "pair", label: "columns", options: named, start: 0, onInput: draw });
  const at = (name, label) =>
    slider({ name, label, values: positions, start: data[name] ?? 0, shown: (n) => `position ${n}`, onInput: draw });
  const query = at("query", "query _q_");
  const key = at("key", "key _k_");
  const back = button("Both back", () => shift(-1));
  const on = button("Both on", () => shift(1));
  const stepper = element("div", { class: "stepper", role: "group", "aria-label": "Move both" }, back, on);
  const read = readouts({
    between: "angle from _k_ to _q_",
    score: "score of this pair",
    total: "score of all pairs",
  });
  const { node: spoken, say } = speaker();

  // --- the dial ------------------------------------------------------------------------------------------------

  const SIZE = 100;
  function drawn(tag, attributes) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }
  const hand = (kind, letter) => {
    const line = drawn("line", { x1: 0, y1: 0, class: `hand ${kind}` });
    const name = drawn("text", { class: `name ${kind}`, "text-anchor": "middle", "dominant-baseline": "central" });
    name.textContent = letter;
    // y grows downwards on a screen, and angles are counted against the clock's sense, as in mathematics.
    const point = (angle) => {
      const [x, y] = [Math.cos(angle), -Math.sin(angle)];
      line.setAttribute("x2", (0.86 * SIZE * x).toFixed(2));
      line.setAttribute("y2", (0.86 * SIZE * y).toFixed(2));
      name.setAttribute("x", (1.12 * SIZE * x).toFixed(2));
      name.setAttribute("y", (1.12 * SIZE * y).toFixed(2));
    };
    return { nodes: [line, name], point };
  };
  const hands = { k: hand("key", "k"), q: hand("query", "q") };
  const dial = drawn("svg", { viewBox: "-125 -125 250 250", class: "dial", "aria-hidden": "true" });
  dial.append(drawn("circle", { r: SIZE, class: "rim" }), ...hands.k.nodes, ...hands.q.nodes);

  const turned = ([x, y], angle) => [
    x * Math.cos(angle) - y * Math.sin(angle),
    x * Math.sin(angle) + y * Math.cos(angle),
  ];
  const scoreOf = (n) => dot(turned(q[n], query.value() * thetas[n]), turned(k[n], key.value() * thetas[n]));
  const angleOf = ([x, y]) => Math.atan2(y, x);

  // Both keep their distance: neither moves when one of them has come to an end.
  function shift(by) {
    const inputs = [query, key].map(({ node }) => node.querySelector("input"));
    const wanted = inputs.map((input) => input.valueAsNumber + by);
    if (wanted.some((n) => n < 0 || n >= positions.length)) return;
    inputs.forEach((input, n) => {
      input.value = wanted[n];
      input.dispatchEvent(new Event("input"));
    });
  }

  function draw() {
    const n = pair.value();
    const [m, p] = [query.value(), key.value()];
    hands.q.point(angleOf(turned(q[n], m * thetas[n])));
    hands.k.point(angleOf(turned(k[n], p * thetas[n])));
    const between = angleOf(q[n]) - angleOf(k[n]) + (m - p) * thetas[n];
    const round = between - 2 * Math.PI * Math.round(between / (2 * Math.PI));
    const scores = thetas.map((_, other) => scoreOf(other));
    read.set("between", `${format(round, 2)} rad`);
    read.set("score", format(scores[n], 2));
    read.set("total", format(scores.reduce((sum, x) => sum + x, 0), 2));
    back.setAttribute("aria-disabled", Math.min(m, p) === 0);
    on.setAttribute("aria-disabled", Math.max(m, p) === positions.length - 1);
    say(`Query at ${m}, key at ${p}: the score of this pair is ${format(scores[n], 2)}.`);
  }

  draw();
  box.classList.add("rope");
  const controls = element("div", { class: "controls" }, pair.node, query.node, key.node, stepper);
  box.append(controls, dial, read.node, spoken);
});
