// What attention looks at, for chapter 1.4: a string that a network has turned round, letter by letter.
//
// data: strings [{read [text], written [text], weights [[number]]}]: one row of weights for each letter that was
// written, with a number for each letter that was read.
bookFigures.register("alignment", (data, box) => {
  "use strict";
  const { element, choice, slider, speaker, table, bar, list, isText, isRow, format } = bookFigures;

  const isString = (string) => Array.isArray(string?.read) && Array.isArray(string?.written);
  const strings = list(data, "strings", isString);
  for (const string of strings) {
    list(string, "read", isText);
    list(string, "written", isText);
    list(string, "weights", isRow(string.read.length), string.written.length);
  }

  const options = strings.map((string) => `${string.read.join("")} (${string.read.length})`);
  const chosen = choice({ name: "string", label: "string", options, start: 0, onInput: begin });
  const place = element("div", { class: "place" }); // the slider, which is as long as the string
  const written = element("p", { class: "written" });
  const shown = table("Weight of each letter that was read", ["read", "share", "weight"]);
  const { node: spoken, say } = speaker();
  let step = null;

  function begin() {
    const numbers = strings[chosen.value()].written.map((_, n) => n + 1);
    step = slider({ name: "step", label: "letter written", values: numbers, start: 1, onInput: draw });
    place.replaceChildren(step.node);
    draw();
  }

  function draw() {
    const string = strings[chosen.value()];
    const n = step.value() - 1;
    const weights = string.weights[n];
    const most = weights.indexOf(Math.max(...weights));
    written.replaceChildren(
      "Written: ",
      string.written.slice(0, n).join(""),
      element("mark", {}, string.written[n]),
      string.written.slice(n + 1).join(""),
    );
    shown.fill(weights.map((w, j) => ({ cells: [string.read[j], bar(w), format(w, 2)] })));
    say(
      `Letter ${n + 1}, ${string.written[n]}: most of the weight, ${format(weights[most], 2)}, ` +
        `is on letter ${most + 1}, ${string.read[most]}.`,
    );
  }

  begin();
  box.classList.add("alignment");
  box.append(element("div", { class: "controls" }, chosen.node, place), written, shown.node, spoken);
});
