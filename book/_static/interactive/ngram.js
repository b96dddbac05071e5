// The slider over n of chapter 1.2: a text that an n-gram model wrote, what of it is copied, and how the model does on
// a text that it has not read.
//
// data: orders [{n, words [text], copied [number], perplexity, seen}]: copied says for each word how many words the
// longest stretch around it has that stands in the text that was read; seen is in per cent.
bookFigures.register("ngram", (data, box) => {
  "use strict";
  const { element, slider, readouts, speaker, list, isText, isNumber, format } = bookFigures;

  const LONG = 6; // a copied stretch from this length on is marked
  const isOrder = (order) =>
    [order?.n, order?.perplexity, order?.seen].every(isNumber) && Array.isArray(order.words) && order.words.length > 0;
  const orders = list(data, "orders", isOrder);
  for (const order of orders) {
    list(order, "words", isText);
    list(order, "copied", isNumber, order.words.length);
  }

  const values = orders.map((order) => order.n);
  const n = slider({ name: "n", label: "_n_", values, start: values[0], onInput: draw });
  const read = readouts({
    perplexity: "perplexity on the exam",
    seen: "the exam’s n-grams that were seen",
    stretch: "longest copied stretch, words",
  });
  const written = element("p", { class: "written" });
  const key = element("p", { class: "key" }, element("mark", {}, "Marked"), `: ${LONG} words or more in a row are copied.`);
  const { node: spoken, say } = speaker();

  // Marks stand around whole stretches, and punctuation close to its word.
  function pieces({ words, copied }) {
    const nodes = [];
    let mark = null;
    words.forEach((word, i) => {
      const space = i === 0 || /^[.,;:!?]$/.test(word) ? "" : " ";
      if (copied[i] < LONG) {
        mark = null;
        nodes.push(space + word);
      } else if (mark === null) {
        mark = element("mark", {}, word);
        nodes.push(space, mark);
      } else {
        mark.append(space + word);
      }
    });
    return nodes;
  }

  function draw() {
    const order = orders[values.indexOf(n.value())];
    const stretch = Math.max(...order.copied);
    written.replaceChildren(...pieces(order));
    read.set("perplexity", format(order.perplexity, 0));
    read.set("seen", `${format(order.seen, 1)} %`);
    read.set("stretch", String(stretch));
    say(`n = ${order.n}: perplexity ${format(order.perplexity, 0)}, longest copied stretch ${stretch} words.`);
  }

  draw();
  box.classList.add("ngram");
  box.append(element("div", { class: "controls" }, n.node), written, key, read.node, spoken);
});
