// Attention in five steps, for chapter 3.1: one query at a time, with every number.
//
// data: tokens [text], q, k, v [[number]] with a row for each token, mask [[boolean]] (true: row may read column),
// and query, the number of the token to begin with (may be missing). Of wide vectors only the first numbers are shown,
// but all are computed with.
bookFigures.register("attention", (data, box) => {
  "use strict";
  const { element, text, choice, stepper, speaker, table, bar, list, isText, isRow } = bookFigures;
  const { format, softmax, dot } = bookFigures;

  const tokens = list(data, "tokens", isText);
  const T = tokens.length;
  const E = data?.q?.[0]?.length;
  const q = list(data, "q", isRow(E), T);
  const k = list(data, "k", isRow(E), T);
  const v = list(data, "v", isRow(data?.v?.[0]?.length), T);
  const mask = list(data, "mask", isRow(T, (x) => typeof x === "boolean"), T);
  const root = Math.sqrt(E);
  const rootShown = Number.isInteger(root) ? root : format(root, 2);

  const FEW = 3; // so many of a vector's numbers are shown when it has more than twice as many
  const few = (row) => (row.length > 2 * FEW ? FEW : row.length);
  const rest = (row) => (row.length > few(row) ? ["…"] : []);
  const numbers = (row) => [...row.slice(0, few(row)).map((x) => format(x, 2)), ...rest(row)];
  const vector = (row) => `(${numbers(row).join(", ")})`;
  const columns = (letter, row) => [
    ...Array.from({ length: few(row) }, (_, n) => `_${letter}|${n + 1}_`),
    ...rest(row),
  ];

  // What each step shows: a title, a sentence, the columns of its table, and its rows for one query's numbers.
  // A step's last column is the next one's first number.
  const STEPS = [
    {
      title: "Dot products",
      words: `How well does each key fit the query? Multiply number by number and add up all ${E} products.`,
      columns: ["key of", ...columns("k", k[0]), "_q_ · _k_"],
      rows: ({ scores }) => k.map((key, j) => [...numbers(key), format(scores[j], 2)]),
    },
    {
      title: "Scale",
      words: `Divide by √E = √${E} = ${rootShown}, so that scores do not grow with the width E.`,
      columns: ["key of", "_q_ · _k_", "divided by √E"],
      rows: ({ scores, scaled }) => scaled.map((score, j) => [format(scores[j], 2), format(score, 2)]),
    },
    {
      title: "Mask",
      words: "Where the query may not attend, the score becomes −∞.",
      columns: ["key of", "scaled", "may attend?", "masked"],
      rows: ({ scaled, may, masked }) =>
        masked.map((score, j) => [format(scaled[j], 2), may[j] ? "yes" : "no", format(score, 2)]),
    },
    {
      title: "Softmax",
      words: "_e_ to the power of each score, divided by the sum of all. The weights sum to 1.",
      columns: ["key of", "masked", "_e_ to that", "weight", "share"],
      rows: ({ masked, raised, weights }) =>
        weights.map((w, j) => [format(masked[j], 2), format(raised[j], 2), format(w, 2), bar(w)]),
    },
    {
      title: "Weighted sum",
      words: "Each value counts with its weight. The last row is their sum: the output.",
      columns: ["value of", "weight", ...columns("v", v[0])],
      rows: ({ weights }) => v.map((value, j) => [format(weights[j], 2), ...numbers(value)]),
      last: ({ output }) => ["sum", "", ...numbers(output)],
    },
  ];

  const start = Number.isInteger(data.query) && data.query >= 0 && data.query < T ? data.query : T - 1;
  const options = tokens.map((token, n) => `${n + 1}. ${token}`);
  const query = choice({ name: "query", label: "query", options, start, onInput: draw });
  const steps = stepper({ back: "Previous", next: "Next", count: () => STEPS.length, onStep: draw });
  const title = element("p", { class: "step" });
  const asked = element("p", { class: "asked" });
  const place = element("div", { class: "place" });
  const { node: spoken, say } = speaker();

  function draw() {
    const i = query.value();
    const step = steps.value();
    const may = mask[i];
    const scores = k.map((key) => dot(q[i], key));
    const scaled = scores.map((score) => score / root);
    const masked = scaled.map((score, j) => (may[j] ? score : -Infinity));
    const raised = masked.map(Math.exp);
    const weights = softmax(masked);
    const output = v[0].map((_, c) => dot(weights, v.map((value) => value[c])));
    const state = { scores, scaled, may, masked, raised, weights, output };

    const now = STEPS[step];
    const rows = now.rows(state).map((cells, j) => ({
      cells: [tokens[j], ...cells],
      kind: step > 1 && !may[j] ? "removed" : "",
    }));
    if (now.last) rows.push({ cells: now.last(state), kind: "total" });
    const shown = table(`Step ${step + 1}, ${now.title}, for the query ${tokens[i]}`, now.columns);
    shown.fill(rows);
    place.replaceChildren(shown.node);
    title.replaceChildren(element("strong", {}, `${now.title}. `), text(now.words));
    asked.replaceChildren(`The query of “${tokens[i]}”: `, text("_q_"), ` = ${vector(q[i])}`);
    say(`Step ${step + 1} of ${STEPS.length}, ${now.title}, query ${tokens[i]}.`);
  }

  draw();
  box.classList.add("attention");
  box.append(element("div", { class: "controls" }, query.node, steps.node), title, asked, place, spoken);
});
