// The d_k slider of chapter 4.1: one query, its keys, and what the width of the vectors does to the weights.
// Its variance is that of these few scores, not the d_k of many independent ones: the label says so.
//
// data: widths [number], and scores [[number]]: for each width the plain dot products q.k of the query with its keys.
bookFigures.register("dk", (data, box) => {
  "use strict";
  const { element, slider, checkbox, readouts, speaker, table, bar, list, isNumber, isRow } = bookFigures;
  const { format, softmax, entropy, variance } = bookFigures;

  const widths = list(data, "widths", isNumber);
  const keys = data?.scores?.[0]?.length;
  const scores = list(data, "scores", isRow(keys), widths.length);

  const width = slider({ name: "width", label: "width _d|k_", values: widths, start: widths[0], onInput: draw });
  const scaled = checkbox({ name: "scaled", label: "scaled: divide by √_d|k_", onInput: draw });
  const read = readouts({
    variance: `one query with ${keys} keys: variance of its scores`,
    effective: `keys in effect, of ${keys}`,
  });
  const shown = table("Score and weight of each key", ["key", "score", "share", "weight"]);
  const { node: spoken, say } = speaker();

  function draw() {
    const d = width.value();
    const divisor = scaled.value() ? Math.sqrt(d) : 1;
    const now = scores[widths.indexOf(d)].map((score) => score / divisor);
    const weights = softmax(now);
    const effective = Math.exp(entropy(weights));
    shown.fill(
      now.map((score, n) => ({
        cells: [String(n + 1), format(score, 1), bar(weights[n]), format(weights[n], 2)],
      })),
    );
    read.set("variance", format(variance(now), 1));
    read.set("effective", format(effective, 1));
    say(`Width ${d}, ${divisor === 1 ? "not scaled" : "scaled"}: ${format(effective, 1)} of ${keys} keys count.`);
  }

  draw();
  box.classList.add("dk");
  box.append(element("div", { class: "controls" }, width.node, scaled.node), read.node, shown.node, spoken);
});
