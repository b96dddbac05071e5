// The pipeline of chapter 2.3: one sentence, followed step by step through a model of each family.
//
// data: families [{name, stages [stage]}]. A stage has a title, what it says, the shape of what is there, and rows: the
// pieces of text, or the tokens that may come next. Beside them stand `ids`, or `shares` from 0 to 1 with a bar each, or
// `weights`, a row of shares for each of the `queries`, of which a slider chooses one.
bookFigures.register("pipeline", (data, box) => {
  "use strict";
  const { element, slider, choice, stepper, speaker, table, bar, list, isText, isNumber, isRow, format } = bookFigures;

  const families = list(data, "families", (family) => isText(family?.name));
  for (const { stages } of families.map((family) => ({ stages: list(family, "stages", isStage) }))) {
    for (const stage of stages) {
      const { length } = list(stage, "rows", isText);
      if ("ids" in stage) list(stage, "ids", isNumber, length);
      if ("shares" in stage) list(stage, "shares", isNumber, length);
      if ("weights" in stage) list(stage, "weights", isRow(length), list(stage, "queries", isText).length);
    }
  }

  function isStage(stage) {
    return [stage?.title, stage?.says, stage?.shape].every(isText);
  }

  const model = choice({ name: "family", label: "model", options: families.map((f) => f.name), start: 0, onInput: begin });
  const stages = () => families[model.value()].stages;
  const steps = stepper({
    back: "One step back",
    next: "One step on",
    count: () => stages().length,
    onStep: draw,
  });
  const title = element("p", { class: "step" });
  const says = element("p", { class: "says" });
  const query = element("div", { class: "query" });
  const place = element("div", { class: "place" });
  const { node: spoken, say } = speaker();
  let chosen = null; // the slider of an attention stage

  function begin() {
    steps.reset();
    draw();
  }

  function draw() {
    const stage = stages()[steps.value()];
    chosen = null;
    if (stage.weights) {
      const { queries } = stage;
      const values = queries.map((_, n) => n);
      const start = queries.length - 1;
      chosen = slider({ name: "query", label: "of the token", values, start, shown: (n) => queries[n], onInput: fill });
    }
    query.replaceChildren(...(chosen ? [chosen.node] : []));
    title.replaceChildren(element("strong", {}, stage.title), " ", element("code", {}, stage.shape));
    says.textContent = stage.says;
    fill();
    say(`Step ${steps.value() + 1} of ${stages().length}: ${stage.title}, ${stage.shape}. ${stage.says}`);
  }

  function fill() {
    const { rows, ids, shares, weights } = stages()[steps.value()];
    const part = chosen ? weights[chosen.value()] : shares;
    const columns = ["token", ...(ids ? ["id"] : []), ...(part ? ["share", chosen ? "weight" : "probability"] : [])];
    const shown = table(stages()[steps.value()].title, columns);
    shown.fill(
      rows.map((piece, n) => ({
        cells: [
          element("code", {}, piece),
          ...(ids ? [String(ids[n])] : []),
          ...(part ? [bar(part[n]), format(part[n], 2)] : []),
        ],
      })),
    );
    place.replaceChildren(shown.node);
  }

  draw();
  box.classList.add("pipeline");
  box.append(element("div", { class: "controls" }, model.node, steps.node), title, says, query, place, spoken);
});
