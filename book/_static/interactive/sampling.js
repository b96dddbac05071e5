// Sampling, for chapter 3.5: what temperature, top-k, top-p and min-p leave of a distribution.
//
// data: context (text), tokens [text], logits [number] of each token, and where the sliders start: temperature,
// top_p, top_k, min_p (each may be missing: nothing is changed then).
bookFigures.register("sampling", (data, box) => {
  "use strict";
  const { element, slider, button, readouts, speaker, table, bar, list, isNumber, isText } = bookFigures;
  const { format, softmax, entropy } = bookFigures;

  const ROWS = 15; // tokens that are shown one by one
  const DRAWS = 20;

  const tokens = list(data, "tokens", isText);
  const logits = list(data, "logits", isNumber, tokens.length);
  const V = tokens.length;

  // The order in which all filters go through the tokens: the likeliest first, and of equals the first.
  const order = logits.map((_, n) => n).sort((a, b) => logits[b] - logits[a] || a - b);

  // --- the sampler: llm_core/generation/sampling.py, line by line --------------------------------------------------

  // Each filter gets the logits that the one before has left, and puts -∞ where a token goes.
  function topK(now, k) {
    const kth = now[order[k - 1]];
    return now.map((logit) => (logit < kth ? -Infinity : logit)); // what ties with the k-th stays
  }

  function topP(now, p) {
    if (p === 1) return now;
    const probabilities = softmax(now);
    const left = [...now];
    let sum = 0;
    for (const n of order) {
      sum += probabilities[n];
      if (sum - probabilities[n] >= p) left[n] = -Infinity; // those before it make up p already
    }
    return left;
  }

  function minP(now, p) {
    const probabilities = softmax(now);
    const least = p * Math.max(...probabilities);
    return now.map((logit, n) => (probabilities[n] < least ? -Infinity : logit));
  }

  // --- chance ------------------------------------------------------------------------------------------------------

  // Park and Miller's generator: one line, and the same numbers for every reader.
  let state = 20110;
  function chance() {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  }

  function draw(probabilities) {
    let left = chance();
    const kept = order.filter((n) => probabilities[n] > 0);
    return kept.find((n) => (left -= probabilities[n]) < 0) ?? kept.at(-1);
  }

  // --- what is seen ------------------------------------------------------------------------------------------------

  // A space, a new line and nothing at all can be told apart.
  const visible = (token) =>
    token === "" ? "(empty)" : token.replace(/ /g, "␣").replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥");

  const range = (from, to, step) =>
    Array.from({ length: Math.round((to - from) / step) + 1 }, (_, n) => Number((from + n * step).toFixed(6)));

  // Every k up to 40, then in steps of about 5 %, up to V.
  const ks = [];
  for (let k = 1; k < V; k += Math.max(1, Math.floor(k / 20))) ks.push(k);
  ks.push(V);

  const start = (name, otherwise) => (isNumber(data[name]) ? data[name] : otherwise);
  const control = (name, label, values, otherwise, shown) =>
    slider({ name, label, values, start: start(name, otherwise), shown, onInput: changed });
  const all = (value) => (value === V ? `${V} (all)` : String(value));
  const temperature = control("temperature", "temperature", range(0.1, 3, 0.1), 1, (t) => t.toFixed(1));
  const k = control("top_k", "top-k", ks, V, all);
  const p = control("top_p", "top-p", range(0.05, 1, 0.05), 1, (x) => x.toFixed(2) + (x === 1 ? " (all)" : ""));
  const least = control("min_p", "min-p", range(0, 0.5, 0.01), 0, (x) => x.toFixed(2) + (x === 0 ? " (all)" : ""));
  const read = readouts({ kept: "tokens kept", entropy: "entropy, nats" });
  const shown = table("The likeliest tokens", ["token", "share", "probability", "drawn"]);
  const drawn = element("p", { class: "drawn" });
  const { node: spoken, say } = speaker();

  let probabilities, before, gone;
  let counts = null; // how often each token was drawn; null before the first draw

  function sample() {
    const peak = Math.max(...logits);
    const warm = logits.map((logit) => (logit - peak) / temperature.value());
    before = softmax(warm);
    gone = tokens.map(() => "");
    let now = warm;
    for (const [name, filter, setting] of [["top-k", topK, k], ["top-p", topP, p], ["min-p", minP, least]]) {
      const left = filter(now, setting.value());
      left.forEach((logit, n) => {
        if (logit === -Infinity && now[n] !== -Infinity) gone[n] = name;
      });
      now = left;
    }
    probabilities = softmax(now);
  }

  const usual = Math.max(...softmax(logits));

  function render() {
    // Bars are as long as the largest probability allows, now or at temperature 1: flatter is then shorter. The row of
    // the others together has none: beside bars of single tokens a sum of many would be longer than all of them.
    const full = Math.max(usual, ...probabilities, ...before);
    const row = (name, share, outline, reason, times, together = false) => ({
      kind: reason ? "removed" : "",
      cells: [
        name,
        together ? "" : bar(share / full, outline / full),
        reason ? `out: ${reason}` : `${format(100 * share, 1)} %`,
        counts ? String(times) : "",
      ],
    });
    const rows = order
      .slice(0, ROWS)
      .map((n) => row(element("code", {}, visible(tokens[n])), probabilities[n], before[n], gone[n], counts?.[n]));
    const rest = order.slice(ROWS);
    if (rest.length) {
      const sum = (numbers) => rest.reduce((total, n) => total + (numbers?.[n] ?? 0), 0);
      rows.push(row(`${rest.length} more, together`, sum(probabilities), sum(before), "", sum(counts), true));
    }
    shown.fill(rows);
    const kept = gone.filter((reason) => !reason).length;
    read.set("kept", `${kept} of ${V}`);
    read.set("entropy", format(entropy(probabilities), 2));
    return kept;
  }

  function changed() {
    counts = null;
    drawn.textContent = "Nothing is drawn yet at these settings.";
    sample();
    const kept = render();
    say(`${kept} of ${V} tokens are kept, the entropy is ${format(entropy(probabilities), 2)} nats.`);
  }

  function drawSome() {
    const ids = Array.from({ length: DRAWS }, () => draw(probabilities));
    counts = tokens.map((_, n) => ids.filter((id) => id === n).length);
    drawn.replaceChildren("Drawn: ", ...ids.flatMap((id) => [element("code", {}, visible(tokens[id])), " "]));
    render();
    say(`Drawn: ${ids.map((id) => visible(tokens[id])).join(", ")}`);
  }

  changed();
  box.classList.add("sampling");
  if (isText(data.context)) {
    box.append(element("p", { class: "context" }, "Text so far: ", element("q", {}, data.context)));
  }
  box.append(
    element("div", { class: "controls" }, temperature.node, k.node, p.node, least.node),
    read.node,
    shown.node,
    button(`Draw ${DRAWS} tokens`, drawSome),
    drawn,
    spoken,
  );
});
